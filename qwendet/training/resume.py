"""Going on with a run: which checkpoint, whether all of it is there, and which settings must be the same.

qwendet.json   hashes of model, head, tokenizer and processor      (read by every command)
resume.json    hashes of optimizer, schedule and random states     (read by --resume alone)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from qwendet.config.schema import Config
from qwendet.config.section import flat
from qwendet.errors import CheckpointError, EnvironmentLacksError, Problem
from qwendet.families.choose import family_of
from qwendet.families.family import Family
from qwendet.files import put_back_lost, sha256_of_file
from qwendet.loading.manifest import RESUME, Manifest, file_problems, files_of, read_manifest, verify_files

logger = logging.getLogger("qwendet")

# What the weights depend on, and what the optimizer's stored state would override; so do learning rates.
FIXED_IN_A_RUN = (
    "model.dtype", "data.labels", "data.system_prompt", "data.request", "data.frame", "data.min_pixels",
    "data.max_pixels", "detection.enabled", "detection.hidden_size", "detection.num_layers",
    "detection.num_heads", "train.optimizer", "train.weight_decay", "train.weights",
    "train.ema", "train.ema.decay", "train.ema.parts",
    "model.lora", "model.lora.rank", "model.lora.alpha", "model.lora.targets", "model.lora.load_in_4bit",
)  # fmt: skip
# What torch says when a file cannot be written to its end; it has no class of its own for that.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "unexpected pos", "file write failed")


def require_same_run(stored: Manifest, here: Config, family: Family, checkpoint: str) -> None:
    """Refuse to resume with settings that the checkpoint fixes; say which others differ."""
    if stored.family != family.model_type:
        raise CheckpointError(
            f"the run was started with a model of {family_of(stored.family, checkpoint).name},"
            f" but model.path is one of {family.name}",
            checkpoint,
            "restore model.path, or start another run with another train.output_dir",
        )
    before, now = flat(stored.config.model_dump()), flat(here.model_dump())
    # Where the checkpoint is, the machine, and the base's fingerprint say these.
    elsewhere = ("model.path", "model.device", "model.lora.base", "model.lora.revision")
    differing = [key for key in before | now if before.get(key) != now.get(key) and key not in elsewhere]
    for key in differing:
        logger.info("differs from the checkpoint: %s: %s, now %s", key, before.get(key), now.get(key))
    problems = [
        Problem(
            f"{key} is {now.get(key)!r}, but the run was started with {before.get(key)!r}",
            checkpoint,
            "restore it, or start another run with the checkpoint as model.path",
        )
        for key in differing
        if key in FIXED_IN_A_RUN or key.endswith("learning_rate")
    ]
    if problems:
        raise CheckpointError.of(problems)


# Which checkpoint


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the oldest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint that is complete, byte for byte; newer ones that are not are named."""
    problems: list[Problem] = []
    put_back_lost(run)
    for folder in reversed(checkpoints(run)):
        try:
            manifest = read_manifest(folder)
            verify_files(folder, manifest)
            processes = verify_training_state(folder, manifest)
        except CheckpointError as error:
            problems += error.problems
            first = error.problems[0]
            logger.warning("passed over %s: %s: %s", folder.name, first.where, first.what)
        else:
            logger.info("resuming from %s", folder)
            if processes != (now := int(os.environ.get("WORLD_SIZE", "1"))):
                logger.warning("differs from the checkpoint: processes: %d, now %d", processes, now)
            return folder
    if problems:
        raise CheckpointError.of(problems)
    raise CheckpointError("there is no checkpoint to resume from", str(run), "start the run without --resume")


def rotate(run: Path, newest: Path, limit: int) -> None:
    """Remove the oldest checkpoints beyond ``limit``, never the one just written.

    Later ones than that are of a run that was resumed before them, because they were damaged: they go first.
    """
    others = [path for path in checkpoints(run) if path != newest]
    others.sort(key=lambda path: (step_of(path) < step_of(newest), step_of(path)))
    for path in others[: max(0, len(others) + 1 - limit)]:
        shutil.rmtree(path)


# The training state


def record_training_state(folder: Path, manifest: Manifest, processes: int) -> None:
    """Write the hash of every file that the manifest does not know, the manifest's own among them."""
    files = {
        name: sha256_of_file(folder / name)
        for name in files_of(folder)
        if name not in {*manifest.files, RESUME}
    }
    record = {"files": files, "processes": processes}
    (folder / RESUME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def verify_training_state(folder: Path, manifest: Manifest) -> int:
    """Compare optimizer, schedule and random states with their hashes."""
    path = folder / RESUME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files, processes = dict(record["files"]), int(record["processes"])
    except FileNotFoundError as error:
        raise CheckpointError("there is no training state", str(path), "use it as model.path") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(path), "take another checkpoint") from error
    fix = "resume from an older checkpoint, or start another run with this one as model.path"
    problems = [*file_problems(folder, files, RESUME, fix)]
    known = {*files, *manifest.files, RESUME}
    problems += [
        Problem("neither manifest nor resume.json knows this file", str(folder / name), "remove it")
        for name in files_of(folder)
        if name not in known
    ]
    if problems:
        raise CheckpointError.of(problems)
    return processes


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Say in plain words that a checkpoint could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _cannot_write(folder, error) from error
    except RuntimeError as error:
        if any(words in str(error) for words in TORCH_CANNOT_WRITE):
            raise _cannot_write(folder, error) from error
        raise


def _cannot_write(folder: Path, error: Exception) -> EnvironmentLacksError:
    return EnvironmentLacksError(
        f"the checkpoint cannot be written: {str(error).splitlines()[0]}",
        str(folder),
        "make room or fix the permissions, then go on with --resume: earlier checkpoints are untouched",
    )


# Reading it


@contextmanager
def reading_state(checkpoint: str | None, what: str) -> Iterator[None]:
    """Say which part of the training state cannot be used; nothing in it is ever unpickled."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"the {what} cannot be loaded: {str(error).splitlines()[0]}",
            checkpoint or "",
            "resume from an older checkpoint, or start another run with this one as model.path",
        ) from error
