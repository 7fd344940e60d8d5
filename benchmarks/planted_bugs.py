"""Every planted bug against every check: how many are caught, how many sound projects raise a false alarm.

    python -m benchmarks.planted_bugs

Runs tests/planted and counts: a bug is caught if the check it is for fails and names it; a false alarm is a
check that fails on a sound project. Then once more as on a large model: 36 decoder layers in bfloat16, taken
for one that cannot be copied. Prints what was missed and the slowest bugs and projects.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.report import parser, report
from qwendet.console.console import print_table

KINDS = {"test_planted": "planted", "test_sound": "sound", "test_real": "sound"}
SLOWEST = 8


class Tally:
    """A pytest plugin that counts outcomes by kind."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.missed: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test's call, or what kept it from being called."""
        name = report.nodeid.partition("::")[2]
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), "")
        if not kind or (report.when != "call" and report.passed):
            return
        self.outcomes[kind, report.outcome] += 1
        self.seconds[name] = report.duration
        if report.failed:
            self.missed.append(report.nodeid)


def main() -> None:
    """Plant, count, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--jobs", default="0", metavar="N", help="processes of pytest-xdist; 0 uses none")
    options = arguments.parse_args()
    jobs = ("-n", options.jobs)
    small, large = plant("on the embedded model", *jobs), plant("as on a large model", "--large", *jobs)
    report(small | {"large": large}, options.json)


def plant(where: str, *options: str) -> dict[str, int]:
    """Plant every bug, run every sound project, and count."""
    tally = Tally()
    pytest.main(["-q", "--no-header", "--tb=no", *options, "tests/planted"], plugins=[tally])
    planted, caught = (count(tally, "planted", *what) for what in (("passed", "failed"), ("passed",)))
    sound, alarms = (count(tally, "sound", *what) for what in (("passed", "failed"), ("failed",)))
    for name in tally.missed:
        print(f"not as it should be {where}: {name}")
    slowest = sorted(tally.seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    print_table(f"Slowest {where}", ["bug or project", "seconds"], [list(item) for item in slowest])
    print(f"{where}: caught {caught} of {planted}, false alarms {alarms} of {sound}")
    return {"caught": caught, "planted": planted, "false_alarms": alarms, "sound": sound}


def count(tally: Tally, kind: str, *outcomes: str) -> int:
    """Tests of a kind with one of the outcomes; skipped ones count nowhere."""
    return sum(tally.outcomes[kind, outcome] for outcome in outcomes)


if __name__ == "__main__":
    main()
