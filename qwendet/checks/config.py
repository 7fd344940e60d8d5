"""``validate-config``: config and data checked without a model, in seconds."""

from __future__ import annotations

from pathlib import Path

from qwendet.checks.result import Result
from qwendet.checks.runner import Findings
from qwendet.checks.samples import PARSE, RULES, SPLITS, Scan, Split, scan_files
from qwendet.checks.settings import CHECKS, Survey
from qwendet.config import Config
from qwendet.errors import DataError, EnvironmentLacksError, Problem, QwendetError
from qwendet.progress import Tracker

ENVIRONMENT = "config.environment."


def run_config_checks(config: Config, tracker: Tracker) -> list[Result]:
    """Run every check of the config and its data.

    Args:
        config: a config that could be loaded.
        tracker: shows progress.

    Returns:
        At least one result for each check.

    Raises:
        DataError: if a sample file or the data root is absent or may not be read.
    """
    _require_files(config)
    scans, findings = scan_files(config, tracker)
    survey, allowed = Survey(config, scans), config.data.allow
    results = [result for id in CHECKS for result in _run_check(id, survey)]
    goods = {PARSE: _what_parsed(scans)} | {id: good for id, (_, good) in RULES.items()}
    if not any(scan.num_samples for scan in scans.values()):
        skipped = "there are no samples to look at"
        return results + [Result(id, "skip", skipped) for id in findings]
    return results + [
        result for id, found in findings.items() for result in found.results(goods[id], allowed)
    ]


def require_config_checks(config: Config, tracker: Tracker) -> None:
    """Refuse a config that fails a check.

    Raises:
        EnvironmentLacksError: if the machine is all that is wrong.
        QwendetError: with every problem found.
    """
    failed = [result for result in run_config_checks(config, tracker) if result.status == "fail"]
    problems = [Problem(result.what, result.where, result.fix, result.id) for result in failed]
    if problems:
        is_machine = all(problem.id.startswith(ENVIRONMENT) for problem in problems)
        raise (EnvironmentLacksError if is_machine else QwendetError).of(problems)


def _run_check(id: str, survey: Survey) -> list[Result]:
    check = CHECKS[id]
    absent = [f"data.{split}" for split in check.needs if split not in survey.scans]
    if absent:
        return [Result(id, "skip", f"{' and '.join(absent)} not set")]
    findings = Findings(id)
    findings.collect(lambda: check.find(survey))
    return findings.results(check.good, survey.config.data.allow)


def _require_files(config: Config) -> None:
    """Refuse absent files at once: without them most checks would say the same."""
    problems = [
        Problem(
            f"there is no such sample file: {name}", f"data.{split}", "correct the path", "config.data.files"
        )
        for split in SPLITS
        if (name := getattr(config.data, split)) is not None and not Path(name).is_file()
    ]
    root = config.data.root
    if root is not None and not Path(root).is_dir():
        problems.append(
            Problem(f"there is no such folder: {root}", "data.root", "correct the path", "config.data.files")
        )
    if problems:
        raise DataError.of(problems)


def _what_parsed(scans: dict[Split, Scan]) -> str:
    counts = [f"{scan.num_samples} in {scan.path.name}" for scan in scans.values()]
    return f"every sample can be read: {', '.join(counts)}"
