"""An exported directory on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from qwendet.errors import ConfigError, EnvironmentLacksError

OWN_ERRORS = (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError)


def require_repository(name: str) -> None:
    """Refuse a name that no repository can have."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r} is no name of a repository", "--push", "for example: --push team/cells"
        ) from error


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a directory in one commit; the repository is made if there is none."""
    api = HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="qwendet export")
        return str(commit.commit_url)
    except OWN_ERRORS as error:
        words = " ".join(str(error).split())[:300]
        fix = f"hf auth login, then: hf upload {name} {folder}"
        raise EnvironmentLacksError(f"{folder} is written, but not uploaded ({words})", name, fix) from error
