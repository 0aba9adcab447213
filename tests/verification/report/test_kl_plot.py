"""The drawing of the divergence: every position has its place, its bound and its mark."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cgconvert.verification.report.plots import (
    KL_HEIGHT,
    KL_TOP,
    WIDTH,
    Scale,
    kl_plot,
    positions_per_column,
)


def points(plot: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    paths = [e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == kind]
    return [(float(x), float(y)) for d in paths for x, y in re.findall(r"M(\S+) (\S+?)h0", d)]


def test_every_position_is_drawn_once_and_those_above_the_bound_apart() -> None:
    values = [1e-5, 0.02, -1e-17, None, 3e-4, 0.01]
    plot = kl_plot(values, {"bound": 0.01}, [("one", 4), ("two", 2)], 0.01)
    inside, above, broken = (points(plot, f"points{k}") for k in ("", " above", " broken"))
    assert (len(inside), len(above), len(broken)) == (4, 1, 1)
    assert broken[0][1] == KL_TOP
    for x, y in [*inside, *above]:
        assert 0 < x < WIDTH
        assert KL_TOP <= y < KL_HEIGHT
    assert inside[0][1] > inside[2][1] > inside[3][1] > above[0][1]  # larger is higher
    (line,) = [e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == "line"]
    assert f" {inside[3][1]}H" in line  # what equals the bound lies on it


def test_of_thousands_of_positions_each_column_shows_its_range_and_mean() -> None:
    values: list[float | None] = [1e-4] * 5000
    values[77:80] = [0.5, 1e-6, None]
    plot = kl_plot(values, {"bound": 0.01}, [("prompt 1", 1000), ("mine.txt", 4000)], 0.01)
    assert (positions_per_column(5000), positions_per_column(1600)) == (13, 1)
    scale = Scale(count=5000, low=-6, high=0, top=KL_TOP, bottom=240)
    drawn = points(plot, "points")
    assert len(drawn) == 385
    x, y = scale.x(6.5 * 13), scale.y((1e-6 + 11 * 1e-4) / 12)  # positions 79 to 91, 80 missing
    assert drawn[6] == (x, y)
    spread = next(e.attrib["d"] for e in plot.iter("path") if e.attrib["class"] == "spread")
    assert f"M{x} {scale.y(1e-6)}V{scale.y(1e-4)}" in spread
    assert points(plot, "points above") == [(scale.x(77.5), scale.y(0.5))]
    assert points(plot, "points broken") == [(scale.x(79.5), KL_TOP)]
    assert {"prompt 1", "mine.txt"} <= {e.text for e in plot.iter("text")}


def test_a_decade_is_a_decade_everywhere() -> None:
    scale = Scale(count=10, low=-8, high=0, top=22, bottom=240)
    steps = np.diff([scale.y(10.0**power) for power in range(-8, 1)])
    assert np.allclose(steps, steps[0], atol=0.11)
    assert scale.y(0.0) == scale.y(1e-16) > scale.y(1e-8)


@pytest.mark.parametrize("values", [[0.0], [None], [1e-3] * 3, [1e-16, 12.0]])
def test_series_without_a_range_can_be_drawn(values: list[float | None]) -> None:
    plot = kl_plot(values, {}, [("one", len(values))], None)
    drawn = points(plot, "points") + points(plot, "points broken")
    assert len(drawn) == len(values)
