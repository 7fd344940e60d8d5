"""The command ``qwendet``: its commands, its global options, and what each error ends with."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from qwendet.cli import data, data_check, eval, export, infer, init, options, serve, train, validate
from qwendet.cli.group import StagedGroup
from qwendet.console import console
from qwendet.errors import ConfigError, EnvironmentLacksError, QwendetError
from qwendet.progress import shown_by

GLOBAL_FLAGS = ("--debug", "--quiet")
INTERRUPTED = 130
TERMINATED = 143
UsageError: Any = typer.BadParameter.__mro__[1]
"""Typer's error for a command line that cannot be read, which it exports under no name of its own."""


class _Commands(StagedGroup):
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
    rich_markup_mode=None,  # plain help: never cut, whatever the width, and quick
    context_settings={"help_option_names": ["-h", "--help"]},
)
PREPARE, CHECK = "1. Prepare data and config", "2. Check before the GPU hours"
TRAIN, USE = "3. Train", "4. Measure and use"
app.command("init", rich_help_panel=PREPARE)(init.init)
app.command("validate-config", rich_help_panel=CHECK)(validate.validate_config)
app.command("validate-loss", rich_help_panel=CHECK)(validate.validate_loss)
app.command("check-consistency", rich_help_panel=CHECK)(validate.check_consistency)
app.command("validate", rich_help_panel=CHECK)(validate.validate)
app.command("train", rich_help_panel=TRAIN)(train.train)
app.command("eval", rich_help_panel=USE)(eval.evaluate)
app.command("infer", rich_help_panel=USE)(infer.infer)
app.command("serve", rich_help_panel=USE)(serve.serve)
app.command("export", rich_help_panel=USE)(export.export)
app.command("check-served", rich_help_panel=USE)(validate.check_served)
data.app.command("check")(data_check.check)
data.app.command("stats")(data_check.stats)
app.add_typer(data.app, name="data", rich_help_panel=PREPARE)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qwendet import __version__

        console.print_lines([f"qwendet {__version__}"])
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No notes, no progress: results, warnings and errors only.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Qwen's vision-language models into object detectors that are served as they were trained.

    Exit codes: 0 all good, 1 a check failed, 2 unusable config, data or command,
    3 the environment lacks something, 130 interrupted, 143 terminated.
    """
    console.setup(debug=debug, quiet=quiet)
    console.set_format(_asked_format(options.typed))


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: the one place where an exception becomes an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # Read when torch is imported: threads that spin while they wait slow training several times over, as
    # soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options.typed[:] = words
    try:
        with shown_by(console.progress):
            code = app(args=_flags_first(words), prog_name="qwendet", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            console.print_lines([error.ctx.get_help()])
            sys.exit(ConfigError.exit_code)
        console.set_format(_asked_format(words))
        console.report_error(_as_config_error(error))
        sys.exit(ConfigError.exit_code)
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
    sys.exit(code if isinstance(code, int) else 0)


def _as_config_error(error: UsageError) -> ConfigError:
    """A mistake on the command line in the words of all other mistakes."""
    said = (
        error.format_message()
        .replace("Value error, ", "")
        .replace(": Input should", ": it should")
        .rstrip(".")
    )
    path = "qwendet COMMAND" if error.ctx is None else error.ctx.command_path
    return ConfigError(said[:1].lower() + said[1:], "command line", f"see: {path} --help")


def _asked_format(words: Sequence[str]) -> console.Format:
    """The ``--format`` of a command line, also of one that cannot be read as a whole.

    Example:
        >>> _asked_format(["infer", "--format=json"]), _asked_format(["infer", "--format", "xml"])
        ('json', 'human')
    """
    joined = " ".join(words).replace("--format=", "--format ").split()
    after = [joined[at + 1] for at, word in enumerate(joined[:-1]) if word == "--format"]
    known: tuple[console.Format, ...] = ("json", "junit", "github")
    return next((name for name in known if after[-1:] == [name]), "human")


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
