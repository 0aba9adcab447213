"""The drawings of a report, as SVG elements: divergence by position, and error by tensor.

They are inline, need no script and are the same for the same report. Every drawing has panels with
a logarithmic scale. Colours are classes of report.css.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any
from xml.etree.ElementTree import Element

from cgconvert.verification.report.model import number, xml_safe

__all__ = [
    "LEFT", "RIGHT", "WIDTH", "Scale", "changed_tensors", "element", "grid", "is_wrong", "kl_plot",
    "points", "positions_per_column", "scale_over", "tensor_plot", "worst_first",
]  # fmt: skip

WIDTH, LEFT, RIGHT = 960, 56, 124
"""Widths of a drawing and of its left and right margins; the right one holds names and legends."""

LINE_HEIGHT = 13
"""The least distance of the baselines of two lines of text."""

SMALLEST = 1e-16
"""What is less than this, or negative, is drawn here: in float64 it is rounding error."""

KL_TOP, KL_BOTTOM, KL_HEIGHT = 22, 240, 280
"""The y coordinates of the edges of the divergence plot's panel, and the height of the drawing."""

MOST_SINGLE_POINTS = 1600
"""Most positions that are drawn as single points; more of them share columns, because two points
in one pixel show nothing."""

COLUMNS = 390
"""One column for every two units of the drawing's width."""

COLOURS = 8
"""Colours in report.css; the kinds of tensors beyond them share the last."""

TENSOR_TOP, TENSOR_GAP, TENSOR_FOOT = 22, 44, 40
"""Heights of the space above the first panel of the tensor plot, between panels, and below."""

TensorEntry = Mapping[str, Any]
"""An entry of `tensors` in the JSON object; see model.py."""


def element(tag: str, *children: str | Element | None, **attributes: object) -> Element:
    """Make an element with its texts and children in order; what is None is left out.

    In names of attributes an underscore becomes a hyphen, and one at the end is dropped (`class_`).
    """
    node = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): xml_safe(str(value))
            for name, value in attributes.items()
            if value is not None
        },
    )
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            node.append(child)
            last = child
        elif child is not None and last is None:
            node.text = (node.text or "") + xml_safe(child)
        elif child is not None and last is not None:
            last.tail = (last.tail or "") + xml_safe(child)
    return node


# What both drawings have: a panel with a logarithmic scale, its grid, points and bounds.


@dataclass(frozen=True)
class Scale:
    """Maps positions and values to coordinates in a panel with a logarithmic scale.

    Attributes:
        count: How many positions lie side by side.
        low: The power of ten at the lower edge.
        high: The power of ten at the upper edge.
        top: The y coordinate of the upper edge.
        bottom: The y coordinate of the lower edge.
    """

    count: int
    low: int
    high: int
    top: float
    bottom: float

    def x(self, position: float) -> float:
        """The x coordinate of a position's left edge; its middle is at position + 1/2."""
        return round(LEFT + position / self.count * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """The y coordinate of a value."""
        share = (math.log10(max(value, SMALLEST)) - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - self.top), 1)


def scale_over(
    count: int, values: Iterable[float | None], top: float, bottom: float, decades: int = 2
) -> Scale:
    """Make a scale of whole decades, at least `decades`, that covers the values.

    A value of None was not finite and does not count.
    """
    shown = [max(v, SMALLEST) for v in values if v is not None]
    low = math.floor(math.log10(min(shown, default=SMALLEST)))
    high = math.ceil(math.log10(max(shown, default=1)))
    return Scale(max(1, count), low, max(high, low + decades), top, bottom)


def grid(scale: Scale) -> list[Element]:
    """Draw a line and a label for each decade.

    Of more than eight decades some are left out; a single decade has lines at 2 and 5 too.
    """
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


def points(class_: str, places: Sequence[tuple[float, float]]) -> Element | None:
    """Draw all points of one class of report.css as one path: strokes of no length with round ends.

    `places` are (x, y) coordinates; None is returned if there are none.
    """
    if not places:
        return None
    return element("path", d="".join(f"M{x} {y}h0" for x, y in places), class_=class_)


def _bound_lines(scale: Scale, bounds: Mapping[str, float]) -> list[Element]:
    """Draw a dashed line at each bound, with its name at the right.

    Names that would touch are moved apart downwards.
    """
    drawn, free_y = [], 0.0
    for name, value in sorted(bounds.items(), key=lambda item: -item[1]):
        y = scale.y(value)
        free_y = max(y + 4, free_y)
        drawn.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="line"))
        drawn.append(element("text", f"{name} {number(value)}", x=WIDTH - RIGHT + 8, y=free_y))
        free_y += LINE_HEIGHT
    return drawn


