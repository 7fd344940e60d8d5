"""FSDP2 by the very code that runs on GPUs, on gloo processes of the CPU (the seam is in ranks.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.demo.tiny import write_untrained
from qwendet.loading.manifest import read_manifest
from qwendet.training.best import find_best

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
SMALL_HEAD = {"hidden_size": 64, "num_layers": 1, "num_heads": 4}
pytestmark = [
    pytest.mark.timeout(1200),  # a minute on two cores of its own
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="torch would spread over GPUs: tests/gpu/test_fsdp.py"
    ),
]


@dataclass
class Job:
    """One job of ranks.py."""

    kind: str
    config: Path
    out: Path
    ranks: int
    codes: list[int] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What each rank wrote on stderr."""
        return [path.read_text(encoding="utf-8") for path in sorted(self.out.glob("*.err"))]

    @property
    def run(self) -> Path:
        settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return Path(settings["train"]["output_dir"])


class Jobs:
    """Jobs that are done one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        scenes = write_dataset(DEMO, folder / "train.jsonl", 6, seed=0)
        records = [json.loads(line) for line in scenes.read_text(encoding="utf-8").splitlines()]
        records.sort(key=lambda record: -len(record["objects"]))
        shown = [{"teachers": [records[number + 2]], "student": records[number]} for number in (0, 1)]
        empty = [record | {"objects": []} for record in records[4:]]
        scenes.write_text("".join(json.dumps(record) + "\n" for record in shown + empty), encoding="utf-8")

    def add(
        self,
        name: str,
        ranks: int,
        model: dict[str, Any] | None = None,
        run: str | None = None,
        data: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        **job: Any,
    ) -> Job:
        """Train two steps over all four samples; with `environment` under FSDP, else without."""
        settings = {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"} | (model or {}),
            "data": {"train": str(self.folder / "train.jsonl"), "labels": list(DEMO.labels)} | (data or {}),
            "detection": SMALL_HEAD,
            "train": {
                "output_dir": str(self.folder / f"run-{run or name}"),
                "max_steps": 2,
                "batch_size": 4 // ranks,
                "learning_rate": 3e-4,
                "save_steps": 1,
                "logging_steps": 1,
                "report_to": [],
            }
            | (train or {}),
        }
        config, out = self.folder / f"{name}.yaml", self.folder / f"out-{name}"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        out.mkdir()
        (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
        self.jobs.append(Job("fsdp" if "environment" in job else "plain", config, out, ranks))
        return self.jobs[-1]

    def do(self, by_ranks: Callable[[str, Path, Path, int], list[int]]) -> None:
        """Do them all."""
        for job in self.jobs:
            job.codes = by_ranks(job.kind, job.config, job.out, job.ranks)


def fsdp(*, ram_efficient: bool) -> dict[str, str]:
    return FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": str(ram_efficient).lower()}


def write_model(folder: Path, *, tied: bool) -> Path:
    """A model of two layers a tower; untied, with an output layer that is not the embeddings."""
    shutil.copytree(write_untrained(), folder)
    config = Qwen2_5_VLConfig.from_pretrained(folder, tie_word_embeddings=tied)
    config.text_config.num_hidden_layers = config.vision_config.depth = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(folder)
    return folder


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by name."""
    return {
        name: tensor for file in checkpoint.rglob("*.safetensors") for name, tensor in load_file(file).items()
    }


def losses(run: Path) -> list[dict[str, float]]:
    """Each step's loss and its terms, and the norm of the gradient."""
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    return [
        {name: value for name, value in row.items() if name.startswith("loss") or name == "grad_norm"}
        for row in state["log_history"]
        if "loss/total" in row
    ]


@dataclass(frozen=True)
class Combination:
    """One training, on one rank and on many: to its end; for some of them also killed and resumed."""

    one: Job
    many: Job
    resumed: Job | None


@dataclass(frozen=True)
class Done:
    """What was trained: combinations by number of ranks, and other jobs by name."""

    combinations: dict[int, list[Combination]]
    others: dict[str, Job]


