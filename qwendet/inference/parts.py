"""Predictions as they come, in a folder beside the output; a run that was cut off goes on from them.

found.jsonl.part/header.json       checkpoint, settings and inputs that they belong to
found.jsonl.part/process-0.jsonl   a batch a line, in the order in which they came; one file a process:
                                   its number, a digest of its image files, its predictions
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from qwendet.config.schema import ModelConfig
from qwendet.config.section import flat
from qwendet.data.archives import sampled_digest
from qwendet.data.images import resolve_image
from qwendet.errors import ConfigError, DataError, Problem
from qwendet.files import atomic_file, sha256_of_file
from qwendet.inference.batches import Plan, Result, Results, Skipped, predict_share
from qwendet.inference.detections import Prediction
from qwendet.inference.predictor import Predictor
from qwendet.inference.served import ServedPredictor
from qwendet.inference.sharding import rank_and_world, wait_for_all
from qwendet.loading.manifest import MANIFEST
from qwendet.progress import track
from qwendet.source import SETTINGS, find_source

HEADER = "header.json"
OTHER_IMAGE = "an image or a demonstration is another one"
DIGESTS = {"checkpoint.sha256": "the checkpoint is another one", "inputs.sha256": OTHER_IMAGE}
"""What is said of a digest that differs."""
NEVER_MATTERS = (
    ("model", "path"),
    ("infer", "mode"),
    ("infer", "picture_threshold"),
    ("infer", "server_requests"),
    ("infer", "server_timeout"),
)
"""Settings that no prediction depends on, beside what else is compared."""


class Parts:
    """What is predicted so far, a batch a line, in a folder that is absent or of a run that was cut off.

    What the predictions depend on is its header; a folder with another one is refused, and one whose
    predictions are of other images.
    """

    def __init__(self, folder: Path, header: Mapping[str, Mapping[str, Any]], plan: Plan) -> None:
        self.folder, self._plan = folder, plan
        header = json.loads(json.dumps(header))
        known = self.known_header(folder)
        if known is not None:
            self._require_same(known, header)
        wait_for_all()  # nobody writes before all have looked
        rank, _ = rank_and_world()
        if known is None and rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with atomic_file(folder / HEADER) as path:
                path.write_text(json.dumps(header, indent=1), encoding="utf-8")
        wait_for_all()
        self._own = folder / f"process-{rank}.jsonl"
        self.scan()
        self._require_same_images()

    @staticmethod
    def known_header(folder: Path) -> dict[str, dict[str, Any]] | None:
        """The header of an earlier run; ``None`` if there is none."""
        try:
            found: dict[str, dict[str, Any]] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def _require_same(self, known: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        before, now = flat(known), flat(header)
        differences = [
            DIGESTS.get(key, f"{key} was {before.get(key)} and is {now.get(key)}")
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if differences:
            raise self._other("; ".join(differences))

    def _require_same_images(self) -> None:
        """Of those that are predicted; one that was broken may have been repaired."""
        for batch, (_, _, files) in self._places.items():
            if files != self._files(batch):
                raise self._other(OTHER_IMAGE)

    def _other(self, changed: str) -> ConfigError:
        what = f"the predictions in {self.folder} were begun with something else: {changed}"
        fix = f"repeat the command that began them, or start over: {_removal(self.folder)}"
        return ConfigError(what, "--resume", fix)

    def _files(self, batch: int) -> str:
        """A digest of a batch's image files, by the length of each and some of its bytes."""
        digest = hashlib.sha256()
        for number in self._plan.batch(batch):
            with suppress(DataError):  # the line of what is no sample is in the digest of the inputs
                sample = self._plan.samples[number]
                for turn in (*sample.teachers, sample.student):
                    file = resolve_image(turn.image, turn.root, sample.where)
                    digest.update(f"{number} {sampled_digest(file)}".encode())
        return digest.hexdigest()

    def scan(self) -> None:
        """Find each whole line; the end of a line that was cut off is cut off this process' own file."""
        self._places: dict[int, tuple[Path, int, str]] = {}
        for path in self.folder.glob("process-*.jsonl"):
            end = 0
            with path.open("rb") as file:
                for line in file:
                    batch, *rest = line.split(b"\t", 2)
                    if len(rest) < 2 or not line.endswith(b"]\n"):
                        break
                    self._places[int(batch)] = (path, end, rest[0].decode())
                    end += len(line)
            if path == self._own:
                os.truncate(path, end)

    def __contains__(self, batch: object) -> bool:
        return batch in self._places

    def keep(self, batch: int, results: Results) -> None:
        """Write down what a batch gave, at once."""
        rows = [[index, asdict(result)] for index, result in results.items()]
        with self._own.open("ab", buffering=0) as file:
            line = memoryview(f"{batch}\t{self._files(batch)}\t{json.dumps(rows)}\n".encode())
            while line:  # a disk that is nearly full takes a part
                line = line[file.write(line) :]

    def read(self, plan: Plan) -> Iterator[Result]:
        """All results, in the order of the samples."""
        for batches in plan.windows():
            found: Results = {}
            for batch in batches:
                found |= self._batch(batch)
            for index in sorted(found):
                yield found[index]

    def _batch(self, batch: int) -> Results:
        if batch not in self._places:
            what = f"batch {batch} is not here, though all processes have ended"
            raise DataError(what, str(self.folder), "see that all processes write to one shared folder")
        path, place, _ = self._places[batch]
        with path.open("rb") as file:
            file.seek(place)
            *_, rows = file.readline().split(b"\t", 2)
        return {index: _result(record) for index, record in json.loads(rows)}


