"""Error by tensor: the numbers are right, the page shows every tensor and the worst first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.report import write_reports
from cgconvert.verification.report.model import as_json_object
from cgconvert.verification.report.plots import is_wrong, tensor_plot, worst_first
from cgconvert.verification.weights import TensorError, check_weights
from tests.support.artefacts import write
from tests.support.reports import HOSTILE, Page, report
from tests.support.tampering import rescale_block


def errors_of(name: str, made: Checkpoint, source: Checkpoint, path: Path) -> list[TensorError]:
    plan = write(name, made, path)
    checks, errors = check_weights(plan.output, plan.format, source.decoder)
    stored = load(plan.format).stored_artefact(plan.output, source.decoder)
    assert [error.name for error in errors] == [n for n in stored.expected if n in stored.tensors]
    for error in errors:  # computed again, whole and in float64
        expected = stored.expected[error.name].read().double()
        actual = stored.tensors[error.name].read().double()
        power = float(expected.norm())
        relative = float((actual - expected).norm()) / power if power else 0.0
        assert error.relative_rms == pytest.approx(relative, rel=1e-5, abs=1e-7)
        assert error.size == expected.numel()
    worst = [e.error_over_bound for e in errors if e.error_over_bound is not None]
    assert max(worst, default=None) == next(
        (check.value for check in checks if check.name == "weights.error"), None
    )
    return errors


@pytest.mark.parametrize(
    ("name", "types", "low", "high"),
    [("gguf-Q8_0", {"Q8_0", "float32"}, 4e-3, 7e-3), ("gguf-Q4_0", {"Q4_0", "float32"}, 0.07, 0.1),
     ("onnx-int4", {"int4", "int8", "float32"}, 4e-3, 0.1),
     ("hf-bfloat16", {"bfloat16"}, 1e-3, 3e-3), ("hf-float16", {"float16"}, None, None)],
)  # fmt: skip
def test_relative_errors_equal_those_computed_in_float64(
    name: str,
    types: set[str],
    low: float | None,
    high: float | None,
    source: Checkpoint,
    tmp_path: Path,
) -> None:
    errors = errors_of(name, source, source, tmp_path)
    assert {error.type for error in errors} == types
    matrices = [e.relative_rms for e in errors if e.size > 10_000]
    if low is None or high is None:
        assert not any(error.relative_rms for error in errors)
    else:
        assert low < min(matrices) <= max(matrices) < high


def test_the_relative_error_of_nan_is_null_and_of_zeros_is_zero(
    tmp_path: Path, source: Checkpoint
) -> None:
    plan = write("gguf-F16", source, tmp_path)
    damaged = (
        load(plan.format)
        .stored_artefact(plan.output, source.decoder)
        .tensors["blk.1.attn_q.weight"]
    )
    rescale_block(damaged, 3, float("nan"))
    errors = check_weights(plan.output, plan.format, source.decoder)[1]
    by_name = {error.name: error for error in errors}
    assert np.isnan(by_name["blk.1.attn_q.weight"].relative_rms)
    assert by_name["blk.1.attn_q.bias"].relative_rms == 0  # zeros, of zeros
    whole = as_json_object([replace(report(), tensors=tuple(errors))])
    entries = {t["name"]: t for t in whole["artefacts"][0]["tensors"]}
    assert entries["blk.1.attn_q.weight"]["relative_rms"] is None
    assert entries["blk.1.attn_q.weight"]["nonfinite"] == 1
    json.dumps(whole, allow_nan=False)


def tensors(layers: int) -> tuple[TensorError, ...]:
    """Errors of a model with 11 tensors in each layer; one in layer 5 exceeds its bound."""
    made = [TensorError("token_embd.weight", "Q8_0", 9000, 0, 0, 0.005, 0.99)]
    for i in range(layers):
        for j in range(6):
            relative, worst = (0.06, 12.0) if (i, j) == (5, 2) else (0.08 + j / 1000, 0.98)
            made.append(TensorError(f"blk.{i}.m{j}.weight", "Q4_0", 4096, 0, 0, relative, worst))
        made += [TensorError(f"blk.{i}.b{j}.bias", "float32", 64, 0, 0, 0.0) for j in range(5)]
    return tuple(made)


def entries_of(errors: tuple[TensorError, ...]) -> list[dict[str, Any]]:
    """The tensors' entries in the JSON object."""
    whole = as_json_object([replace(report(), tensors=errors)])
    entries: list[dict[str, Any]] = whole["artefacts"][0]["tensors"]
    return entries


