"""Where a model's files are: with the package, in a folder, or a snapshot of the hub in its cache.

    model.path, model.revision ─► find_source ─► Source(folder, commit) ─► every reader of files

Nobody else asks the hub, so that all files of a model are of one commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from qwendet.config.schema import EMBEDDED_MODELS, HUB_ID
from qwendet.demo.tiny import embedded_folder
from qwendet.errors import CheckpointError
from qwendet.files import find_folder
from qwendet.loading.weights import explained_load_errors

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.md")
"""Files of a repository that are wanted, but for the weights; never pickles or code."""


@dataclass(frozen=True)
class Source:
    """A model's files on this disk, and the hub's commit that they are of, where they come from there."""

    folder: Path
    commit: str | None = None


def find_source(path: str, revision: str | None, *, weights: bool = True) -> Source:
    """Find a model's files; those of a hub id are downloaded, unless they are in the cache.

    Args:
        path: as in ``model.path``.
        revision: branch, tag or commit of a hub id; ``None`` is its default branch.
        weights: ``False`` leaves the weights of a hub id on the hub.
    """
    folder = embedded_folder(path) if path in EMBEDDED_MODELS else Path(path)
    if find_folder(folder):
        return Source(folder)
    if not HUB_ID.fullmatch(path):
        what = "expected a folder, got a file" if folder.exists() else "there is no such model directory"
        fix = "give the folder of a model or a checkpoint, such as run/final, tiny, or a hub id (owner/name)"
        raise CheckpointError(what, path, fix)
    patterns = [*SETTINGS, *["*.safetensors"] * weights]
    with explained_load_errors(
        "model (no folder of this name is here, so it is taken for a hub id)",
        path if revision is None else f"{path} at {revision}",
    ):
        snapshot = Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    return Source(snapshot, snapshot.name)  # the cache names a snapshot's folder after its commit
