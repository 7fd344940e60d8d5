"""``qwendet validate-config``, ``validate-loss``, ``check-consistency``; and ``validate``, all three."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from qwendet.cli.options import (
    CheckpointOption,
    ConfigArgument,
    ConfigOption,
    DecodeOption,
    FormatOption,
    ListOption,
    NoImagesOption,
    OnlyOption,
    OverfitOption,
    SetOption,
    WorkersOption,
    again,
    command_line,
    config_name,
    image_depth,
)
from qwendet.console import console

if TYPE_CHECKING:
    from qwendet.checks.runner import Table
    from qwendet.errors import Result


def validate_config(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    output_format: FormatOption = "human",
    settings: SetOption = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count the tokens of every sample; loads the tokenizer.")
    ] = False,
    decode: DecodeOption = False,
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Check config and data without a model: seconds instead of GPU hours."""
    from qwendet.checks.config.scan import Thoroughness, available_cores
    from qwendet.checks.config.suite import run_config_checks
    from qwendet.config.load import load_config

    how = Thoroughness(image_depth(decode, no_images), tokens, workers or available_cores())
    name = config_name(config, named)
    results, tables = run_config_checks(load_config(name, settings or ()), how)
    report_and_exit(results, tables, command_line("validate", name, settings=settings or ()))


def validate_loss(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    overfit: OverfitOption = True,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that what is back-propagated is what is meant, on the config's own model and data."""
    from qwendet.checks.ids import LOSS_IDS
    from qwendet.config.load import load_config

    _require_known_or_list(only or (), LOSS_IDS, list_ids=list_ids)
    name = config_name(config, named)
    loaded = load_config(name, settings or ())
    from qwendet.checks.preflight import run_loss_checks
    from qwendet.checks.subject import temporary_subject

    with console.nothing_but_results(), temporary_subject(loaded) as subject:
        results, tables = run_loss_checks(subject, only=only or (), with_overfit=overfit)
    further = command_line("check-consistency", name, settings=settings or ())
    report_and_exit(results, tables, further)


def check_consistency(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that the model which is trained is the model which is served."""
    from qwendet.checks.ids import CONSISTENCY_IDS
    from qwendet.config.load import load_config

    _require_known_or_list(only or (), CONSISTENCY_IDS, list_ids=list_ids)
    name = config_name(config, named)
    loaded = load_config(name, settings or ())
    from qwendet.checks.preflight import run_consistency_checks
    from qwendet.checks.subject import temporary_subject

    with console.nothing_but_results(), temporary_subject(loaded) as subject:
        results, tables = run_consistency_checks(subject, checkpoint=checkpoint, only=only or ())
    if checkpoint is None:
        further = command_line("train", name, settings=settings or ())
    else:
        further = command_line("eval", str(checkpoint), loaded.data.val or "DATA")
    report_and_exit(results, tables, further)


def check_served(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the server, such as http://localhost:8000.")],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="DIR", help="What the server is meant to serve.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="Images or JSONL: 8 are asked about."),
    ] = None,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that a running server answers as the checkpoint does, and name why it does not."""
    from qwendet.checks.ids import SERVED_IDS

    _require_known_or_list(only or (), SERVED_IDS, list_ids=list_ids)
    from qwendet.checks.preflight import run_served_checks

    with console.nothing_but_results():
        results, tables = run_served_checks(
            url, checkpoint, data=data, overrides=settings or (), only=only or ()
        )
    further = command_line("eval", str(checkpoint), "DATA", "--server", url, settings=settings or ())
    report_and_exit(results, tables, further)


def validate(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="A server that serves --checkpoint, as well."),
    ] = None,
    overfit: OverfitOption = True,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run every check of config, loss and consistency: the step before training, and in CI."""
    from qwendet.checks.config.scan import Thoroughness, available_cores
    from qwendet.checks.ids import all_ids
    from qwendet.config.load import load_config

    _require_known_or_list(only or (), all_ids(), list_ids=list_ids)
    name = config_name(config, named)
    loaded = load_config(name, settings or ())
    from qwendet.checks.preflight import run_all_checks

    how = Thoroughness(tokens=True, workers=workers or available_cores())
    with console.nothing_but_results():
        results, tables = run_all_checks(
            loaded, how, checkpoint=checkpoint, server=server, only=only or (), with_overfit=overfit
        )
    further = command_line("train", name, settings=settings or ())
    report_and_exit(results, tables, further)


def _require_known_or_list(only: Sequence[str], ids: Sequence[str], *, list_ids: bool) -> None:
    """Refuse ids that no check has; with ``--list``, print those that there are, and exit."""
    from qwendet.checks.runner import require_known

    if not list_ids:
        require_known(only, ids)
        return
    if console.is_for_machine():
        console.print_record({"ids": list(ids)})
    else:
        console.print_lines(ids)
    raise typer.Exit


def report_and_exit(results: Sequence[Result], tables: Sequence[Table], further: str) -> NoReturn:
    """Print figures, for people only, and results; name the next command; end as the results ask for."""
    from qwendet.checks.config.suite import exit_code

    if not console.is_for_machine():
        for table in tables:
            console.print_table(table.title, table.columns, table.rows)
    console.report_checks(results)
    match exit_code(results):
        case 0:
            console.next_step(further)
        case 1:
            console.next_step(again(), "fix what failed")
        case _:
            console.next_step(again(), "go to a machine that has what is lacking")
    raise typer.Exit(exit_code(results))