FLOAT32_HEAD = """
import qwendet.training.build, qwendet.loader
def load(config, **settings):
    bundle = qwendet.loader.load(config, **settings)
    bundle.detector.head.float()
    return bundle
qwendet.training.build.load = load
"""
DETECTOR = "from qwendet.model.detector import Qwen25VLWithDetection\n"
UNTIED = DETECTOR + "del Qwen25VLWithDetection.tie_weights"
CUT_OFF = """
token_losses = Qwen25VLWithDetection._token_losses
Qwen25VLWithDetection._token_losses = lambda self, hidden, batch: token_losses(self, hidden.detach(), batch)
"""
FROZEN = {"vision_learning_rate": 0.0, "merger_learning_rate": 0.0, "language_learning_rate": 0.0}


def other_jobs(jobs: Jobs, model: dict[str, Any]) -> dict[str, Job]:
    """A float32 head on a frozen bfloat16 model, by DDP and by FSDP; bugs, planted; an adapter."""
    sent, half = fsdp(ram_efficient=True), model | {"dtype": "bfloat16"}
    head_alone, off = FROZEN | {"autocast": "bf16"}, {"preflight": "off"}
    adapter, val = model | {"lora": {"rank": 2, "targets": "all"}}, str(jobs.folder / "val.jsonl")
    write_dataset(DEMO, jobs.folder / "val.jsonl", 2, seed=3)
    watched = {"eval_steps": 1, "ema": {"decay": 0.5}, "best_metric": "head/AR_100"}
    return {
        "ddp": jobs.add("ddp", 2, half, train=head_alone, plant=FLOAT32_HEAD),
        "mixed": jobs.add("mixed", 2, half, train=head_alone, environment=sent, plant=FLOAT32_HEAD),
        "untied": jobs.add("untied", 2, model, train=off, environment=sent, plant=UNTIED),
        "cut off": jobs.add("cut", 2, model, environment=sent, plant=DETECTOR + CUT_OFF),
        "adapter, one": jobs.add("adapter-one", 1, adapter, data={"val": val}, train=watched),
        "adapter, killed": jobs.add(
            "adapter", 2, adapter, data={"val": val}, train=watched | off, environment=sent, kill_at=1
        ),
        "adapter": jobs.add(
            "adapter-2",
            2,
            adapter,
            "adapter",
            data={"val": val},
            train=watched,
            environment=sent,
            resume=True,
        ),
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, by_ranks: Callable[..., list[int]]) -> Done:
    """Two and four ranks, rank 0's weights sent or each its own, tied and untied: each pair of them is here.

    With the quick preflight, which the killed runs leave out: it changes nothing. Once in two micro-batches,
    once with layers computed again in the backward.
    """
    folder = tmp_path_factory.mktemp("fsdp")
    jobs = Jobs(folder)
    models = [{"path": str(write_model(folder / f"tied-{tied}", tied=tied))} for tied in (True, False)]
    ones = [jobs.add(f"one-{number}", 1, model) for number, model in enumerate(models)]
    found: dict[int, list[Combination]] = {}
    for size in (2, 4):
        for number, model in enumerate(models):
            name, environment = f"{size}-{number}", fsdp(ram_efficient=(size == 2) == (number == 0))
            parts = {"batch_size": 1, "gradient_accumulation_steps": 2} if (size, number) == (2, 1) else {}
            how = model | ({"gradient_checkpointing": True} if (size, number) == (4, 1) else {})
            many = jobs.add(f"many-{name}", size, how, train=parts, environment=environment)
            resumed = None
            if number == 0 or size == 2:
                killed, off = f"killed-{name}", parts | {"preflight": "off"}
                jobs.add(killed, size, model, train=off, environment=environment, kill_at=1)
                resumed = jobs.add(
                    f"resumed-{name}", size, model, killed, train=parts, environment=environment, resume=True
                )
            found.setdefault(size, []).append(Combination(ones[number], many, resumed))
    others = other_jobs(jobs, models[0])
    jobs.do(by_ranks)
    for job in jobs.jobs:
        if job not in others.values():
            assert -9 in job.codes if "killed" in job.out.name else not any(job.codes), job.errors
    return Done(found, others)


