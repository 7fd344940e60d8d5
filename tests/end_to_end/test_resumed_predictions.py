"""Predictions that are cut off at any place, and gone on with: the file is that of an undisturbed run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.worlds import PRETRAIN
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.errors import ConfigError, DataError
from qwendet.infer import infer
from qwendet.inference.parts import Parts
from tests.commands import Qwendet

TINY = ASSETS / "tiny"
IMAGES, BATCH = 22, 4
SETTINGS = [
    "model.device=cpu", "model.dtype=float32", f"infer.batch_size={BATCH}", "infer.max_new_tokens=12",
]  # fmt: skip
SET = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As each of a launcher's processes has: sums are rounded by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "val.jsonl", IMAGES, seed=3)


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("whole") / "found.jsonl"
    infer(TINY, [scenes], output=output, overrides=SETTINGS)
    return output.read_bytes()


@pytest.fixture
def cut_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have the next run end when it has kept so many batches, half of one more written."""
    keep = Parts.keep

    def cut(batches: int) -> None:
        left = [batches]

        def keep_some(self: Parts, batch: int, results: Any) -> None:
            if left[0] == 0:
                with self._own.open("ab") as file:
                    file.write(f'{batch}\t[[{batch}, {{"image": '.encode())
                raise KeyboardInterrupt
            left[0] -= 1
            keep(self, batch, results)

        monkeypatch.setattr(Parts, "keep", keep_some)

    yield cut
    monkeypatch.undo()


