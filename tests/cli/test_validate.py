"""The four commands that check: one way of printing, whatever the format, and one set of exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qwendet.encoding import encode
from qwendet.errors import DataError
from tests.commands import Qwendet

COMMANDS = {
    "validate-config": "config.detection.off_with_boxes",
    "validate-loss": "loss.build",
    "check-consistency": "consistency.build.load",
    "validate": "loss.build",
}
OF_THE_MODEL = [command for command in COMMANDS if command != "validate-config"]


@pytest.fixture
def without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images went away since the samples were looked at."""

    def open_image(path: str, root: Path, where: str, declared: object) -> None:
        raise DataError(f"the image {path} is absent", where, "mount the folder again")

    monkeypatch.setattr(encode, "open_image", open_image)


def words(command: str, repo_root: Path) -> list[str | Path]:
    config = repo_root / "examples" / "tiny.yaml"
    only = [] if command == "validate-config" else ["--only", COMMANDS[command]]
    off = ["--set", "detection.enabled=false"] if command == "validate-config" else []
    return [command, config, "--set", "model.device=cpu", *only, *off]


@pytest.mark.usefixtures("without_images")
@pytest.mark.parametrize("command", COMMANDS)
def test_failure__reads_alike_in_every_format(qwendet: Qwendet, repo_root: Path, command: str) -> None:
    endings = {
        name: qwendet(*words(command, repo_root), "--format", name) for name in ("json", "junit", "github")
    }
    assert {ending.code for ending in endings.values()} == {1}
    checks = json.loads(endings["json"].out)["checks"]
    (failed,) = [check for check in checks if check["status"] == "fail"]
    assert failed["id"] == COMMANDS[command]
    assert "could not run" not in failed["what"]
    cases = list(ElementTree.fromstring(endings["junit"].out).iter("testcase"))  # noqa: S314  # our own
    assert [case.get("name") for case in cases if case.find("failure") is not None] == [failed["id"]]
    assert len(cases) == len({check["id"] for check in checks})
    errors = [line for line in endings["github"].out.splitlines() if line.startswith("::error ")]
    assert len(errors) == 1
    assert f"title={failed['id']}::" in errors[0]
    assert failed["what"].replace("%", "%25") in errors[0]


@pytest.mark.parametrize("command", OF_THE_MODEL)
def test_success__is_one_json_object(qwendet: Qwendet, repo_root: Path, command: str) -> None:
    ending = qwendet(*words(command, repo_root), "--format", "json")
    report = json.loads(ending.out)
    assert (ending.code, report["ok"]) == (0, True)
    assert [check["id"] for check in report["checks"]] == [COMMANDS[command]]


@pytest.mark.parametrize("command", OF_THE_MODEL)
def test_list_and_only(qwendet: Qwendet, repo_root: Path, command: str) -> None:
    ending = qwendet(command, "--list")
    assert ending.code == 0
    assert COMMANDS[command] in ending.out.splitlines()
    config = repo_root / "examples" / "tiny.yaml"
    unknown = qwendet(command, config, "--only", COMMANDS[command] + "s")
    assert unknown.code == 2
    assert f"did you mean {COMMANDS[command]}?" in unknown.err