def test_wrong_tensors_come_first_then_the_largest_errors() -> None:
    ranking = worst_first(entries_of(tensors(34)))
    assert [t["name"] for t in ranking if is_wrong(t)] == ["blk.5.m2.weight"]
    assert ranking[0]["name"] == "blk.5.m2.weight"
    rest = [t["relative_rms"] for t in ranking[1:]]
    assert rest == sorted(rest, reverse=True)
    assert len(ranking) == 34 * 6 + 1  # those with the source's numbers are not ranked


def test_an_adjusted_vector_beyond_its_bound_is_wrong() -> None:
    adjusted = [
        TensorError(f"blk.{i}.norm.bias", "float32", 64, 0, 0, 0.6 * error, error)
        for i, error in enumerate((0.1, 1.0, 2.0))
    ]
    entries = entries_of(tuple(adjusted))
    assert [t["name"] for t in entries if is_wrong(t)] == ["blk.2.norm.bias"]


def test_every_changed_tensor_has_its_point_in_each_panel() -> None:
    entries = entries_of(tensors(34))
    plot = tensor_plot(entries)
    names = [e.text or "" for p in plot.iter("path") for e in p.iter("title")]
    assert len(names) == 2 * (34 * 6 + 1)
    assert names[0] == "token_embd.weight (Q8_0): 0.005"
    drawn = [p for p in plot.iter("path") if p.attrib["class"].startswith("tensor ")]
    red = [p for p in drawn if p.attrib["class"] == "tensor wrong"]
    assert [p[0].text for p in red] == [
        "blk.5.m2.weight (Q4_0): 0.06", "blk.5.m2.weight (Q4_0): 12",
    ]  # fmt: skip
    colours = {p.attrib["class"] for p in drawn}
    assert colours == {"tensor wrong", *(f"tensor kind{i}" for i in range(7))}
    labels = [e.text for e in plot.iter("text")]
    for layer in range(34):
        assert str(layer) in labels


def test_kinds_without_a_colour_share_the_last_and_not_finite_is_drawn() -> None:
    many = tuple(
        TensorError(f"blk.0.k{j}.weight", "bfloat16", j, 0, j == 3, float("nan"), None)
        for j in range(1, 13)
    )
    plot = tensor_plot(entries_of(many))
    labels = [e.text or "" for e in plot.iter("text")] + [
        (e[0].tail or "") for e in plot.iter("text") if len(e)
    ]
    assert "5 others" in labels
    assert "share of values that differ, in unquantized tensors" in labels
    assert sum("not finite" in (e.text or "") for e in plot.iter("title")) == 12


def page_of(errors: tuple[TensorError, ...], path: Path) -> tuple[Page, str]:
    write_reports([replace(report(), tensors=errors)], path)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_has_the_plot_and_a_table_of_the_worst(tmp_path: Path) -> None:
    page, _ = page_of(tensors(34), tmp_path / "v.html")
    table = page.tables[-1]
    assert table[0][:4] == ["tensor", "type", "values", "relative RMS error"]
    assert len(table) == 11
    assert table[1] == ["blk.5.m2.weight", "Q4_0", "4,096", "0.06", "12", "0", "0"]
    rows = [a.get("class") for tag, a in page.elements if tag == "tr"]
    assert rows[-10:] == ["failed", *[None] * 9]
    assert any("170 of 375 tensors have the source's numbers" in word for word in page.words)


def test_unchanged_tensors_are_counted_and_not_drawn(tmp_path: Path) -> None:
    same = tuple(TensorError(f"blk.{i}.w", "float16", 9, 0, 0, 0.0) for i in range(7))
    page, text = page_of(same, tmp_path / "v.html")
    assert "All 7 tensors have the source's numbers, none of them rounded." in page.words
    assert text.count("<svg") == 1  # the divergence


def test_names_of_tensors_are_text(tmp_path: Path) -> None:
    page, text = page_of((TensorError(HOSTILE, "Q4_0", 9, 0, 0, 0.1, 2.0),), tmp_path / "v.html")
    assert "<script" not in text
    assert not [tag for tag, _ in page.elements if tag in ("script", "b", "i")]
