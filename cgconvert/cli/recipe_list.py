"""The list of shipped recipes that `cgconvert run --list` shows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from cgconvert.cli import recipe, shipped
from cgconvert.formats.registry import OUT

__all__ = ["listing"]

INDENT = 10
"""Width of the column with the words source, steps and so on."""


def listing(width: int | None = None) -> str:
    """Describe each shipped recipe in a few lines of at most `width` columns."""
    return "\n\n".join(
        "\n".join([name, *_lines(name, path, width)]) for name, path in shipped.shipped().items()
    )


def _lines(name: str, path: Path, width: int | None) -> Iterator[str]:
    """Yield the lines of one recipe, wrapped if there is a width."""
    (loaded,) = recipe.load(path)
    also = shipped.variants(name)
    rows = {
        "about": loaded.description,
        "source": ", ".join([loaded.source, *(f"or {other}" for other in also)]),
        "steps": "; ".join(step.title for step in loaded.steps),
        "writes": f"{OUT}/{loaded.source}/",
    }
    for word, text in rows.items():
        yield from textwrap.wrap(
            text,
            width or len(text) + INDENT + 1,
            initial_indent=f"  {word:<{INDENT - 2}}",
            subsequent_indent=" " * INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