@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp__trains_and_saves_what_one_process_does(done: Done, ranks: int) -> None:
    for combination in done.combinations[ranks]:
        one, many = combination.one, combination.many
        wanted, found = weights(one.run / "final"), weights(many.run / "final")
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
        for ours, theirs in zip(losses(many.run), losses(one.run), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        manifest, plain = (read_manifest(job.run / "final") for job in (many, one))
        assert {name: (p.shape, p.dtype) for name, p in manifest.parameters.items()} == {
            name: (p.shape, p.dtype) for name, p in plain.parameters.items()
        }
        held = [int(path.read_text(encoding="utf-8")) for path in many.out.glob("held-*.txt")]
        parameters = sum(tensor.numel() for name, tensor in wanted.items() if name != "labels.centre")
        assert sum(held) == parameters, "each rank holds its part"
        assert max(held) < 1.5 * parameters / ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp__killed_and_resumed_ends_bitwise_as_uninterrupted(done: Done, ranks: int) -> None:
    pairs = [(found.many, found.resumed) for found in done.combinations[ranks] if found.resumed is not None]
    assert len(pairs) == (2 if ranks == 2 else 1)
    for many, resumed in pairs:
        ours, theirs = weights(resumed.run / "final"), weights(many.run / "final")
        assert ours.keys() == theirs.keys()
        assert [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)] == []
        assert losses(resumed.run) == losses(many.run)
        checkpoint = many.run / "checkpoint-1"
        assert {path.name for path in checkpoint.iterdir()} >= {"optimizer.bin", "model.safetensors"}
        assert not any("fsdp" in path.name for path in checkpoint.iterdir()), "the weights are written once"


def test_fsdp__a_float32_head_on_a_frozen_bfloat16_model_is_trained_as_by_ddp(done: Done) -> None:
    """Ranks have the same micro-batches, and bf16 autocast is the same: so are the losses and weights."""
    ddp, mixed = done.others["ddp"], done.others["mixed"]
    assert (ddp.codes, mixed.codes) == ([0, 0], [0, 0]), (ddp.errors, mixed.errors)
    for ours, theirs in zip(losses(mixed.run), losses(ddp.run), strict=True):
        assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-5, abs=1e-6)
    found, wanted = weights(mixed.run / "final"), weights(ddp.run / "final")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.bfloat16}
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_fsdp__an_adapter_killed_and_resumed_is_that_of_one_process_and_is_evaluated(done: Done) -> None:
    one, dead, job = (done.others[name] for name in ("adapter, one", "adapter, killed", "adapter"))
    assert (one.codes, job.codes) == ([0], [0, 0]), (one.errors, dead.errors, job.errors)
    assert -9 in dead.codes
    wanted, found = weights(one.run / "final"), weights(job.run / "final")
    assert found.keys() == wanted.keys()
    assert any("lora_B" in name for name in found)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
    assert len((job.run / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    best, alone = find_best(job.run), find_best(one.run)
    assert best is not None
    assert alone is not None
    assert (best.step, best.value) == (alone.step, pytest.approx(alone.value, abs=1e-3))
    assert weights(job.run / "best").keys() == found.keys()


def test_fsdp__weights_that_came_apart_are_refused(done: Done) -> None:
    job = done.others["untied"]
    assert job.codes == [1, 1]
    assert all("one weight of this model, but became two when it was prepared" in said for said in job.errors)


def test_fsdp__the_quick_preflight_finds_on_each_rank_what_is_cut_off(done: Done) -> None:
    job = done.others["cut off"]
    assert job.codes == [1, 1]
    assert all("lm has no path to vision: it is computed, but does not" in said for said in job.errors)
    assert not job.run.exists() or not any(job.run.glob("checkpoint-*"))
