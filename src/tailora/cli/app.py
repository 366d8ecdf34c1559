"""The command line's entry: which commands there are, and how an error leaves it."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from tailora._version import __version__
from tailora.cli import adapters, laboratory, planning, profiling, reports, runs, showing, studying, watching
from tailora.errors import TailoraError

# They tell, at every import of a model's libraries, which fast paths this machine lacks; nobody has asked for these.
_NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")

app = typer.Typer(
    name="tailora",
    help="LoRA, cut to fit: where LoRA goes, how much rank each matrix gets, under an exact parameter budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"tailora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options that every command shares."""
    if not debug:
        # Libraries warn about their own next versions; what matters to the user comes as an error or a result.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)


app.command("demo")(runs.demo)
app.command("inspect")(showing.inspect)
app.command("profile")(profiling.profile)
app.command("plan")(planning.plan)
app.command("merge")(profiling.merge)
app.command("compare")(profiling.compare)
app.command("train")(runs.train)
app.command("study")(studying.study)
app.command("eval")(adapters.evaluate)
app.command("report")(reports.report)
app.command("watch")(watching.watch)
app.command("lab")(laboratory.lab)
app.command("recipes")(showing.recipes)
app.command("env")(showing.environment)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Exit status 0 is success, 2 the user's input, 130 Ctrl-C, 143 SIGTERM, 1 everything else; a traceback appears only
    with ``--debug``.

    Args:
        arguments: Instead of ``sys.argv``.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given, prog_name="tailora")
    except SystemExit as end:
        if (stopped := _interrupt(end)) is None:
            raise
        _leave(str(stopped) or "stopped by Ctrl-C", getattr(stopped, "exit_code", 130))
    except TailoraError as error:
        if "--debug" in given:
            raise
        _leave(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone, as in `tailora inspect ... | head`.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if "--debug" in given:
            raise
        from tailora.failures import explain

        explained = explain(error)
        if explained is not None:
            _leave(str(explained), explained.exit_code)
        text = " ".join(str(error).split())[:300]
        _leave(f"{type(error).__name__}: {text}; this should not happen: see where with 'tailora --debug ...'", 1)


def _leave(sentence: str, status: int) -> NoReturn:
    """Say one sentence on stderr and exit."""
    print(f"tailora: {sentence}", file=sys.stderr)
    sys.exit(status)


def _interrupt(end: SystemExit) -> KeyboardInterrupt | None:
    """Return the interrupt behind an exit: typer turns each into a bare status 130 and drops its sentence."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
