"""Results of checks as texts for machines: JSON, JUnit XML, GitHub annotations. Nothing is printed here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

from qwendet.console.terminal import printable
from qwendet.errors import Result

FILE_AND_LINE = re.compile(r"^(?P<file>[^\n]*?):(?P<line>\d+)(?:\D.*)?$", re.DOTALL)


def to_json(results: Iterable[Result]) -> str:
    """The one object of ``--format json``; ASCII, so that any encoding of stdout will do."""
    checks = [asdict(result) | {"seconds": round(result.seconds, 3)} for result in results]
    return json.dumps({"ok": all(check["status"] != "fail" for check in checks), "checks": checks}, indent=2)


def to_junit(results: Sequence[Result]) -> str:
    """JUnit XML: a test suite for each family (``config``, ``loss``, …), a test case for each check."""
    families: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        families.setdefault(result.id.partition(".")[0], {}).setdefault(result.id, []).append(result)
    root = ElementTree.Element("testsuites", name="qwendet")
    for family, checks in families.items():
        suite = ElementTree.SubElement(root, "testsuite", name=printable(family))
        for id, findings in checks.items():
            _add_case(suite, family, id, findings)
        _count(suite, list(suite))
    _count(root, list(root.iter("testcase")))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _add_case(suite: ElementTree.Element, family: str, id: str, findings: Sequence[Result]) -> None:
    seconds = sum(finding.seconds for finding in findings)
    case = ElementTree.SubElement(
        suite, "testcase", classname=printable(family), name=printable(id), time=f"{seconds:.3f}"
    )
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        failure = ElementTree.SubElement(case, "failure", message=printable(failed[0].what), type="fail")
        failure.text = printable("\n\n".join(_paragraph(finding) for finding in failed))
    elif any(finding.status == "skip" for finding in findings):
        ElementTree.SubElement(case, "skipped", message=printable(findings[0].what))
    else:
        ElementTree.SubElement(case, "system-out").text = printable(findings[0].what)


def _count(element: ElementTree.Element, cases: Sequence[ElementTree.Element]) -> None:
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    element.set("errors", "0")
    element.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _paragraph(finding: Result) -> str:
    pairs = (("", finding.what), ("where: ", finding.where), ("fix: ", finding.fix))
    return "\n".join(name + value for name, value in pairs if value)


def to_github(results: Iterable[Result], repository: Path) -> list[str]:
    """GitHub Actions' workflow commands: an error for each failure, a notice for each check that was skipped.

    Example:
        >>> to_github([Result("config.a", "fail", "50% of it", "/r/x,y.jsonl:3", "fix it")], Path("/r"))
        ['::error file=x%2Cy.jsonl,line=3,title=config.a::50%25 of it%0Afix: fix it']
    """
    commands = []
    for result in results:
        if result.status == "pass":
            continue
        found = FILE_AND_LINE.match(result.where)
        place = {"file": _relative(found["file"], repository), "line": found["line"]} if found else {}
        properties = place | {"title": result.id}
        listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        message = _paragraph(replace(result, where="") if found else result)
        kind = "error" if result.status == "fail" else "notice"
        commands.append(f"::{kind} {listed}::{_message(message)}")
    return commands


def _relative(file: str, repository: Path) -> str:
    path = Path(file)
    return str(path.relative_to(repository)) if path.is_relative_to(repository) else file


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