# Divergence by position.


def positions_per_column(count: int) -> int:
    """How many positions share a column of the drawing: 1, or more if there are thousands."""
    return math.ceil(count / COLUMNS) if count > MOST_SINGLE_POINTS else 1


def kl_plot(
    values: Sequence[float | None],
    bounds: Mapping[str, float],
    sequences: Sequence[tuple[str, int]],
    limit: float | None,
) -> Element:
    """Draw the KL divergence at every position.

    Each position is a point. If there are thousands, several positions share a column, which shows
    their mean as a point and their range as a stroke. Values above `limit` are marked one by one,
    and so are those that were not finite.

    Args:
        values: The divergence at each position in nats; None if it was not finite.
        bounds: Horizontal lines, by the name written beside them.
        sequences: The name and the number of positions of each sequence, in order.
        limit: Values above it are marked; None marks none.
    """
    bounds = {name: value for name, value in bounds.items() if value > 0}
    scale = scale_over(len(values), [*values, *bounds.values()], KL_TOP, KL_BOTTOM)
    finite = [(i, v) for i, v in enumerate(values) if v is not None]
    above = [(i, v) for i, v in finite if limit is not None and v > limit]
    within = [(i, v) for i, v in finite if limit is None or v <= limit]
    not_finite = [i for i, v in enumerate(values) if v is None]
    per_column = positions_per_column(len(values))
    if per_column == 1:
        drawn = [_single_points(scale, "points", within)]
    else:
        drawn = _columns(scale, within, per_column)
    if sum(length for _, length in sequences) != len(values):
        sequences = ()
    return element(
        "svg",
        *grid(scale),
        *_position_axis(scale),
        *_sequence_marks(scale, sequences),
        *drawn,
        _single_points(scale, "points above", above),
        points("points broken", [(scale.x(i + 0.5), KL_TOP) for i in not_finite]),
        *_bound_lines(scale, bounds),
        viewBox=f"0 0 {WIDTH} {KL_HEIGHT}",
        role="img",
        aria_label=f"KL divergence at {len(values)} positions",
    )


def _single_points(
    scale: Scale, class_: str, values: Sequence[tuple[int, float]]
) -> Element | None:
    """Draw a point for each (position, value)."""
    return points(class_, [(scale.x(i + 0.5), scale.y(v)) for i, v in values])


