"""Help: of every command as agreed, at 100 columns and at 60; by stage; quick; offered by the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwendet.cli import options
from tests.commands import Qwendet

COMMANDS = [
    "",
    "init",
    "data",
    "data convert",
    "data split",
    "data tile",
    "data predictions",
    "data teachers",
    "data check",
    "data stats",
    "validate-config",
    "validate-loss",
    "check-consistency",
    "validate",
    "train",
    "eval",
    "infer",
    "serve",
    "export",
    "check-served",
]


@pytest.mark.parametrize("columns", [100, 60])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "app")
def test_help__is_as_agreed(
    qwendet: Qwendet,
    golden: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ending = qwendet(*command.split(), "--help")
    assert (ending.code, ending.err) == (0, "")
    lines = [line.rstrip() for line in ending.out.strip().splitlines()]
    assert max(map(len, lines)) <= columns
    name = command.replace(" ", "-") or "qwendet"
    golden(f"help/{name}{'' if columns == 100 else f'.{columns}'}.txt", "\n".join(lines) + "\n")


def test_app__groups_commands_by_stage(qwendet: Qwendet) -> None:
    listed = qwendet("--help").out.partition("1. ")[2].splitlines()
    stages = [line[:2] if line[:1].isdigit() else line.split()[0] for line in listed if line[:3].strip()]
    assert stages == [
        "Prepare", "init", "data",
        "2.", "validate-config", "validate-loss", "check-consistency", "validate",
        "3.", "train",
        "4.", "eval", "infer", "serve", "export", "check-served",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["", "data"])
def test_nothing_to_do__is_help_and_2(qwendet: Qwendet, command: str) -> None:
    ending = qwendet(*command.split())
    assert ending.code == 2
    assert "Usage: qwendet" in ending.out + ending.err


def complete(repo_root: Path, shell: str, line: str, folder: Path) -> str:
    """What a shell is offered for the last word of a command line."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(repo_root),
        "_QWENDET_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    code = "from qwendet.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=folder, check=True
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion__knows_commands_in_every_shell(repo_root: Path, tmp_path: Path, shell: str) -> None:
    assert "check-consistency" in complete(repo_root, shell, "qwendet check-", tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qwendet train x --set train.warm", "train.warmup_ratio="),
        ("qwendet validate x --only loss.to", "loss.tokens"),
        ("qwendet validate x --format gi", "github"),
    ],
)
def test_completion__knows_settings_checks_and_formats(
    repo_root: Path, tmp_path: Path, line: str, expected: str
) -> None:
    assert complete(repo_root, "bash", line, tmp_path).split() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion__prints_the_script_of_the_shell(repo_root: Path, shell: str) -> None:
    env = os.environ | {
        "PYTHONPATH": str(repo_root),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    code = "from qwendet.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0
    assert f"_QWENDET_COMPLETE=complete_{shell}" in done.stdout


def test_settings__are_leaves() -> None:
    assert options.complete_setting("model.lora.r") == ["model.lora.rank=", "model.lora.revision="]
    assert "train=" not in options.complete_setting("")
