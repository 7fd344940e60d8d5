"""The command ``qwendet``: its commands, its global options, and what each error ends with."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from qwendet import console
from qwendet.cli import (
    check_consistency,
    data,
    data_check,
    eval,
    export,
    infer,
    init,
    train,
    validate,
    validate_model,
)
from qwendet.errors import EnvironmentLacksError, QwendetError
from qwendet.sharding import is_first_process

GLOBAL_FLAGS = ("--debug", "--quiet")
INTERRUPTED = 130
TERMINATED = 143


class _Commands(TyperGroup):
    """Commands that say that they were interrupted; Typer's own end silently."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="qwendet",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("train")(train.train)
app.command("infer")(infer.infer)
app.command("eval")(eval.evaluate)
app.command("export")(export.export)
app.command("validate-config")(validate.validate_config)
app.command("validate-loss")(validate_model.validate_loss)
app.command("check-consistency")(check_consistency.check_consistency)
app.command("validate")(validate_model.validate)
data.app.command("check")(data_check.check)
data.app.command("stats")(data_check.stats)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from qwendet import __version__

        console.print_lines([f"qwendet {__version__}"])
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No information, no progress; errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Qwen2.5-VL into an object detector: init, train, infer, eval.

    Exit codes: 0 all good, 1 a check failed, 2 unusable config, data or command,
    3 the environment lacks something, 130 interrupted, 143 terminated.
    """
    console.setup(debug=debug, quiet=quiet or not is_first_process())


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: the one place where an exception becomes an exit code.

    Args:
        arguments: words after ``qwendet``; ``None`` takes the process's own.
    """
    signal.signal(signal.SIGTERM, _terminate)
    # Read when torch is imported: threads that spin while they wait slow training several times over, as
    # soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=_flags_first(words), prog_name="qwendet")
    except QwendetError as error:
        console.report_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        refusal = EnvironmentLacksError(
            f"the system refused to go on: {error}",
            fix="see that the path may be written to and that space is left; --debug shows where it happened",
        )
        console.report_error(refusal)
        sys.exit(refusal.exit_code)
    except Exception as error:  # noqa: BLE001 - the CLI's entry: whatever is left is a bug, and is called one
        console.report_bug(error)
        sys.exit(1)
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as after an error, so that half-written files are removed; training has its own way."""
    sys.exit(TERMINATED)


def _flags_first(words: list[str]) -> list[str]:
    """Move global flags in front of the command, so that they may stand anywhere.

    Example:
        >>> _flags_first(["train", "config.yaml", "--debug"])
        ['--debug', 'train', 'config.yaml']
    """
    end = words.index("--") if "--" in words else len(words)
    flags = [word for word in words[:end] if word in GLOBAL_FLAGS]
    return flags + [word for word in words[:end] if word not in GLOBAL_FLAGS] + words[end:]
