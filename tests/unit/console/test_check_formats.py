"""Results of checks for machines: read back by a JSON, an XML and an annotation reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from defusedxml import ElementTree

from qwendet.console import console
from qwendet.console.check_formats import to_github, to_json, to_junit
from qwendet.errors import ConfigError, Problem, Result

HOSTILE = 'a <b> & "c" ]]> \x07\x1b[31m \ud800 é 漢\nnext'
RESULTS = [
    Result("config.a", "pass", "all well", seconds=0.25),
    Result("loss.b", "fail", HOSTILE, "/repo/data/x.jsonl:3 (made)", "fix: it, 100%", 1.5),
    Result("loss.b", "fail", "another", "nowhere"),
    Result("loss.c", "skip", "no head"),
]


def test_json__is_ascii_and_whole() -> None:
    text = to_json(RESULTS)
    assert text.isascii()
    found = json.loads(text)
    assert found["ok"] is False
    assert [check["status"] for check in found["checks"]] == ["pass", "fail", "fail", "skip"]
    assert found["checks"][1]["what"] == HOSTILE
    assert set(found["checks"][0]) == {"id", "status", "what", "where", "fix", "seconds"}


def test_junit__is_read_by_an_xml_parser() -> None:
    root = ElementTree.fromstring(to_junit(RESULTS).encode("utf-8"))
    assert (root.tag, root.get("tests"), root.get("failures"), root.get("skipped")) == (
        "testsuites",
        "3",
        "1",
        "1",
    )
    assert [suite.get("name") for suite in root] == ["config", "loss"]
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert list(cases) == ["config.a", "loss.b", "loss.c"]
    (failure,) = cases["loss.b"].findall("failure")
    assert "\\x07\\x1b[31m \\ud800 é 漢" in str(failure.get("message"))
    assert "where: nowhere" in str(failure.text)
    assert cases["loss.b"].get("time") == "1.500"
    assert cases["loss.c"].find("skipped").get("message") == "no head"  # type: ignore[union-attr]
    assert cases["config.a"].find("failure") is None


def test_github__escapes_data_and_properties() -> None:
    first, second, third = to_github(RESULTS, Path("/repo"))
    assert first.startswith("::error file=data/x.jsonl,line=3,title=loss.b::a <b>")
    assert "\n" not in first
    assert first.endswith("%0Anext%0Afix: fix: it, 100%25")
    assert second == "::error title=loss.b::another%0Awhere: nowhere"
    assert third == "::notice title=loss.c::no head"


@pytest.mark.parametrize("output_format", ["json", "junit", "github"])
def test_errors__have_the_same_formats(
    output_format: console.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    console.set_format(output_format)
    try:
        console.report_error(ConfigError.of([Problem("bad", "a.yaml:1", "fix it"), Problem("worse")]))
    finally:
        console.set_format("human")
    out, err = capsys.readouterr()
    assert err == ""
    if output_format == "json":
        assert [check["id"] for check in json.loads(out)["checks"]] == ["config", "config"]
    elif output_format == "junit":
        assert ElementTree.fromstring(out.encode()).get("failures") == "1"
    else:
        assert out.splitlines()[0] == "::error file=a.yaml,line=1,title=config::bad%0Afix: fix it"


def test_stray_prints__go_to_stderr_where_a_machine_reads(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_format("json")
    try:
        with console.nothing_but_results():
            print("a library's banner")
    finally:
        console.set_format("human")
    assert capsys.readouterr() == ("", "a library's banner\n")
