"""What `accelerate launch` asks for and is not to be had ends with code 3, before a model is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import Qwendet

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
FSDP2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
}


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP needs a CUDA GPU; without one training would not be sharded"),
        ("ACCELERATE_USE_DEEPSPEED", "1", "DeepSpeed is not supported: ZeRO 3 empties lm_head, whose weight"),
        (
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "the launcher asks for bf16: it would be that of training alone",
        ),
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp8",
            "the launcher asks for fp8: it would be that of training alone",
        ),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "the launcher asks for torch.compile (INDUCTOR)"),
    ],
)
def test_train__refuses_what_the_launcher_asks_for_in_vain(
    qwendet: Qwendet,
    monkeypatch: pytest.MonkeyPatch,
    repo_root: Path,
    tmp_path: Path,
    variable: str,
    value: str,
    what: str,
) -> None:
    for name, own in (NO_GPU | {variable: value}).items():
        monkeypatch.setenv(name, own)
    run = f"train.output_dir={tmp_path / 'run'}"
    done = qwendet("train", repo_root / "examples" / "tiny.yaml", "--set", run)
    assert done.code == 3, done.err
    assert f"Error: {what}" in done.err
    assert f"  where  {variable}\n  fix    " in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_USE_FSDP", "false"),
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
    ],
)
def test_validate_config__what_accelerate_launch_always_sets_is_no_finding(
    qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, repo_root: Path, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    done = qwendet("validate-config", repo_root / "examples" / "tiny.yaml")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_accelerate_launch__with_fsdp2_on_the_cpu_is_refused_by_each_process(
    repo_root: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "fsdp2.yaml"
    settings.write_text(yaml.safe_dump(FSDP2), encoding="utf-8")
    launcher = ["accelerate.commands.launch", "--config_file", str(settings), "-m"]
    words = ["qwendet", "train", str(repo_root / "examples" / "tiny.yaml"), "--set"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *words, f"train.output_dir={tmp_path / 'run'}"],
        env=os.environ | NO_GPU,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "Error: FSDP needs a CUDA GPU" in done.stderr
    assert "exitcode  : 3" in done.stderr
    assert not (tmp_path / "run").exists()
