"""Every planted bug against every check: how many are caught, how many sound projects raise a false alarm.

    python -m benchmarks.planted_bugs

Runs tests/planted and counts, by family of models. Every bug is planted into every family that can have it;
it is caught if the check it is for, or the test of the project (tests/invariants), fails and names it. A
check or such a test that fails on a sound project is a false alarm. Bugs that checks find are planted once
more as on a large Qwen2.5-VL: 36 decoder layers in bfloat16, taken for one that cannot be copied. Prints what
was missed and the slowest bugs and projects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest

from benchmarks.report import parser, report
from qwendet.console.console import print_table
from qwendet.families.choose import FAMILIES
from tests.invariants.suite import INVARIANTS
from tests.planted.test_consistency import BUGS as CONSISTENCY_BUGS
from tests.planted.test_loss import BUGS as LOSS_BUGS

KINDS = {"test_planted": "planted", "test_sound": "sound", "test_real": "sound"}
FIRST = "qwen2_5_vl"
"""Family of what names none."""
SLOWEST = 8
FOUND_BY_TESTS = {
    bug.name.replace(" ", "-") for bug in (*LOSS_BUGS, *CONSISTENCY_BUGS) if bug.check in INVARIANTS
}


class Tally:
    """A pytest plugin that counts outcomes by family and kind."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.by_tests: Counter[str] = Counter()
        self.missed: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test's call, or what kept it from being called."""
        name = report.nodeid.partition("::")[2]
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), "")
        if not kind or (report.when != "call" and report.passed):
            return
        own = [family for family in FAMILIES if family in re.split(r"[\[\]-]", name)]
        family = own[0] if own else FIRST
        self.outcomes[family, kind, report.outcome] += 1
        is_of_project = any(f"[{bug}-{family}]" in name for bug in FOUND_BY_TESTS)
        self.by_tests[family] += kind == "planted" and is_of_project and report.passed
        self.seconds[name] = report.duration
        if report.failed:
            self.missed.append(report.nodeid)


def main() -> None:
    """Plant, count, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--jobs", default="0", metavar="N", help="processes of pytest-xdist; 0 uses none")
    options = arguments.parse_args()
    jobs = ("-n", options.jobs)
    small = plant("on the small models", "--every-family", *jobs)
    large = figures(plant("as on a large model", "--large", *jobs), FAMILIES)
    by_family = {family: figures(small, [family]) for family in FAMILIES}
    rows = [[family, *found.values()] for family, found in by_family.items()]
    print_table("By family", ["family", *by_family[FIRST]], rows)
    report(figures(small, FAMILIES) | {"large": large, "by_family": by_family}, options.json)


def plant(where: str, *options: str) -> Tally:
    """Plant every bug, run every sound project, and count."""
    tally = Tally()
    imported = "ignore::pytest.PytestAssertRewriteWarning"  # plugins that this process has imported
    pytest.main(["-q", "--no-header", "--tb=no", "-W", imported, *options, "tests/planted"], plugins=[tally])
    for name in tally.missed:
        print(f"not as it should be {where}: {name}")
    slowest = sorted(tally.seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    print_table(f"Slowest {where}", ["bug or project", "seconds"], [list(item) for item in slowest])
    found = figures(tally, FAMILIES)
    caught, alarms = (
        f"{found[a]} of {found[b]}" for a, b in (("caught", "planted"), ("false_alarms", "sound"))
    )
    print(f"{where}: caught {caught}, false alarms {alarms}")
    return tally


def figures(tally: Tally, families: Collection[str]) -> dict[str, int]:
    """What was caught of what was planted, and the false alarms; skipped tests count nowhere."""

    def count(kind: str, *outcomes: str) -> int:
        return sum(tally.outcomes[family, kind, outcome] for family in families for outcome in outcomes)

    return {
        "caught": count("planted", "passed"),
        "caught_by_tests": sum(tally.by_tests[family] for family in families),
        "planted": count("planted", "passed", "failed"),
        "false_alarms": count("sound", "failed"),
        "sound": count("sound", "passed", "failed"),
    }


if __name__ == "__main__":
    main()
