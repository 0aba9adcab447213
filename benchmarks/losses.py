"""Shared by the quality benchmarks: evaluation text, losses, their table and their plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np
from measuring import RESULTS, store

from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import STDLIB, read_text
from cgconvert.verification.metrics import Distribution, measure
from cgconvert.verification.reference import Reference
from cgconvert.verification.report.html import stylesheet
from cgconvert.verification.report.plots import (
    LEFT,
    RIGHT,
    WIDTH,
    Scale,
    element,
    grid,
    points,
    scale_over,
)

__all__ = ["EvaluationText", "Row", "draw", "store_rows", "table"]

LENGTH = 256
TOP, BOTTOM, HEIGHT = 16, 420, 460


@dataclass(frozen=True)
class Row:
    """One file: its bytes, the seconds to make it from F16 or the source, and its losses."""

    name: str
    nbytes: int
    seconds: float
    kl: float
    kl_p99: float
    top1: float
    perplexity_ratio: float

    @property
    def series(self) -> str:
        """The group of files that is drawn in one colour."""
        if self.name.startswith("ours"):
            return "ours calibrated" if "calibrated" in self.name else "ours, no text"
        return self.name.split()[0] + (" + imatrix" if self.name.endswith("imatrix") else "")


class EvaluationText:
    """The first tokens of the evaluation text, and the float16 reference's outputs on them."""

    def __init__(self, source: Checkpoint, tokens: int) -> None:
        ids = read_text(STDLIB).ids(source.tokenizer, tokens)
        self.sequences = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
        self.tokens = sum(map(len, self.sequences))
        outputs = Reference(source.decoder).distributions(self.sequences, source.tokenizer.size)
        self._reference = Distribution.joined(outputs)

    def row(self, name: str, nbytes: int, seconds: float, logits: np.ndarray) -> Row:
        """Compare with the reference: `logits` after every token, float32 [tokens, vocabulary]."""
        loss = measure(self._reference, logits)
        ratio = loss.perplexity_ratio or 0.0
        return Row(name, nbytes, seconds, loss.kl_mean, loss.kl_p99, loss.top1, ratio)


def table(rows: Sequence[Row], base: Row, base_name: str, kl_base_name: str) -> list[str]:
    """A Markdown table, in units of `base`, with its names in the headings of bytes and KL."""
    return [
        f"| | bytes | of {base_name} | KL | × {kl_base_name} | p99 | top-1 | perplexity "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.nbytes:,} | {r.nbytes / base.nbytes:.2f} | {r.kl:.3g} | "
            f"{r.kl / base.kl:.2f} | {r.kl_p99:.3g} | {r.top1:.4f} | {r.perplexity_ratio:.4f} | "
            f"{r.seconds:.1f} |"
            for r in rows
        ),
    ]


def store_rows(
    name: str, facts: dict[str, Any], rows: Sequence[Row], lines: Sequence[str], x_label: str
) -> None:
    """Write results/<name>.json, .md and .svg."""
    store(name, {**facts, "rows": [vars(r) for r in rows]}, [*lines, "", f"![]({name}.svg)"])
    draw(RESULTS / f"{name}.svg", rows, x_label)


def draw(path: Path, rows: Sequence[Row], x_label: str) -> None:
    """Plot KL over bytes as SVG, with a logarithmic scale and one colour for each series."""
    rows = [row for row in sorted(rows, key=lambda r: r.nbytes) if row.kl > 1e-6]
    first, last = rows[0].nbytes, rows[-1].nbytes
    margin = max(1, (last - first) // 20)
    scale = scale_over(last - first + 2 * margin, [r.kl for r in rows], TOP, BOTTOM, decades=1)

    def at(row: Row) -> tuple[float, float]:
        return scale.x(row.nbytes - first + margin), scale.y(row.kl)

    drawn: list[Element | None] = []
    for kind, series in enumerate(dict.fromkeys(row.series for row in rows)):
        members = [row for row in rows if row.series == series]
        y = TOP + 8 + 18 * kind
        drawn += [
            points(f"tensor kind{kind}", [at(row) for row in members]),
            points(f"tensor kind{kind}", [(WIDTH - 8, y)]),
            element("text", series, x=WIDTH - 16, y=y + 4, text_anchor="end"),
        ]
    style = stylesheet() + "rect { fill: var(--ground); }"
    svg = element(
        "svg",
        element("style", style),
        element("rect", width=WIDTH, height=HEIGHT),
        *grid(scale),
        *drawn,
        *_labels([(*at(row), row.name.removeprefix(row.series).strip(" ,")) for row in rows]),
        *_foot(scale, first - margin, x_label),
        element("text", "KL", x=4, y=TOP + 4),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
    )
    path.write_text(tostring(svg, encoding="unicode") + "\n")


def _labels(places: Sequence[tuple[float, float, str]]) -> list[Element]:
    """The name of each point beside it, omitted where it would cover another one."""
    drawn: list[Element] = []
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y, _ in places]
    for x, y, text in places:
        text = text.removeprefix("llama-quantize ").removesuffix(" + imatrix")
        width = 6.6 * len(text)
        for left, base in ((x + 6, y + 4), (x - 6 - width, y + 4), (x + 4, y + 15), (x + 4, y - 7)):
            box = (left, base - 9, left + width, base + 2)
            if box[2] > WIDTH - RIGHT or any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                continue
            taken.append(box)
            drawn.append(element("text", text, x=round(left, 1), y=round(base, 1)))
            break
    return drawn


def _foot(scale: Scale, start: int, label: str) -> list[Element]:
    """The axis of bytes, with at most seven marks in MB."""
    step = next(s for s in (10**d * m for d in range(4, 12) for m in (1, 2, 5))
                if scale.count / s <= 7)  # fmt: skip
    drawn = []
    for mark in range(-(-start // step) * step, start + scale.count, step):
        x = scale.x(mark - start)
        drawn.append(element("path", d=f"M{x} {BOTTOM}v5", class_="grid"))
        drawn.append(element("text", f"{mark / 1e6:g}", x=x, y=BOTTOM + 17, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*drawn, element("text", label, x=middle, y=HEIGHT - 8, text_anchor="middle")]
