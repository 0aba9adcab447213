"""What became of each tensor, as an SVG drawing: in the layout's order, a colour a kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from xml.etree.ElementTree import Element

from cgconvert.verify.report.axes import (
    LEFT,
    LINE,
    RIGHT,
    WIDTH,
    grid,
    levels,
    points,
    scale_over,
)
from cgconvert.verify.report.markup import element
from cgconvert.verify.report.words import number

__all__ = ["changed", "tensor_plot", "worst_first", "wrong"]

Tensor = Mapping[str, Any]
"""An entry of `tensors` in the JSON object; see report.py."""

KINDS = 8
"""Colours of the style sheet; kinds beyond them share the last."""

HEAD, GAP, FOOT = 22, 44, 40
"""Heights of what is above the first panel, between two, and below the last."""


def quantized(tensor: Tensor) -> bool:
    return "float" not in tensor["type"]


def changed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those that are not the source's numbers exactly: quantized, rounded or wrong."""
    return [t for t in tensors if _changed(t)]


def _changed(tensor: Tensor) -> bool:
    return bool(quantized(tensor) or tensor["relative_rms"] != 0 or tensor["differing"])


def wrong(tensor: Tensor) -> bool:
    """Whether one of weights.finite, .equal and .error fails by it."""
    beyond = quantized(tensor) and (tensor["worst"] is None or tensor["worst"] > 1)
    return bool(beyond or tensor["nonfinite"] or tensor["differing"])


def worst_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Wrong ones, then by relative error; what is not finite is beyond all that is."""

    def key(tensor: Tensor) -> tuple[bool, float]:
        error = tensor["relative_rms"]
        return wrong(tensor), float("inf") if error is None else error

    return sorted(changed(tensors), key=key, reverse=True)


def tensor_plot(tensors: Sequence[Tensor]) -> Element:
    """One panel of relative errors; below it, where some are, of errors in bounds and of the share
    of differing values. Every point says its tensor's name when pointed at; a tensor with nothing
    to show keeps its place."""
    panels: list[tuple[str, int, dict[str, float], dict[int, float | None]]] = []
    errors = {i: t["relative_rms"] for i, t in enumerate(tensors) if _changed(t)}
    panels.append(("relative RMS error", 200, {}, errors))
    bounds = {i: t["worst"] for i, t in enumerate(tensors) if quantized(t)}
    if bounds:
        panels.append(("largest error, in bounds of its type", 90, {"bound": 1.0}, bounds))
    shares = {i: t["differing"] / t["size"] for i, t in enumerate(tensors) if t["differing"]}
    if shares:
        panels.append(("share of values that differ, of unquantized tensors", 90, {}, dict(shares)))
    kinds = _kinds(changed(tensors))
    drawn: list[Element | None] = []
    top = float(HEAD)
    for title, height, lines, values in panels:
        drawn += _panel(tensors, kinds, title, top, top + height, lines, values)
        top += height + GAP
    bottom = top - GAP
    return element(
        "svg",
        *_layers(tensors, bottom),
        *drawn,
        *_legend(kinds),
        viewBox=f"0 0 {WIDTH} {bottom + FOOT:g}",
        role="img",
        aria_label=f"errors of {len(tensors)} tensors",
    )


def _panel(
    tensors: Sequence[Tensor],
    kinds: Mapping[str, int],
    title: str,
    top: float,
    bottom: float,
    lines: Mapping[str, float],
    values: Mapping[int, float | None],
) -> list[Element | None]:
    shown = [v for v in values.values() if v is None or v > 0]
    scale = scale_over(len(tensors), [*shown, *lines.values()], top, bottom, 2 if lines else 1)
    drawn: list[Element | None] = [
        element("text", title, x=LEFT, y=top - 8),
        *grid(scale),
        *levels(scale, lines),
    ]
    by_kind: dict[int, list[tuple[float, float]]] = {}
    for i, value in values.items():
        if value is None or value > 0:
            y = top if value is None else scale.y(value)
            by_kind.setdefault(kinds[_kind(tensors[i])], []).append((scale.x(i + 0.5), y))
    for colour, places in sorted(by_kind.items()):
        if len(places) > 1 and (colour < KINDS - 1 or len(kinds) <= KINDS):
            path = "M" + "L".join(f"{x} {y}" for x, y in places)
            drawn.append(element("path", d=path, class_=f"join kind{colour}"))
    for i, value in values.items():
        if value is not None and not value > 0:
            continue
        tensor = tensors[i]
        said = "not finite" if value is None else number(value)
        own = f"kind{kinds[_kind(tensor)]}"
        drawn.append(
            element(
                "path",
                element("title", f"{tensor['name']} ({tensor['type']}): {said}"),
                d=f"M{scale.x(i + 0.5)} {top if value is None else scale.y(value)}h0",
                class_="tensor wrong" if wrong(tensor) else f"tensor {own}",
            )
        )
    return drawn


def _kind(tensor: Tensor) -> str:
    """What all layers have one of: "blk.3.ffn_up.weight" is "ffn_up"."""
    return re.sub(r"^(.*\.\d+|model|transformer)\.", "", tensor["name"]).removesuffix(".weight")


def _layer(tensor: Tensor) -> str | None:
    found = re.search(r"\.(\d+)\.", tensor["name"])
    return found[1] if found else None


def _kinds(tensors: Sequence[Tensor]) -> dict[str, int]:
    """A colour for each kind, in the layout's order; the smallest of too many share the last."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[_kind(tensor)] = sizes.get(_kind(tensor), 0) + tensor["size"]
    own = KINDS if len(sizes) <= KINDS else KINDS - 1
    named = sorted(sorted(sizes, key=lambda kind: -sizes[kind])[:own], key=list(sizes).index)
    return {kind: named.index(kind) if kind in named else KINDS - 1 for kind in sizes}


def _layers(tensors: Sequence[Tensor], bottom: float) -> list[Element]:
    """A line where each layer begins, and as many of their numbers as there is room for."""
    step = (WIDTH - LEFT - RIGHT) / len(tensors)
    runs, start = [], 0
    for layer, some in groupby(tensors, key=_layer):
        count = len(list(some))
        runs.append((layer, LEFT + start * step, LEFT + (start + count) * step))
        start += count
    drawn, free = [], 0.0
    for layer, x, end in runs:
        if x > LEFT:
            drawn.append(element("path", d=f"M{x:.1f} {HEAD}V{bottom:g}", class_="grid"))
        middle = (x + end) / 2
        if layer is not None and middle - 4 * len(layer) >= free:
            free = middle + 4 * len(layer) + 4
            y = bottom + 15
            drawn.append(element("text", layer, x=f"{middle:.1f}", y=y, text_anchor="middle"))
    label, middle = "layer; tensors in the layout's order", (LEFT + WIDTH - RIGHT) / 2
    drawn.append(element("text", label, x=middle, y=bottom + FOOT - 6, text_anchor="middle"))
    return drawn


def _legend(kinds: Mapping[str, int]) -> list[Element | None]:
    drawn: list[Element | None] = []
    texts = {colour: kind for kind, colour in kinds.items()}
    if len(kinds) > KINDS:
        texts[KINDS - 1] = f"{len(kinds) - KINDS + 1} others"
    for i, colour in enumerate(sorted(texts)):
        y, text = HEAD + 8 + i * (LINE + 3), texts[colour]
        shown = text if len(text) < 16 else f"{text[:14]}…"
        drawn.append(points(f"tensor kind{colour}", [(WIDTH - RIGHT + 14, y - 4)]))
        drawn.append(element("text", element("title", text), shown, x=WIDTH - RIGHT + 24, y=y))
    return drawn