def cut_off(cut: Callable[[int], None], batches: int, output: Path, *inputs: Path, **options: Any) -> Path:
    """A run that was cut off: what it kept."""
    with pytest.MonkeyPatch.context():
        cut(batches)
        with pytest.raises(KeyboardInterrupt):
            infer(TINY, inputs, output=output, overrides=SETTINGS, **options)
    assert not output.exists()
    return output.with_name(f"{output.name}.part")


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_resumed_run__writes_the_file_of_an_undisturbed_one(
    batches: int,
    scenes: Path,
    undisturbed: bytes,
    tmp_path: Path,
    cut_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "found.jsonl"
    part = cut_off(cut_after, batches, output, scenes)
    monkeypatch.undo()
    predicted: list[int] = []
    keep = Parts.keep
    monkeypatch.setattr(Parts, "keep", lambda *own: (predicted.append(own[1]), keep(*own)))
    summary = infer(TINY, [scenes], output=output, overrides=SETTINGS, resume=True)
    assert output.read_bytes() == undisturbed
    assert len(predicted) == -(-IMAGES // BATCH) - batches
    assert (summary.images, part.exists()) == (IMAGES, False)


def test_resumed_run__without_a_beginning_begins(scenes: Path, undisturbed: bytes, tmp_path: Path) -> None:
    infer(TINY, [scenes], output=tmp_path / "found.jsonl", overrides=SETTINGS, resume=True)
    assert (tmp_path / "found.jsonl").read_bytes() == undisturbed


def test_begun_run__is_not_thrown_away(
    scenes: Path, tmp_path: Path, cut_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "found.jsonl"
    part = cut_off(cut_after, 2, output, scenes)
    monkeypatch.undo()
    with pytest.raises(ConfigError) as caught:
        infer(TINY, [scenes], output=output, overrides=SETTINGS)
    (problem,) = caught.value.problems
    assert problem.what == "it holds what a run that was cut off has predicted"
    assert problem.where == str(part)
    assert problem.fix == f"add --resume to go on, or start over: rm -r {part}"
    with pytest.raises(ConfigError, match="nothing is kept without an output"):
        infer(TINY, [scenes], overrides=SETTINGS, resume=True)


def test_other_run__is_refused_with_what_differs(
    scenes: Path, tmp_path: Path, cut_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(scenes.parent, tmp_path / "scenes")
    model = shutil.copytree(TINY, tmp_path / "model")
    output = tmp_path / "found.jsonl"
    cut_off(cut_after, 2, output, folder / "val.jsonl")
    monkeypatch.undo()

    def refused(file: Path = folder / "val.jsonl", path: Path = TINY, **options: Any) -> str:
        options = {"overrides": SETTINGS} | options
        with pytest.raises(ConfigError) as caught:
            infer(path, [file], output=output, resume=True, **options)
        assert caught.value.problems[0].where == "--resume"
        return caught.value.problems[0].what

    assert "settings.data.labels was" in refused(labels=["cyan cross"])
    assert "settings.sources was ['head'] and is ['text']" in refused(mode="text")
    larger = refused(overrides=[*SETTINGS, "infer.batch_size=8"])
    assert "settings.infer.batch_size was 4 and is 8" in larger
    manifest = (model / "qwendet.json").read_text(encoding="utf-8")
    (model / "qwendet.json").write_text(manifest + "\n", encoding="utf-8")
    assert "the checkpoint is another one" in refused(path=model)
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    fewer = folder / "fewer.jsonl"
    fewer.write_text("".join(lines[:-1]), encoding="utf-8")
    assert "inputs.images was 22 and is 21" in refused(fewer)
    image = folder / json.loads(lines[0])["images"][0]
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    assert "an image or a demonstration is another one" in refused()
    middle = len(content) // 2
    image.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "an image or a demonstration is another one" in refused(), "of the same length"
    image.unlink()
    image.write_bytes(content)
    infer(TINY, [folder / "val.jsonl"], output=output, overrides=SETTINGS, resume=True)


def test_broken_image__ends_the_run_or_is_left_out(
    scenes: Path,
    tmp_path: Path,
    qwendet: Qwendet,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A header that is no image's, pixels that are broken behind a sound header, a line that is no sample."""
    folder = shutil.copytree(scenes.parent, tmp_path / "scenes")
    file, output = folder / "val.jsonl", tmp_path / "found.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    first, second = (folder / json.loads(lines[at])["images"][0] for at in (3, 17))
    first.write_bytes(b"no image")
    content = second.read_bytes()
    middle = content.index(b"IDAT") + 40
    second.write_bytes(content[:middle] + bytes(60) + content[middle + 60 :])
    lines[20] = '{"images": \n'
    file.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DataError):
        infer(TINY, [file], output=output, overrides=SETTINGS)
    monkeypatch.setattr("sys.argv", ["qwendet"])
    ending = qwendet("infer", TINY, file, "--output", output, "--skip-bad", *SET)
    assert ending.code == 1
    told = [line for line in ending.err.splitlines() if line.startswith("  ")]
    assert "Left out 3:" in ending.err
    for line, said in zip(told, ("is not an image", "truncated or broken", "expected one JSON"), strict=True):
        assert said in line
    found = output.read_text(encoding="utf-8").splitlines()
    whole = undisturbed.decode().splitlines()
    names = [json.loads(line)["image"] for line in whole]
    assert [json.loads(line)["image"] for line in found] == [
        name for at, name in enumerate(names) if at not in (3, 17, 20)
    ]


def test_image_that_breaks_while_predicting__leaves_what_was_predicted(
    scenes: Path,
    tmp_path: Path,
    qwendet: Qwendet,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(scenes.parent, tmp_path / "scenes")
    file, output = folder / "val.jsonl", tmp_path / "found file.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    image = folder / json.loads(lines[-1])["images"][0]
    content = image.read_bytes()
    middle = content.index(b"IDAT") + 40
    image.write_bytes(content[:middle] + bytes(60) + content[middle + 60 :])
    words = ["infer", str(TINY), str(file), "--output", str(output), *SET]
    monkeypatch.setattr("sys.argv", ["qwendet", *words])
    ending = qwendet(*words)
    part = tmp_path / "found file.jsonl.part"
    assert (ending.code, output.exists(), part.is_dir()) == (2, False, True)
    assert f"What is predicted is kept in {part}; this goes on from there: qwendet infer" in ending.err
    image.write_bytes(content)
    assert qwendet(*words, "--resume").code == 0
    assert output.read_bytes() == undisturbed


def test_full_disk__leaves_what_was_predicted(
    scenes: Path,
    tmp_path: Path,
    qwendet: Qwendet,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is full in the middle of a line, and once more when the output is written."""
    output = tmp_path / "found.jsonl"
    words = ["infer", str(TINY), str(scenes), "--output", str(output), *SET]
    monkeypatch.setattr("sys.argv", ["qwendet", *words])
    keep = Parts.keep

    def keep_first(self: Parts, batch: int, results: Any) -> None:
        if batch:
            with self._own.open("ab") as file:
                file.write(b"1\t[[4, ")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keep(self, batch, results)

    monkeypatch.setattr(Parts, "keep", keep_first)
    ending = qwendet(*words)
    assert (ending.code, output.exists()) == (3, False)
    assert "No space left on device" in ending.err
    assert "this goes on from there: qwendet infer" in ending.err
    monkeypatch.setattr(Parts, "keep", keep)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qwendet.files._sync", full)
    ending = qwendet(*words, "--resume")
    assert (ending.code, output.exists()) == (2, False)
    assert "cannot write (No space left on device)" in ending.err
    monkeypatch.undo()
    assert qwendet(*words, "--resume").code == 0
    assert output.read_bytes() == undisturbed


def test_shards__together_are_the_file_of_one_run(scenes: Path, undisturbed: bytes, tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        output = tmp_path / f"{number}.jsonl"
        infer(TINY, [scenes], output=output, overrides=SETTINGS, shard=(number, 3))
        parts.append(output.read_bytes())
    assert b"".join(parts) == undisturbed
    assert [part.count(b"\n") for part in parts] == [8, 8, 6]


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_shard__that_is_none_is_refused(text: str, qwendet: Qwendet) -> None:
    ending = qwendet("infer", "run/final", "a.png", f"--shard={text}")
    assert ending.code == 2
    assert f"expected I/N with I from 0 to N - 1, got '{text}'" in ending.err


@pytest.mark.parametrize("option", ["--json", "--coco", "--report"])
def test_resumed_eval__measures_the_same(
    option: str,
    scenes: Path,
    tmp_path: Path,
    qwendet: Qwendet,
    cut_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Head and text are a run each; it is cut off in the second one."""
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(TINY), str(scenes), "--mode", "both", "--json", "whole.json", *SET]
    monkeypatch.setattr("sys.argv", ["qwendet", *words])
    assert qwendet(*words).code == 0
    words[words.index("--json") :][:2] = [option, "again"]
    words = ["again" if word == "whole.json" else option if word == "--json" else word for word in words]
    monkeypatch.setattr("sys.argv", ["qwendet", *words])
    cut_after(8)
    ending = qwendet(*words)
    assert ending.code == 130
    assert "What is predicted is kept in again.part; this goes on from there: qwendet eval" in ending.err
    assert sorted(path.name for path in Path("again.part").iterdir()) == ["head", "text"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert qwendet(*words).code == 2
    done = qwendet(*words, "--resume")
    assert (done.code, Path("again.part").exists()) == (0, False)
    if option == "--json":
        assert Path("again").read_bytes() == Path("whole.json").read_bytes()


def test_eval__leaves_broken_images_out(
    scenes: Path,
    tmp_path: Path,
    qwendet: Qwendet,
) -> None:
    folder = shutil.copytree(scenes.parent, tmp_path / "scenes")
    lines = (folder / "val.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (folder / json.loads(lines[at])["images"][0] for at in (3, 17))
    first.unlink()
    content = second.read_bytes()
    middle = content.index(b"IDAT") + 40
    second.write_bytes(content[:middle] + bytes(60) + content[middle + 60 :])
    words = ["eval", TINY, folder / "val.jsonl", "--format", "json", *SET]
    assert qwendet(*words).code == 2
    ending = qwendet(*words, "--skip-bad")
    record = json.loads(ending.out)
    assert (ending.code, record["ok"], record["images"]) == (1, False, IMAGES - 2)
    assert any("is absent" in note for note in record["notes"])
    assert any("truncated or broken" in note for note in record["notes"])


FIRST_DIES = """
import os, signal
from qwendet.inference.parts import Parts
keep, left = Parts.keep, [2]
def keep_some(self, batch, results):
    keep(self, batch, results)
    left[0] -= 1
    if not left[0] and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
Parts.keep = keep_some
"""
ByRanks = Callable[[str, Path, Path, int], list[int]]


def in_two_processes(by_ranks: ByRanks, folder: Path, plant: str, *words: str | Path) -> list[int]:
    """Run a command as two ranks; their exit codes."""
    (folder / "out").mkdir()
    (folder / "out" / "job.json").write_text(json.dumps({"plant": plant}), encoding="utf-8")
    (folder / "words").write_text("\n".join(map(str, words)), encoding="utf-8")
    return by_ranks("command", folder / "words", folder / "out", 2)


def test_killed_processes__are_gone_on_from_by_one(
    scenes: Path, undisturbed: bytes, tmp_path: Path, by_ranks: ByRanks
) -> None:
    output = tmp_path / "found.jsonl"
    words = ["infer", TINY, scenes, "--output", output, *SET]
    codes = in_two_processes(by_ranks, tmp_path, FIRST_DIES, *words)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0, "it misses the first"
    assert not output.exists()
    kept = [path.read_bytes().count(b"\n") for path in tmp_path.glob("found.jsonl.part/process-*.jsonl")]
    assert 2 <= sum(kept) < -(-IMAGES // BATCH)
    infer(TINY, [scenes], output=output, overrides=SETTINGS, resume=True)
    assert output.read_bytes() == undisturbed
    assert not (tmp_path / "found.jsonl.part").exists()


def test_killed_process__is_gone_on_from_by_two(
    scenes: Path,
    undisturbed: bytes,
    tmp_path: Path,
    cut_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    by_ranks: ByRanks,
) -> None:
    output = tmp_path / "found.jsonl"
    part = cut_off(cut_after, 2, output, scenes)
    monkeypatch.undo()
    words = ["infer", TINY, scenes, "--output", output, *SET, "--resume"]
    codes = in_two_processes(by_ranks, tmp_path, "", *words)
    assert codes == [0, 0], (tmp_path / "out" / "0.err").read_text(encoding="utf-8")
    assert output.read_bytes() == undisturbed
    assert not part.exists()


def test_kill_infer__nothing_is_lost_and_nothing_predicted_twice(repo_root: Path, tmp_path: Path) -> None:
    words = ["benchmarks.kill_infer", "--kills", "3", "--images", "12", "--json", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=repo_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert [figures[name] for name in ("kills", "survived", "lost", "twice")] == [3, 3, 0, 0]
    assert "survived 3 of 3, lost 0, twice 0" in done.stdout
