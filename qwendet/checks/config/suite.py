"""``validate-config``: config and data checked without a model, in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qwendet.checks.config import dataset, frames, overlap, settings, small_objects
from qwendet.checks.config.annotated import ANNOTATIONS, scan_data
from qwendet.checks.config.dataset import Check, Dataset
from qwendet.checks.config.sample_files import Given
from qwendet.checks.config.samples import RULES, Split
from qwendet.checks.config.scan import CUT, OPEN, PARSE, PASS_IDS, Thoroughness
from qwendet.checks.config.stats import SplitStats
from qwendet.checks.config.summary import summary_tables
from qwendet.checks.runner import Findings, Table, run_check, unknown_id
from qwendet.config.schema import Config
from qwendet.data.archives import SUFFIXES
from qwendet.encoding.image_tokens import image_limits
from qwendet.errors import DataError, EnvironmentLacksError, Problem, QwendetError, Result
from qwendet.files import files_below, is_url

ENVIRONMENT = "config.environment."
FILES = "config.data.files"
EMPTY = "config.data.empty"
ALLOW = "config.data.allow"
CORRECT = "correct the path"
PERMIT = "give yourself the right to read it: chmod -R +rX PATH"
MEMORY = "config.memory"  # run by `validate`, see qwendet.checks.config.memory
TOKENS = ("config.tokens.limit", "config.tokens.answer")
ORDER: tuple[Split, ...] = ("val", "train", "teachers")
OF_CONFIG = frozenset(
    {"config.detection.queries", "config.tokens.images", "config.labels.unknown", "config.augment.crowds"}
)
"""Rules of samples that hold them against settings."""


def run_config_checks(config: Config, how: Thoroughness | None = None) -> tuple[list[Result], list[Table]]:
    """Run every check of the config and its data."""
    files: dict[Split, Sequence[Path]] = {
        split: [Path(source.path) for source in sources]
        for split in ORDER
        if (sources := config.data.sources(split))
    }
    how = how or Thoroughness()
    named = [(f"data.{split}", path) for split, paths in files.items() for path in paths]
    require_files(named, config.data.root)
    results, seen, tables = _run(config, Given(files), known_checks(), how)
    if how.tokens and any(stats.num_parsed for stats in seen.splits.values()):
        from qwendet.checks.config.tokens import count_tokens

        found, more = count_tokens(seen)
        return results + found, tables + more
    return results, tables


def run_data_checks(given: Given, root: Path | None, how: Thoroughness) -> tuple[list[Result], list[Table]]:
    """Run every check that looks at data alone."""
    config = _data_config(given, root)
    checks = {
        id: check for id, check in known_checks().items() if check.is_of_data and id not in settings.CHECKS
    }
    results, _, tables = _run(config, given, checks, how)
    return [result for result in results if result.id not in OF_CONFIG], tables


def read_data(given: Given, root: Path | None, how: Thoroughness) -> tuple[Dataset, int]:
    """See what data holds, without judging it; and the number of samples or boxes that are broken."""
    config = _data_config(given, root)
    splits, findings = scan_data(config, given, how)
    if not any(stats.num_samples for stats in splits.values()):
        names = ", ".join(str(stats.path) for stats in splits.values())
        raise DataError("the file holds no samples", names, "give a file with one sample a line")
    return Dataset(config, splits), findings[PARSE].num_failed + findings[CUT].num_failed


def _data_config(given: Given, root: Path | None) -> Config:
    """Defaults, with these files; what may not be read is refused."""
    files = {split: path for split, path in given.files.items() if isinstance(path, Path)}
    names = {split: str(path) for split, path in files.items() if split != "test"}
    config = Config.model_validate({"data": {**names, "root": None if root is None else str(root)}})
    require_files([(str(path), path) for path in files.values()], config.data.root, "--image-dir")
    return config


def require_config_checks(config: Config) -> None:
    """Refuse a config that fails a check."""
    results, _ = run_config_checks(config)
    failed = [result for result in results if result.status == "fail"]
    problems = [Problem(result.what, result.where, result.fix, result.id) for result in failed]
    if problems:
        raise (EnvironmentLacksError if is_of_machine(failed) else QwendetError).of(problems)


def exit_code(results: Iterable[Result]) -> int:
    """Exit code of checks: 0 if none failed, 3 if the machine is all that is wrong, else 1."""
    failed = [result for result in results if result.status == "fail"]
    return (3 if is_of_machine(failed) else 1) if failed else 0


def is_of_machine(failed: Iterable[Result]) -> bool:
    """Whether the machine is all that is wrong: the config is sound and would run on another one."""
    return all(result.id.startswith(ENVIRONMENT) for result in failed)


def known_checks() -> dict[str, Check]:
    """Every check of the whole, causes first."""
    return {
        ALLOW: Check(_allow_names_checks, "data.allow names checks only", is_of_data=False),
        **settings.CHECKS,
        **dataset.CHECKS,
        **overlap.CHECKS,
        **frames.CHECKS,
        **small_objects.CHECKS,
    }


def known_ids() -> list[str]:
    """Ids of every ``config.*`` check."""
    return [*known_checks(), *PASS_IDS, *TOKENS]


def _run(
    config: Config,
    given: Given,
    checks: Mapping[str, Check],
    how: Thoroughness,
) -> tuple[list[Result], Dataset, list[Table]]:
    limits = image_limits(config)
    splits, findings = scan_data(config, given, how, limits)
    seen = Dataset(config, splits)
    allowed = config.data.allow
    results = [r for id, check in checks.items() for r in run_check(id, check, seen, allowed)[0]]
    lost = [result for result in results if result.id == "config.images.root" and result.status == "fail"]
    if len(lost) == sum(1 for stats in splits.values() if stats.num_samples) and lost:
        findings[OPEN] = Findings(OPEN)  # each of its problems follows from that one
    goods = _goods(splits)
    skips = _skips(splits, how, limits is not None)
    if not given.files:
        skips[CUT] = "there is no sample file"
    for id, found in findings.items():
        is_skipped = id in skips and not found.num_failed
        results += (
            [Result(id, "skip", skips[id])] if is_skipped else found.results(goods[id], config.data.allow)
        )
    return results, seen, summary_tables(splits)


def _goods(splits: Mapping[Split, SplitStats]) -> dict[str, str]:
    counts = ", ".join(f"{stats.num_samples} in {stats.name}" for stats in splits.values())
    return {
        PARSE: f"every sample can be read: {counts}",
        CUT: "no file ends in mid-line",
        ANNOTATIONS: "annotations, images and splits belong together",
        OPEN: "every image opens and is whole",
        **{id: rule.good for id, rule in RULES.items()},
    }


def _skips(splits: Mapping[Split, SplitStats], how: Thoroughness, knows_limits: bool) -> dict[str, str]:
    """Why rules have nothing to look at."""
    if not any(stats.num_samples for stats in splits.values()):
        return dict.fromkeys(PASS_IDS, "there are no samples to look at")
    skips = {}
    if how.images == "none":
        closed = [OPEN, *(id for id, rule in RULES.items() if rule.needs_images)]
        skips = dict.fromkeys(closed, "images were not opened")
    if not knows_limits:
        skips["config.tokens.images"] = "only a download of the model would tell how it resizes images"
    return skips


def _allow_names_checks(seen: Dataset) -> Iterable[Problem]:
    """Every entry of ``data.allow`` is the id of a check."""
    known = [*known_ids(), MEMORY]
    return [unknown_id(id, known, "data.allow") for id in seen.config.data.allow if id not in known]


def require_files(files: Iterable[tuple[str, Path]], root: str | None, root_name: str = "data.root") -> None:
    """Refuse files that cannot be read at once: without them most checks would say the same."""
    problems = [problem for where, path in files for problem in _unreadable(path, where)]
    if root is not None and not (Path(root).is_dir() and os.access(root, os.R_OK | os.X_OK)):
        what, fix = (
            ("the folder may not be read", PERMIT)
            if Path(root).is_dir()
            else ("there is no such folder", CORRECT)
        )
        problems.append(Problem(f"{what}: {root}", root_name, fix, FILES))
    if problems:
        raise DataError.of(problems)


def _unreadable(path: Path, where: str) -> Iterable[Problem]:
    if is_url(path) or "*" in path.name:  # reported where it is opened
        return
    if not os.path.exists(path):  # noqa: PTH110  # also False of a name too long, or in a closed folder
        yield Problem(f"there is no such sample file: {path}", where, CORRECT, FILES)
    elif path.is_dir() and not any(files_below(path, frozenset(SUFFIXES))):
        held = ", ".join(sorted(file.name for file in path.glob("*.jsonl"))) or "none"
        what = f"expected a sample file, got the folder {path}"
        yield Problem(what, where, f"name a .jsonl file in it: {held}", FILES)
    elif not path.is_dir() and not (path.is_file() and os.access(path, os.R_OK)):
        yield Problem(f"the sample file may not be read: {path}", where, PERMIT, FILES)