def require_free(folder: Path | None, option: str, *, resume: bool) -> None:
    """Refuse to throw away what a run that was cut off has predicted, unless it is to be resumed.

    ``option`` names the output that the folder is beside; ``None`` is without one.
    """
    if folder is None and resume:
        raise ConfigError("nothing is kept without an output", "--resume", f"add {option} FILE")
    if folder is not None and folder.exists() and not resume:
        what = "it holds what a run that was cut off has predicted"
        raise ConfigError(what, str(folder), f"add --resume to go on, or start over: {_removal(folder)}")


def _removal(folder: Path) -> str:
    return shlex.join(["rm", "-r", str(folder)])


def predict_parts(
    predictor: Predictor | ServedPredictor,
    plan: Plan,
    mode: str | None,
    folder: Path,
    inputs: Mapping[str, Any],
    *,
    skip_bad: bool = False,
) -> Parts:
    """Predict what is not predicted yet, by all processes of the launcher together.

    All predictions are then in ``folder``, where they are kept as they come, for every process; ``inputs``
    tell these inputs from others.
    """
    config = predictor.bundle.config
    settings = config.model_dump(mode="json") | {"sources": predictor.sources(mode)}
    settings |= {"torch": torch.__version__, "batches": [plan.batch_size, plan.window], "skip_bad": skip_bad}
    for section, name in NEVER_MATTERS:
        del settings[section][name]
    if isinstance(predictor, ServedPredictor):
        settings |= {"server": predictor.server.url, "server_model": predictor.server.model}
    elif config.model.device == "cpu":
        # Sums on other numbers of threads are rounded otherwise.
        known = Parts.known_header(folder) or {}
        settings["threads"] = known.get("settings", {}).get("threads", torch.get_num_threads())
        torch.set_num_threads(settings["threads"])
    checkpoint = {"sha256": _digest_of(config.model)}
    parts = Parts(folder, {"checkpoint": checkpoint, "settings": settings, "inputs": inputs}, plan)
    with track(f"predicting by {' and '.join(predictor.sources(mode))}", len(plan.samples)) as advance:
        predict = partial(predictor.predict_batches, plan, mode=mode, skip_bad=skip_bad)
        predict_share(predict, plan, parts.keep, advance, done=parts)
    wait_for_all()
    parts.scan()
    return parts


def _digest_of(model: ModelConfig) -> str:
    """A digest of the manifest, which has those of all weights, or of all files of a model without one."""
    source = find_source(model.path, model.revision, weights=False)
    if source.commit is not None:
        return source.commit
    manifest = source.folder / MANIFEST
    patterns = [*SETTINGS, "*.safetensors"]
    files = [manifest] if manifest.is_file() else [*chain(*map(source.folder.glob, patterns))]
    digests = [f"{file.name} {sha256_of_file(file)}" for file in sorted(files)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _result(record: Mapping[str, Any]) -> Result:
    if "problems" in record:
        return Skipped(tuple(Problem(**problem) for problem in record["problems"]))
    return Prediction.from_record(record)