def _columns(
    scale: Scale, values: Sequence[tuple[int, float]], per_column: int
) -> list[Element | None]:
    """Draw the range of each column as a stroke and its mean as a point.

    `values` are (position, value); `per_column` positions share a column.
    """
    columns: dict[int, list[float]] = {}
    for i, v in values:
        columns.setdefault(i // per_column, []).append(v)
    ranges, means = [], []
    for column, members in columns.items():
        x = scale.x((column + 0.5) * per_column)
        ranges.append(f"M{x} {scale.y(min(members))}V{scale.y(max(members))}")
        means.append((x, scale.y(max(0.0, sum(members) / len(members)))))
    spread = element("path", d="".join(ranges), class_="spread")
    return [spread, points("points", means)]


def _position_axis(scale: Scale) -> list[Element]:
    """Write the first and the last position, and what the axis shows."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = "position, sequences one after the other"
    y, end = KL_BOTTOM + 15, scale.x(scale.count)
    return [
        element("text", label, x=middle, y=KL_HEIGHT - 6, text_anchor="middle"),
        element("text", "1", x=scale.x(0), y=y),
        element("text", f"{scale.count}", x=end, y=y, text_anchor="end"),
    ]


def _sequence_marks(scale: Scale, sequences: Sequence[tuple[str, int]]) -> list[Element]:
    """Draw a line at the start of each sequence, and its name if there is room for it.

    `sequences` are (name, number of positions).
    """
    drawn = []
    starts = accumulate((length for _, length in sequences), initial=0)
    for start, (name, length) in zip(starts, sequences, strict=False):
        x, end = scale.x(start), scale.x(start + length)
        if start:
            drawn.append(element("path", d=f"M{x} {KL_TOP}V{KL_BOTTOM}", class_="grid"))
        short = name.rpartition(" ")[2]
        shown = next((n for n in (name, short) if end - x > 4 + 6.2 * len(n)), None)
        if shown:
            middle = round((x + end) / 2, 1)
            drawn.append(element("text", shown, x=middle, y=KL_TOP - 8, text_anchor="middle"))
    return drawn


# Error by tensor: in the artefact's order, one colour for each kind of tensor.


def changed_tensors(tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The tensors that do not have exactly the source's numbers: quantized, rounded or wrong."""
    return [tensor for tensor in tensors if _is_changed(tensor)]


def is_wrong(tensor: TensorEntry) -> bool:
    """Whether this tensor makes a check of weights fail: finite, equal, error or adjusted.

    `worst` is the error as a multiple of the tensor's bound. A quantized tensor always has one, so
    there None stands for an infinite error, which JSON cannot hold. Of an unquantized tensor it is
    None if the tensor has to be equal, and a number if calibration has adjusted it.
    """
    worst = tensor["worst"]
    is_over_bound = _is_quantized(tensor) if worst is None else worst > 1
    wrong = tensor["nonfinite"], tensor["differing"], tensor["too_exact"]
    return bool(is_over_bound or any(wrong))


def worst_first(tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Sort the changed tensors: wrong ones first, then by relative error.

    An error that is not finite counts as the largest.
    """

    def rank(tensor: TensorEntry) -> tuple[bool, float]:
        error = tensor["relative_rms"]
        return is_wrong(tensor), float("inf") if error is None else error

    return sorted(changed_tensors(tensors), key=rank, reverse=True)


def tensor_plot(tensors: Sequence[TensorEntry]) -> Element:
    """Draw the errors of all tensors, in the artefact's order.

    The first panel has relative RMS errors. Below it, if any tensor is quantized, is a panel of the
    largest errors as multiples of the bound of the tensor's type; and, if values of any unquantized
    tensor differ, a panel of the share of values that do. Each point shows the name of its tensor
    on hover. A tensor that has no error in a panel leaves its position on the x axis empty.
    """
    # For each panel its title, its height, the lines of bounds, and the values by tensor's index.
    panels: list[tuple[str, int, dict[str, float], dict[int, float | None]]] = []
    errors = {i: t["relative_rms"] for i, t in enumerate(tensors) if _is_changed(t)}
    panels.append(("relative RMS error", 200, {}, errors))
    over_bound = {i: t["worst"] for i, t in enumerate(tensors) if _is_quantized(t)}
    if over_bound:
        title = "largest error, as a multiple of the bound of its type"
        panels.append((title, 90, {"bound": 1.0}, over_bound))
    # Only values of unquantized tensors are counted as differing.
    shares = {i: t["differing"] / t["size"] for i, t in enumerate(tensors) if t["differing"]}
    if shares:
        panels.append(("share of values that differ, in unquantized tensors", 90, {}, dict(shares)))
    colours = _colours(changed_tensors(tensors))
    drawn: list[Element | None] = []
    top = float(TENSOR_TOP)
    for title, height, bounds, values in panels:
        drawn += _panel(tensors, colours, title, top, top + height, bounds, values)
        top += height + TENSOR_GAP
    bottom = top - TENSOR_GAP
    return element(
        "svg",
        *_layer_marks(tensors, bottom),
        *drawn,
        *_legend(colours),
        viewBox=f"0 0 {WIDTH} {bottom + TENSOR_FOOT:g}",
        role="img",
        aria_label=f"errors of {len(tensors)} tensors",
    )


def _is_quantized(tensor: TensorEntry) -> bool:
    """Whether a tensor is quantized: only names of unquantized types contain "float"."""
    return "float" not in tensor["type"]


def _is_changed(tensor: TensorEntry) -> bool:
    """Whether a tensor does not have exactly the source's numbers."""
    return bool(_is_quantized(tensor) or tensor["relative_rms"] != 0 or tensor["differing"])


def _panel(
    tensors: Sequence[TensorEntry],
    colours: Mapping[str, int],
    title: str,
    top: float,
    bottom: float,
    bounds: Mapping[str, float],
    values: Mapping[int, float | None],
) -> list[Element | None]:
    """Draw one panel between the y coordinates `top` and `bottom`.

    Args:
        tensors: All tensors, those without a value too.
        colours: The colour of each kind of tensor, a number of a class of report.css.
        title: What stands above the panel.
        top: The y coordinate of the upper edge.
        bottom: The y coordinate of the lower edge.
        bounds: Horizontal lines, by the name written beside them.
        values: By index of the tensor. None was not finite and is drawn at the top; 0 has no point.
    """
    shown = {i: v for i, v in values.items() if v is None or v > 0}
    in_range = [*shown.values(), *bounds.values()]
    scale = scale_over(len(tensors), in_range, top, bottom, 2 if bounds else 1)
    drawn: list[Element | None] = [
        element("text", title, x=LEFT, y=top - 8),
        *grid(scale),
        *_bound_lines(scale, bounds),
    ]
    places = {
        i: (scale.x(i + 0.5), top if value is None else scale.y(value))
        for i, value in shown.items()
    }
    by_colour: dict[int, list[tuple[float, float]]] = {}
    for i, place in places.items():
        by_colour.setdefault(colours[_kind(tensors[i])], []).append(place)
    # A line joins the tensors of one kind, so not those of the colour that several kinds share.
    for colour, places_joined in sorted(by_colour.items()):
        if len(places_joined) > 1 and (colour < COLOURS - 1 or len(colours) <= COLOURS):
            path = "M" + "L".join(f"{x} {y}" for x, y in places_joined)
            drawn.append(element("path", d=path, class_=f"join kind{colour}"))
    for i, (x, y) in places.items():
        tensor, value = tensors[i], shown[i]
        text = "not finite" if value is None else number(value)
        colour_class = "wrong" if is_wrong(tensor) else f"kind{colours[_kind(tensor)]}"
        title_node = element("title", f"{tensor['name']} ({tensor['type']}): {text}")
        drawn.append(element("path", title_node, d=f"M{x} {y}h0", class_=f"tensor {colour_class}"))
    return drawn


def _kind(tensor: TensorEntry) -> str:
    """The part of a tensor's name that all layers share: "ffn_up" of "blk.3.ffn_up.weight"."""
    return re.sub(r"^(.*\.\d+|model|transformer)\.", "", tensor["name"]).removesuffix(".weight")


def _layer(tensor: TensorEntry) -> str | None:
    """The number of a tensor's layer, by its name; None if it belongs to no layer."""
    match = re.search(r"\.(\d+)\.", tensor["name"])
    return match[1] if match else None


def _colours(tensors: Sequence[TensorEntry]) -> dict[str, int]:
    """Choose a colour for each kind of tensor, in the order of the tensors.

    If there are more kinds than colours, those with the fewest values share the last colour.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[_kind(tensor)] = sizes.get(_kind(tensor), 0) + tensor["size"]
    unshared = COLOURS if len(sizes) <= COLOURS else COLOURS - 1
    largest = sorted(sizes, key=lambda kind: -sizes[kind])[:unshared]
    kinds = [kind for kind in sizes if kind in largest]
    return {kind: kinds.index(kind) if kind in kinds else COLOURS - 1 for kind in sizes}


def _layer_marks(tensors: Sequence[TensorEntry], bottom: float) -> list[Element]:
    """Draw a line at the start of each layer, and as many layer numbers as there is room for."""
    step = (WIDTH - LEFT - RIGHT) / len(tensors)
    runs, start = [], 0
    for layer, members in groupby(tensors, key=_layer):
        count = len(list(members))
        runs.append((layer, LEFT + start * step, LEFT + (start + count) * step))
        start += count
    drawn, free_x = [], 0.0
    for layer, x, end in runs:
        if x > LEFT:
            drawn.append(element("path", d=f"M{x:.1f} {TENSOR_TOP}V{bottom:g}", class_="grid"))
        middle = (x + end) / 2
        if layer is not None and middle - 4 * len(layer) >= free_x:
            free_x = middle + 4 * len(layer) + 4
            y = bottom + 15
            drawn.append(element("text", layer, x=f"{middle:.1f}", y=y, text_anchor="middle"))
    label, middle = "layer; tensors in the artefact's order", (LEFT + WIDTH - RIGHT) / 2
    y = bottom + TENSOR_FOOT - 6
    drawn.append(element("text", label, x=middle, y=y, text_anchor="middle"))
    return drawn


def _legend(colours: Mapping[str, int]) -> list[Element | None]:
    """Write the kind of tensor, shortened if it is long, beside a point of its colour."""
    drawn: list[Element | None] = []
    texts = {colour: kind for kind, colour in colours.items()}
    if len(colours) > COLOURS:
        texts[COLOURS - 1] = f"{len(colours) - COLOURS + 1} others"
    for i, colour in enumerate(sorted(texts)):
        y, text = TENSOR_TOP + 8 + i * (LINE_HEIGHT + 3), texts[colour]
        shown = text if len(text) < 16 else f"{text[:14]}…"
        drawn.append(points(f"tensor kind{colour}", [(WIDTH - RIGHT + 14, y - 4)]))
        drawn.append(element("text", element("title", text), shown, x=WIDTH - RIGHT + 24, y=y))
    return drawn
