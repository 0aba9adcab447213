"""`cgconvert`: finds the command, and turns every failure into one line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from cgconvert.api.declarations import declared_options
from cgconvert.cli.commands import command, command_names
from cgconvert.cli.other_tools import explain_no_command
from cgconvert.cli.output import output_options, verbosity
from cgconvert.cli.text import one_line, with_flags
from cgconvert.errors import CgconvertError, Interrupted
from cgconvert.io.system.signals import INTERRUPTS
from cgconvert.io.system.threads import check_environment
from cgconvert.io.terminal import is_controllable, is_terminal
from cgconvert.version import __version__

__all__ = ["main"]

_SIGNALS: dict[signal.Signals, Any] = {
    number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    for number in INTERRUPTS
}
"""Signals that interrupt a run, with the handlers that Python has for them at its start."""

INTERRUPTED = 130
IO_ERROR = 5


class Commands(click.Group):
    """Looks a command up in the table of commands when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raise UsageError with what may be meant if there is none."""
        word = args[0]
        if self.get_command(ctx, word) is None and not ctx.resilient_parsing and word[0] != "-":
            raise click.UsageError(explain_no_command(word, command_names()), ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=Commands,
    params=output_options(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="cgconvert")
def cli() -> None:
    """Convert Salesforce CodeGen checkpoints to safetensors, ONNX and GGUF, and prove the result.

    \b
    Try it on the model that is built in:
      cgconvert to-gguf codegen-tiny-mono --type Q8_0
      cgconvert verify
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit code.

    0 success, 1 a bug of cgconvert, 2 wrong usage or a missing runtime or device, 3 bad or missing
    input, 4 verification failed, 5 I/O or no space, 130 interrupted.
    """
    try:
        code = _run(arguments)
    except Interrupted:  # once more, or after all was done
        code = INTERRUPTED
    for number in _SIGNALS:  # nothing is left to interrupt but Python's own end
        if signal.getsignal(number) == _interrupted:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    verbosity.quiet = verbosity.verbose = False
    try:
        for number, default_handler in _SIGNALS.items():
            # A signal with another handler is ignored on purpose, as SIGHUP is under nohup.
            if signal.getsignal(number) == default_handler:
                signal.signal(number, _interrupted)
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be valid Unicode
            sys.stdout.reconfigure(errors="backslashreplace")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # they are meant for programmers, not for users
        check_environment()
        # Commands return None; a number is the code of click's Exit.
        return cli.main(args=arguments, prog_name="cgconvert", standalone_mode=False) or 0
    except (Interrupted, click.Abort, KeyboardInterrupt) as error:
        _leave_line()
        # A note says what stays of the work.
        return _say("; ".join(("interrupted", *_notes(error))), INTERRUPTED, error)
    except click.exceptions.NoArgsIsHelpError as error:  # it holds the whole help
        error.show()
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "cgconvert"
        return _say(f"{error.format_message()} (see {where} --help)", 2, error)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code, error)
    except CgconvertError as error:
        return _say(_with_flags(str(error)), error.exit_code, error)
    except BrokenPipeError:
        # The reader went away; what is still in the buffer has nowhere to go.
        _discard(sys.stdout)
        return 0
    except OSError as error:
        return _say(f"{error.filename or 'I/O'}: {error.strerror or error}", IO_ERROR, error)
    except MemoryError as error:
        return _say("not enough memory", IO_ERROR, error)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}; --verbose shows where"
        return _say(text, 1, error)


def _notes(error: BaseException | None) -> list[str]:
    """The notes of an error and of what caused it: click turns Ctrl-C into an error of its own."""
    return [*getattr(error, "__notes__", []), *_notes(error.__cause__)] if error else []


def _with_flags(message: str) -> str:
    """Replace the Python arguments that an error names by flags of the command line."""
    if "`" not in message:  # most errors name no argument
        return message
    return with_flags(message, declared_options())


def _say(message: str, code: int, error: BaseException) -> int:
    try:
        if verbosity.verbose:
            import traceback

            traceback.print_exception(error)
        click.echo(f"cgconvert: {one_line(message)}", err=True)
    except OSError:  # a full disk, or nobody reads it; the code still says what happened
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Let what is still in the buffer of a stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave_line() -> None:
    """Begin a new line on a terminal, which has written ^C; a line with nothing else is erased."""
    if is_controllable(sys.stderr):
        click.echo("\r\x1b[K", nl=False, err=True)
    elif is_terminal(sys.stderr):
        click.echo(err=True)


def _interrupted(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted
