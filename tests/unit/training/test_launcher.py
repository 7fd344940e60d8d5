"""What a launcher asks for, and the GPU of a process. GPUs are fakes: torch is told that there are some."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from qwendet.config.load import build_config
from qwendet.config.schema import Config, ModelConfig
from qwendet.loading.lora import in_4bit
from qwendet.training.arguments import require_launcher, training_arguments
from qwendet.training.launcher import launcher_problems, num_shards

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SetEnvironment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> SetEnvironment:
    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def four_fake_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fake at the seam: torch says that it sees four GPUs, and takes any of them to be there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("variables", "config", "what"),
    [
        ({}, {}, None),
        ({"FSDP_VERSION": "1"}, {}, "FSDP 1 is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "FSDP's own activation checkpointing renames"),
        ({}, {"model": {"lora": {"load_in_4bit": True}}}, "FSDP does not spread a base in 4 bits"),
        (
            {},
            {"train": {"weights": "bfloat16", "optimizer": "stable_adamw"}},
            "FSDP spreads trained weights of one type",
        ),
    ],
)
def test_launcher_problems__names_what_fsdp_cannot_do(
    environment: SetEnvironment, variables: dict[str, str], config: dict[str, Any], what: str | None
) -> None:
    environment(**FSDP2 | variables)
    found = [p.what for p in launcher_problems(Config.model_validate(config), has_gpu=True)]
    assert len(found) == (what is not None)
    assert what is None or found[0].startswith(what)


def test_launcher_problems__refuses_deepspeed_and_names_fsdp2(environment: SetEnvironment) -> None:
    environment(ACCELERATE_USE_DEEPSPEED="true")
    (problem,) = launcher_problems(Config(), has_gpu=True)
    assert "pickles, which are never loaded here" in problem.what
    assert "FSDP2" in problem.fix


def test_num_shards__is_one_without_fsdp(environment: SetEnvironment) -> None:
    environment(WORLD_SIZE="8")
    assert num_shards() == 1
    environment(**FSDP2)
    assert num_shards() == 8


def config_in(folder: Path) -> Config:
    train = {"output_dir": str(folder / "run"), "batch_size": 2}
    data = {"train": str(folder / "train.jsonl"), "labels": ["circle"]}
    return build_config({"model": {"path": "tiny", "device": "cuda"}, "data": data, "train": train}, "test")


@pytest.mark.usefixtures("four_fake_gpus")
def test_training_arguments__one_process_uses_one_of_several_gpus_and_prints_how_to_use_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    with caplog.at_level(logging.WARNING, logger="qwendet"):
        require_launcher(config_in(tmp_path))
    arguments = training_arguments(config_in(tmp_path))
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 2
    assert arguments.parallel_mode.value == "not_parallel"
    assert "one of 4 GPUs is used; to train on all of them: torchrun --nproc-per-node 4" in caplog.text
    monkeypatch.setenv("LOCAL_RANK", "0")
    caplog.clear()
    require_launcher(config_in(tmp_path))
    assert not caplog.records


@pytest.mark.usefixtures("four_fake_gpus")
@pytest.mark.parametrize(("local_rank", "gpu"), [(None, 0), ("0", 0), ("3", 3)])
def test_in_4bit__puts_the_base_on_the_gpu_of_the_process(
    environment: SetEnvironment, local_rank: str | None, gpu: int
) -> None:
    if local_rank is not None:
        environment(LOCAL_RANK=local_rank)
    model = ModelConfig.model_validate({"dtype": "bfloat16", "lora": {"load_in_4bit": True}})
    assert in_4bit(model)["device_map"] == {"": gpu}


def test_training_arguments__under_fsdp_states_are_whole_and_gradients_spread_at_once(
    environment: SetEnvironment,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(**FSDP2, WORLD_SIZE="1", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
    config = config_in(tmp_path)
    on_cpu = config.model_copy(update={"model": config.model.model_copy(update={"device": "cpu"})})
    with caplog.at_level(logging.INFO, logger="qwendet"):
        training_arguments(on_cpu)
    assert os.environ["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert "checkpoints hold whole tensors, not SHARDED_STATE_DICT" in caplog.text
