"""What the plots of a report share: a panel with a logarithmic scale, its grid, points and lines.

Colours are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from cgconvert.verify.report.markup import element
from cgconvert.verify.report.words import number

__all__ = ["LEFT", "LINE", "RIGHT", "WIDTH", "Scale", "grid", "levels", "points", "scale_over"]

WIDTH, LEFT, RIGHT = 960, 56, 124
"""Of a drawing and its margins; the right one holds the names of what is drawn."""

LINE = 13
"""Least distance of two lines of text."""

SMALLEST = 1e-16
"""What float64 cannot tell from equal: all that is less, or negative, is drawn here."""


@dataclass(frozen=True)
class Scale:
    """Where the i-th of `count` and a value come to lie; `low` and `high` are powers of ten.

    `top` and `bottom` are the panel's edges.
    """

    count: int
    low: int
    high: int
    top: float
    bottom: float

    def x(self, position: float) -> float:
        """A position's middle is at position + 1/2."""
        return round(LEFT + position / self.count * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (math.log10(max(value, SMALLEST)) - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - self.top), 1)


def scale_over(
    count: int, values: Iterable[float | None], top: float, bottom: float, decades: int = 2
) -> Scale:
    """Whole decades around the values, `decades` of them at least; None is not finite."""
    shown = [max(v, SMALLEST) for v in values if v is not None]
    low = math.floor(math.log10(min(shown, default=SMALLEST)))
    high = math.ceil(math.log10(max(shown, default=1)))
    return Scale(max(1, count), low, max(high, low + decades), top, bottom)


def grid(scale: Scale) -> list[Element]:
    """A line and a label a decade, fewer where they are many, 2 and 5 too in a single one."""
    decades = scale.high - scale.low
    step = math.ceil(decades / 8)
    drawn = []
    for power in range(scale.low, scale.high + 1, step):
        for digit in (1, 2, 5) if decades == 1 and power < scale.high else (1,):
            y = scale.y(digit * 10.0**power)
            drawn.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="grid"))
            label = f"{digit}e{power}"
            drawn.append(element("text", label, x=LEFT - 8, y=y + 4, text_anchor="end"))
    return drawn


def levels(scale: Scale, lines: Mapping[str, float]) -> list[Element]:
    """Dashed, named at the right; names that would touch are moved apart downwards."""
    drawn, free = [], 0.0
    for name, at in sorted(lines.items(), key=lambda item: -item[1]):
        y = scale.y(at)
        free = max(y + 4, free)
        drawn.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="line"))
        drawn.append(element("text", f"{name} {number(at)}", x=WIDTH - RIGHT + 8, y=free))
        free += LINE
    return drawn


def points(kind: str, places: Sequence[tuple[float, float]]) -> Element | None:
    """Strokes of no length with round ends: one element for all points."""
    if not places:
        return None
    return element("path", d="".join(f"M{x} {y}h0" for x, y in places), class_=kind)
