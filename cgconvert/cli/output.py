"""What the commands print beside their result: progress, and colours for verdicts."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

import click

from cgconvert.io.progress import Progress, SilentProgress
from cgconvert.io.terminal import is_terminal, terminal_width, uses_color

__all__ = [
    "color_verdicts",
    "columns",
    "echo",
    "output_options",
    "progress_of_command",
    "verbosity",
]

LOG_DELAY, TERMINAL_DELAY = 20.0, 2.0
"""Seconds before the first line of progress in a log, and in a dumb terminal.

Most commands take less, and then a failure is the only line.
"""

COLORS = {"fail": "red", "failed": "red", "warning": "yellow", "pass": "green", "passed": "green"}
"""Colours of the words with which a line of a report begins."""

_VERDICT = re.compile(rf"^(\s*)({'|'.join(COLORS)})\b", re.IGNORECASE | re.MULTILINE)


@dataclass
class Verbosity:
    """How much a command prints; known before its options are all parsed.

    Attributes:
        quiet: Whether progress and notes are left out.
        verbose: Whether a failure shows its traceback.
    """

    quiet: bool = False
    verbose: bool = False


verbosity = Verbosity()


def output_options() -> list[click.Parameter]:
    """--quiet and --verbose: every command has them, and they may stand before its name too."""
    helps = {
        ("-q", "--quiet"): "Print no progress and no notes; warnings and errors remain.",
        ("-v", "--verbose"): "Show the traceback of a failure.",
    }
    return [
        click.Option(
            flags, is_flag=True, is_eager=True, expose_value=False, callback=_remember, help=text
        )
        for flags, text in helps.items()
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        setattr(verbosity, str(param.name), True)


def progress_of_command(context: str = "") -> Progress:
    """Return the progress that a command shows; `context` stands first, as "[2/5]" of a recipe."""
    if verbosity.quiet:
        return SilentProgress()
    # Not imported at the top: help and usage errors show no progress.
    from cgconvert.api.progress import ProgressBar

    delay = TERMINAL_DELAY if is_terminal(sys.stderr) else LOG_DELAY
    return ProgressBar(context, log_delay=delay)


def columns() -> int | None:
    """The width of the terminal; None if the output goes to a file or a pipe."""
    if not (is_terminal(sys.stdout) or os.environ.get("COLUMNS", "").isdecimal()):
        return None
    return max(20, terminal_width(sys.stdout))


def color_verdicts(text: str) -> str:
    """Colour the verdict at the beginning of a line: FAIL red, warning yellow, pass green.

    The text is returned as it is where stdout takes no colours.
    """
    if not uses_color(sys.stdout):
        return text

    def colored(match: re.Match[str]) -> str:
        color = COLORS[match[2].lower()]
        return match[1] + click.style(match[2], fg=color, bold=color == "red")

    return _VERDICT.sub(colored, text)


def echo(text: str) -> None:
    """Print a report on stdout, its verdicts in colours where stdout takes them."""
    click.echo(color_verdicts(text), color=uses_color(sys.stdout))
