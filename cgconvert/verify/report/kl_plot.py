"""The divergence at every position as an SVG drawing, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from xml.etree.ElementTree import Element

from cgconvert.verify.report.axes import (
    LEFT,
    RIGHT,
    WIDTH,
    Scale,
    grid,
    levels,
    points,
    scale_over,
)
from cgconvert.verify.report.markup import element

__all__ = ["in_columns", "kl_plot"]

TOP, BOTTOM, HEIGHT = 22, 240, 280

SINGLY = 1600
"""From here on positions are drawn some in one column: more points than two a pixel say nothing."""

COLUMNS = 390
"""A column each two units of the drawing's width."""


def in_columns(count: int) -> int:
    """How many positions are drawn in one column: 1 unless there are thousands."""
    return math.ceil(count / COLUMNS) if count > SINGLY else 1


def kl_plot(
    values: Sequence[float | None],
    lines: Mapping[str, float],
    sequences: Sequence[tuple[str, int]],
    limit: float | None,
) -> Element:
    """A point a position or, of thousands, a column's mean and the range of its values.

    `lines` are horizontal, by what is written beside them; `sequences` are the name and length of
    what the positions belong to. Values above `limit`, and None, which was not finite, are each
    marked.
    """
    lines = {name: at for name, at in lines.items() if at > 0}
    scale = scale_over(len(values), [*values, *lines.values()], TOP, BOTTOM)
    finite = [(i, v) for i, v in enumerate(values) if v is not None]
    above = [(i, v) for i, v in finite if limit is not None and v > limit]
    kept = [(i, v) for i, v in finite if limit is None or v <= limit]
    broken = [i for i, v in enumerate(values) if v is None]
    width = in_columns(len(values))
    drawn = [_each(scale, "points", kept)] if width == 1 else _columns(scale, kept, width)
    return element(
        "svg",
        *grid(scale),
        *_foot(scale),
        *_sequences(scale, sequences if sum(n for _, n in sequences) == len(values) else ()),
        *drawn,
        _each(scale, "points above", above),
        points("points broken", [(scale.x(i + 0.5), TOP) for i in broken]),
        *levels(scale, lines),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"KL divergence at {len(values)} positions",
    )


def _each(scale: Scale, kind: str, values: Sequence[tuple[int, float]]) -> Element | None:
    return points(kind, [(scale.x(i + 0.5), scale.y(v)) for i, v in values])


def _columns(scale: Scale, values: Sequence[tuple[int, float]], width: int) -> list[Element | None]:
    """Least to largest as a stroke, the mean as a point."""
    columns: dict[int, list[float]] = {}
    for i, v in values:
        columns.setdefault(i // width, []).append(v)
    ranges, means = [], []
    for column, some in columns.items():
        x = scale.x((column + 0.5) * width)
        ranges.append(f"M{x} {scale.y(min(some))}V{scale.y(max(some))}")
        means.append((x, scale.y(max(0.0, sum(some) / len(some)))))
    spread = element("path", d="".join(ranges), class_="spread")
    return [spread, points("points", means)]


def _foot(scale: Scale) -> list[Element]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = "position, sequences one after the other"
    foot, end = BOTTOM + 15, scale.x(scale.count)
    return [
        element("text", label, x=middle, y=HEIGHT - 6, text_anchor="middle"),
        element("text", "1", x=scale.x(0), y=foot),
        element("text", f"{scale.count}", x=end, y=foot, text_anchor="end"),
    ]


def _sequences(scale: Scale, sequences: Sequence[tuple[str, int]]) -> list[Element]:
    """Where each begins, and its name where there is room for it."""
    drawn = []
    starts = accumulate((length for _, length in sequences), initial=0)
    for start, (name, length) in zip(starts, sequences, strict=False):
        x, end = scale.x(start), scale.x(start + length)
        if start:
            drawn.append(element("path", d=f"M{x} {TOP}V{BOTTOM}", class_="grid"))
        short = name.rpartition(" ")[2]
        shown = next((n for n in (name, short) if end - x > 4 + 6.2 * len(n)), None)
        if shown:
            middle = round((x + end) / 2, 1)
            drawn.append(element("text", shown, x=middle, y=TOP - 8, text_anchor="middle"))
    return drawn
