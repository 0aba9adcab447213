"""The divergence at every position as an SVG drawing, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.etree.ElementTree import Element

from cgconvert.verify.markup import element
from cgconvert.verify.report_words import number

__all__ = ["kl_plot"]

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 124, 22, 40
"""Margins; the right one holds the names of the bounds."""

LINE = 13
"""Least distance of two lines of text."""

SMALLEST = 1e-16
"""What float64 cannot tell from equal: all that is less, or negative, is drawn here."""


@dataclass(frozen=True)
class Scale:
    """Where a position and a value of the series come to lie."""

    count: int
    low: int
    high: int

    def x(self, position: float) -> float:
        """A position's middle is at position + 1/2."""
        return round(LEFT + position / self.count * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (math.log10(max(value, SMALLEST)) - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def kl_plot(
    values: Sequence[float | None],
    lines: Mapping[str, float],
    lengths: Sequence[int],
    limit: float | None,
) -> Element:
    """A point a position; `lines` are horizontal, by what is written beside them.

    `lengths` are the prompts' lengths; values above `limit`, and None, which was not finite, are
    marked. Colours are classes of the page's style sheet.
    """
    scale = _scale(values, [line for line in lines.values() if line > 0])
    finite = [(i, v) for i, v in enumerate(values) if v is not None]
    above = [(i, v) for i, v in finite if limit is not None and v > limit]
    kept = [(i, v) for i, v in finite if limit is None or v <= limit]
    broken = [i for i, v in enumerate(values) if v is None]
    return element(
        "svg",
        *_grid(scale),
        *_prompts(scale, lengths if sum(lengths) == len(values) else ()),
        _points("points", [(scale.x(i + 0.5), scale.y(v)) for i, v in kept]),
        _points("points above", [(scale.x(i + 0.5), scale.y(v)) for i, v in above]),
        _points("points broken", [(scale.x(i + 0.5), TOP) for i in broken]),
        *_lines(scale, {name: at for name, at in lines.items() if at > 0}),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"KL divergence at {len(values)} positions",
    )


def _scale(values: Sequence[float | None], lines: Sequence[float]) -> Scale:
    """Whole decades around all that is drawn, two at least."""
    shown = [max(v, SMALLEST) for v in [*(v for v in values if v is not None), *lines]]
    low = math.floor(math.log10(min(shown, default=SMALLEST)))
    high = math.ceil(math.log10(max(shown, default=1)))
    return Scale(max(1, len(values)), low, max(high, low + 2))


def _grid(scale: Scale) -> list[Element]:
    step = math.ceil((scale.high - scale.low) / 8)
    drawn = []
    for power in range(scale.low, scale.high + 1, step):
        y = scale.y(10.0**power)
        drawn.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="grid"))
        drawn.append(element("text", f"1e{power}", x=LEFT - 8, y=y + 4, text_anchor="end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = "position, prompts one after the other"
    drawn.append(element("text", label, x=middle, y=HEIGHT - 6, text_anchor="middle"))
    foot = HEIGHT - BOTTOM + 15
    drawn.append(element("text", "1", x=scale.x(0), y=foot))
    end = scale.x(scale.count)
    drawn.append(element("text", f"{scale.count}", x=end, y=foot, text_anchor="end"))
    return drawn


def _prompts(scale: Scale, lengths: Sequence[int]) -> list[Element]:
    """Where each prompt begins, and its number where there is room for it."""
    drawn = []
    for i, (start, length) in enumerate(zip(accumulate(lengths, initial=0), lengths, strict=False)):
        x, end = scale.x(start), scale.x(start + length)
        if start:
            drawn.append(element("path", d=f"M{x} {TOP}V{HEIGHT - BOTTOM}", class_="grid"))
        name = f"prompt {i + 1}" if end - x > 60 else f"{i + 1}" if end - x > 16 else None
        if name:
            drawn.append(
                element("text", name, x=round((x + end) / 2, 1), y=TOP - 8, text_anchor="middle")
            )
    return drawn


def _points(kind: str, places: Sequence[tuple[float, float]]) -> Element | None:
    """Strokes of no length with round ends: one element for all points."""
    if not places:
        return None
    return element("path", d="".join(f"M{x} {y}h0" for x, y in places), class_=kind)


def _lines(scale: Scale, lines: Mapping[str, float]) -> list[Element]:
    """Dashed, named at the right; names that would touch are moved apart downwards."""
    drawn, free = [], 0.0
    for name, at in sorted(lines.items(), key=lambda item: -item[1]):
        y = scale.y(at)
        free = max(y + 4, free)
        drawn.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="line"))
        drawn.append(element("text", f"{name} {number(at)}", x=WIDTH - RIGHT + 8, y=free))
        free += LINE
    return drawn
