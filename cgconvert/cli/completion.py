"""What a shell completes in place of a source or a recipe: names, and paths.

click completes commands, options, choices and paths itself.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

from cgconvert import embedded
from cgconvert.cli import shipped
from cgconvert.model import family
from cgconvert.texts.text import STDLIB

__all__ = ["COMPLETIONS", "begun_words", "complete_recipe", "complete_source"]

Completer: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
"""Returns the words that a shell can complete the beginning of a word to."""


def begun_words(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """List the words that begin with `incomplete`; case does not matter."""
    start = incomplete.lower()
    return [CompletionItem(word) for word in words if word.lower().startswith(start)]


def complete_source(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a path, or the name of a published or built-in model; case does not matter."""
    return _complete((embedded.NAME, *family.NAMES), incomplete)


def complete_recipe(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a path, or the name of a shipped recipe or of a published model."""
    return _complete(dict.fromkeys((*shipped.shipped(), *family.NAMES)), incomplete)


def complete_text(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the path of a text, or a word in place of one."""
    words = (STDLIB, "none") if param.name == "calibration" else (STDLIB,)
    return _complete(words, incomplete)


def _complete(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """List the names and paths that begin with `incomplete`.

    If no name does, the shell lists the paths.

    A shell that lists paths itself does not list names beside them (bash's `compopt -o default`).
    """
    begun = begun_words(names, incomplete)
    if not begun:
        return [CompletionItem(incomplete, type="file")]
    if not incomplete:
        return begun
    paths = sorted(Path().glob(glob.escape(incomplete) + "*"))
    return begun + [CompletionItem(f"{path}/" if path.is_dir() else str(path)) for path in paths]


COMPLETIONS: Mapping[str, Completer] = {
    "source": complete_source,
    "reference": complete_source,
    "text": complete_text,
    "calibration": complete_text,
}
"""Functions that complete the values of options, by the option's name."""
