"""Two gloo processes on the CPU give what one process with the same global batch gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.demo.tiny import TINY_FOLDER
from qwendet.training.best import Best, find_best

Run = Callable[[str, Path, Path, int], None]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples that fill one step: two with teachers and boxes, two with neither."""
    folder = tmp_path_factory.mktemp("scenes")
    path = write_dataset(DEMO, folder / "train.jsonl", 6, seed=0)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records.sort(key=lambda record: -len(record["objects"]))
    assert records[1]["objects"]
    shown = [{"teachers": [records[number + 2]], "student": records[number]} for number in (0, 1)]
    empty = [record | {"objects": []} for record in records[4:]]
    path.write_text("".join(json.dumps(record) + "\n" for record in shown + empty), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def write_config(four: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write the config of a run of three steps over all four samples."""

    def write(run: Path, batch_size: int, model: dict[str, Any] | None = None, **settings: Any) -> Path:
        train = {
            "output_dir": str(run),
            "max_steps": 3,
            "batch_size": batch_size,
            "learning_rate": 3e-4,
            "save_steps": 100,
            "logging_steps": 1,
            "preflight": "off",
        }
        values = {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"} | (model or {}),
            "data": {"train": str(four), "labels": list(DEMO.labels)},
            "detection": {"hidden_size": 64, "num_layers": 1, "num_heads": 4},
            "train": train | settings,
        }
        path = tmp_path_factory.mktemp("config") / "config.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(by_ranks: Callable[[str, Path, Path, int], list[int]]) -> Run:
    """Do a job that ends well."""

    def do(job: str, config: Path, out: Path, number: int) -> None:
        codes = by_ranks(job, config, out, number)
        assert set(codes) == {0}, "".join(path.read_text() for path in sorted(out.glob("*.err")))[-4000:]

    return do


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest gradient."""
    scale = max(float(tensor.abs().max()) for tensor in wanted.values())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5 * scale, msg=name)


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by file and name."""
    return {
        f"{file.name}/{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(found: Path, wanted: Path) -> None:
    """To 1e-5, where one step moves a weight by up to 3e-4, however small its gradient is (AdamW)."""
    ours, theirs = saved_weights(found), saved_weights(wanted)
    assert ours.keys() == theirs.keys()
    assert {name.partition("/")[0] for name in ours} >= {"detection_head.safetensors"}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("batch_size", "model"),
    [(2, {}), (1, {}), (2, {"gradient_checkpointing": True, "lora": {"rank": 2, "targets": "all"}})],
    ids=["batches of two", "two batches of one", "adapter, recomputed"],
)
def test_distributed_ddp__losses_gradients_and_weights_are_those_of_one_process(
    run: Run, write_config: Callable[..., Path], tmp_path: Path, batch_size: int, model: dict[str, Any]
) -> None:
    require_same_as_one_process(run, write_config, tmp_path, batch_size, model)


@pytest.mark.parametrize("name", ["Qwen2-VL-2B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3.5-0.8B"])
def test_distributed_ddp__of_each_family_is_one_process(
    run: Run, write_config: Callable[..., Path], small_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    require_same_as_one_process(run, write_config, tmp_path, 2, {"path": str(small_model(name))})


def test_distributed_epoch__gives_each_sample_of_the_shards_to_one_rank_once(
    run: Run, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen samples in shards of five, four batches of two a rank."""
    monkeypatch.setattr("qwendet.data.formats.shard_writer.SHARD_SAMPLES", 5)
    path = write_dataset(DEMO, tmp_path / "files" / "train.jsonl", 16, seed=3)
    convert_dataset(path, tmp_path / "shards", Conversion(target="parquet"))
    config = write_config(tmp_path / "run", 2)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["data"]["train"] = str(tmp_path / "shards")
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    run("epoch", config, tmp_path / "out", 2)
    given = [json.loads((tmp_path / "out" / f"{rank}.json").read_text()) for rank in range(2)]
    rows = [(number, row) for number in range(4) for row in range(5 if number < 3 else 1)]
    wanted = [f"{tmp_path}/shards/train-00000{number}.parquet: row {row}" for number, row in rows]
    assert list(map(len, given)) == [8, 8]
    assert sorted(given[0] + given[1]) == wanted


def require_same_as_one_process(
    run: Run, write_config: Callable[..., Path], tmp_path: Path, batch_size: int, model: dict[str, Any]
) -> None:
    """Ranks hold different numbers of teacher tokens and boxes, one of them none of either in every step."""
    found: dict[int, list[Any]] = {}
    for ranks in (1, 2):
        size = 4 if ranks == 1 else batch_size
        config = write_config(
            tmp_path / f"run-{ranks}", size, model, gradient_accumulation_steps=4 // (ranks * size)
        )
        run("ddp", config, tmp_path / f"out-{ranks}", ranks)
        files = [tmp_path / f"out-{ranks}" / f"{rank}.pt" for rank in range(ranks)]
        found[ranks] = [torch.load(file, weights_only=True) for file in files]
    (one,), (first, second) = found[1], found[2]
    held = [found_here["counts"] for found_here in (first, second)]
    assert first["counts"] != second["counts"]
    if batch_size == 2:
        assert any(all(teacher == boxes == 0 for teacher, _, boxes in counts) for counts in held), held
    for row, wanted in zip(first["rows"], one["rows"], strict=True):
        for name in (name for name in wanted if name.startswith("loss") or name == "grad_norm"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), (wanted["step"], name)
    for step, wanted in zip(first["gradients"], one["gradients"], strict=True):
        assert_close(step, wanted)
    for step, wanted in zip(second["gradients"], first["gradients"], strict=True):
        assert all(torch.equal(step[name], tensor) for name, tensor in wanted.items())
    assert_same_weights(*(tmp_path / f"run-{ranks}" / "checkpoint-3" for ranks in (2, 1)))


def test_distributed_evaluation__in_training_and_at_its_end_is_shared_and_the_same(
    run: Run, write_config: Callable[..., Path], four: Path, tmp_path: Path
) -> None:
    """Three batches for two ranks; rows tell of both ranks' samples."""
    val = write_dataset(DEMO, four.parent / "val.jsonl", 5, seed=3)
    rows: dict[int, list[dict[str, float]]] = {}
    for ranks in (1, 2):
        settings = {"max_steps": 2, "eval_steps": 1, "save_steps": 2, "learning_rate": 1e-5}
        settings |= {"evaluate_base": True, "ema": {"decay": 0.5}, "best_metric": "head/AR_100"}
        config = write_config(tmp_path / f"run-{ranks}", 4 // ranks, **settings)
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        values["data"] |= {"val": str(val), "allow": ["config.images.small_objects"]}
        values["infer"] = {"batch_size": 2, "max_new_tokens": 8}
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        words = tmp_path / f"train-{ranks}"
        words.write_text(f"train\n{config}", encoding="utf-8")
        run("command", words, tmp_path / f"out-{ranks}", ranks)
        state = tmp_path / f"run-{ranks}" / "checkpoint-2" / "trainer_state.json"
        rows[ranks] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    metrics = [json.loads((tmp_path / f"run-{ranks}" / "metrics.json").read_text()) for ranks in (1, 2)]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
    bases = [[row for row in rows[ranks] if row["step"] == 0] for ranks in (1, 2)]
    assert bases[0] == bases[1], "of text, measured before the first step"
    assert "validation/text/AR_100" in bases[0][0]
    one, two = ([row for row in rows[ranks] if "validation/head/AR_100" in row] for ranks in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2]
    assert two[0] == pytest.approx(one[0], abs=1e-3)
    best, alone = (find_best(tmp_path / f"run-{ranks}") for ranks in (2, 1))
    measured = [row["validation/head/AR_100"] for row in two]
    assert best == Best(measured.index(max(measured)) + 1, "head/AR_100", max(measured))
    assert alone is not None
    assert best.value == pytest.approx(alone.value, abs=1e-3)
    assert_same_weights(*(tmp_path / f"run-{ranks}" / "final" for ranks in (2, 1)))
    losses = [[row for row in rows[ranks] if "loss/total" in row] for ranks in (1, 2)]
    for first, second in zip(*losses, strict=True):
        for name in (name for name in first if name.startswith("grad_norm")):
            assert second[name] == pytest.approx(first[name], rel=1e-4), name
        pace = [
            row["throughput/tokens_per_second"] / row["throughput/samples_per_second"]
            for row in (first, second)
        ]
        assert pace[1] == pytest.approx(pace[0]), "tokens of a sample, over all ranks"
    assert (tmp_path / "out-2" / "1.out").read_text() == "", "only the first process prints"


def test_distributed_signal__on_one_rank_ends_all_after_the_same_step_with_a_checkpoint(
    run: Run, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run("stop", write_config(tmp_path / "run", 2, max_steps=50), tmp_path / "out", 2)
    assert [(tmp_path / "out" / f"{rank}.txt").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_distributed_infer__gives_what_one_process_gives(run: Run, tmp_path: Path) -> None:
    """Five images in batches of two: three batches for two ranks, the last one short."""
    scenes = write_dataset(DEMO, tmp_path / "val.jsonl", 5, seed=3)
    infer = [
        "infer",
        str(TINY_FOLDER),
        str(scenes),
        "--set",
        "infer.batch_size=2",
        "--labels",
        ",".join(DEMO.labels),
    ]
    for ranks in (1, 2):
        words = tmp_path / f"infer-{ranks}"
        output = tmp_path / f"found-{ranks}.jsonl"
        words.write_text("\n".join([*infer, "--output", str(output)]), encoding="utf-8")
        run("command", words, tmp_path / f"out-{ranks}", ranks)
    one, two = ((tmp_path / f"found-{ranks}.jsonl").read_bytes() for ranks in (1, 2))
    assert two == one
    images = [json.loads(line)["image"] for line in one.splitlines()]
    assert images == [f"images/val_{number:05d}.png" for number in range(5)]


def test_distributed_eval__gives_what_one_process_gives(run: Run, tmp_path: Path) -> None:
    scenes = write_dataset(DEMO, tmp_path / "val.jsonl", 5, seed=3)
    labels = f"data.labels={json.dumps(DEMO.labels)}"
    settings = ["--set", "infer.batch_size=2", "--set", labels]
    for ranks in (1, 2):
        words, output = tmp_path / f"eval-{ranks}", tmp_path / f"found-{ranks}.json"
        command = ["eval", str(TINY_FOLDER), str(scenes), *settings, "--json", str(output)]
        words.write_text("\n".join(command), encoding="utf-8")
        run("command", words, tmp_path / f"out-{ranks}", ranks)
    assert (tmp_path / "found-2.json").read_bytes() == (tmp_path / "found-1.json").read_bytes()
    assert (tmp_path / "out-2" / "1.out").read_text() == "", "only the first process prints"


@pytest.mark.timeout(600)
def test_distributed_death__of_a_rank_stops_the_others_and_is_named(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run", 2, max_steps=1000)
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from qwendet.cli.main import run\n"
        "def die():\n"
        "    while not any(Path(sys.argv[1]).glob('tensorboard/*')):\n"
        "        time.sleep(0.1)\n"
        "    time.sleep(2)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['RANK'] == '1':\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
        "run(['train', sys.argv[2]])\n",
        encoding="utf-8",
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path / "run"), str(config)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    assert "this is a bug" not in done.stderr
    assert not (tmp_path / "run" / "final").exists()
