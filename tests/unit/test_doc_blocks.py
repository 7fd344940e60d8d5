"""Every block of code in the documents is one: commands parse, configs load, Python compiles."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.exceptions import TyperException

from qwendet.cli.main import GLOBAL_FLAGS, app
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.data.samples import parse_sample
from qwendet.errors import ConfigError
from tests.unit.test_docs import DOCUMENTS, by_name

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("torchrun", "accelerate", "python")


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def commands(text: str) -> list[list[str]]:
    """The words after `qwendet` of each line that calls it, itself or by a launcher."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = []
    for line in lines:
        if "qwendet" not in line:
            continue
        words = shlex.split(line.strip().removeprefix("- run:"), comments=True)
        if words[:1] == ["srun"]:
            words = words[1:]
        if words[:1] and words[0] in LAUNCHERS and "qwendet" in words:
            words = words[words.index("qwendet") :]
        if words[:1] == ["qwendet"]:
            end = next((index for index, word in enumerate(words) if word in (">", "|", "$RESUME")), None)
            found.append([word for word in words[1:end] if word not in GLOBAL_FLAGS])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words[:1] not in (["--help"], ["--install-completion"]):
        name, words = words[0], words[1:]
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    if not hasattr(command, "commands"):
        command.make_context(command.name, list(words))


@by_name
def test_commands__are_understood(path: Path) -> None:
    indented = re.findall(r"^ {4}(?:qwendet|torchrun|accelerate) .*$", path.read_text("utf-8"), re.MULTILINE)
    for text in [*blocks(path, "bash"), *indented]:
        for words in commands(text):
            try:
                parse(words)
            except TyperException as error:
                pytest.fail(f"qwendet {shlex.join(words)}: {error}")


def test_commands_in_tables__are_understood(repo_root: Path) -> None:
    text = (repo_root / "docs" / "moving.md").read_text(encoding="utf-8")
    new = [shlex.split(code) for code in re.findall(r"`qwendet ([^`…]+)`", text)]
    assert len(new) > 10
    for words in new:
        parse(words)


def test_a_wrong_command__is_found() -> None:
    for words in (["trian", "config.yaml"], ["train", "config.yaml", "--resume-from", "x"]):
        with pytest.raises((TyperException, AssertionError)):
            parse(words)


@by_name
def test_yaml__is_a_config_or_at_least_yaml(path: Path) -> None:
    for text in blocks(path, "yaml"):
        for values in yaml.safe_load_all(text):
            if isinstance(values, dict) and set(values) <= set(Config.model_fields):
                build_config(values, path.name)


def test_yaml__a_key_that_is_none_is_found() -> None:
    with pytest.raises(ConfigError):
        build_config({"train": {"epoch": 1}}, "test")


@by_name
def test_json__is_a_sample_a_prediction_or_a_record(path: Path) -> None:
    for text in blocks(path, "json"):
        for line in text.splitlines():
            record: dict[str, Any] = json.loads(line)
            if "detections" in record:
                assert set(record) == {"image", "width", "height", "detections", "rejected"}
            elif "checks" in record:
                assert {"ok", "checks"} <= set(record)
            else:
                parse_sample(line, path.name)


@by_name
def test_python__compiles(path: Path) -> None:
    for text in blocks(path, "python"):
        compile(text, path.name, "exec")


def test_blocks__are_found_at_all() -> None:
    """Else the tests of them would have nothing to fail on."""
    found = {
        kind: sum(len(blocks(path, kind)) for path in DOCUMENTS)
        for kind in ("bash", "yaml", "json", "python")
    }
    assert all(count >= 3 for count in found.values()), found
    assert found["bash"] >= 10


def test_blocks__are_of_languages_that_are_tested() -> None:
    kinds = {kind for path in DOCUMENTS for kind, _ in FENCE.findall(path.read_text(encoding="utf-8"))}
    assert kinds <= {"bash", "yaml", "json", "python", "text", ""}, kinds  # text: end_to_end/test_readme.py
