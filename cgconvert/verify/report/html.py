"""A verification as one HTML page that needs nothing else: no script, no font, no request.

The page is a tree of elements (see markup.py), so a name out of a file cannot become markup; a
Content-Security-Policy forbids what is not in the file. Numbers are `data` elements that hold every
digit of the JSON report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from xml.etree.ElementTree import Element, tostring

from cgconvert.verify.report.kl_plot import in_columns, kl_plot
from cgconvert.verify.report.markup import element
from cgconvert.verify.report.style import STYLE
from cgconvert.verify.report.tensor_plot import changed, tensor_plot, worst_first, wrong
from cgconvert.verify.report.words import SUMMARY, bound, number, ran

__all__ = ["as_html"]

WORDS = {"pass": "passed", "info": "info", "warning": "warning", "fail": "failed"}

WORST = 10
"""Tensors in a table of the worst."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def as_html(whole: Mapping[str, Any]) -> str:
    """From the JSON object of schema 1 (see report.py)."""
    artefacts = whole["artefacts"]
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{WORDS[whole['verdict']]}: cgconvert verify"),
            element("style", STYLE),
        ),
        element(
            "body",
            element("header", *_opening(whole)),
            element(
                "main",
                element("section", _overview(artefacts), aria_label="Artefacts"),
                *(_artefact(artefact, i) for i, artefact in enumerate(artefacts, 1)),
            ),
        ),
        lang="en",
    )
    for tag in ("head", "body", "main", "header", "article", "section", "tr", "h3", "table"):
        for found in page.iter(tag):  # a page a person can read in an editor, too
            found.tail = found.tail or "\n"
    return f"<!DOCTYPE html>\n{tostring(page, encoding='unicode', method='html')}\n"


def _opening(whole: Mapping[str, Any]) -> list[Element]:
    artefacts, tool = whole["artefacts"], whole["tool"]
    bad = [a["artefact"]["path"] for a in artefacts if a["verdict"] == "fail"]
    kept = len(artefacts) - len(bad)
    said = f"{kept} of {len(artefacts)} artefacts passed"
    if bad:
        said += f"; failed: {', '.join(bad)}"
    warned = sum(a["verdict"] == "warning" for a in artefacts)
    if warned:
        said += f"; with warnings: {warned}"
    return [
        element("h1", "Verification ", _verdict(whole["verdict"], "with warnings")),
        element("p", f"{said}."),
        element("p", f"{tool['name']} {tool['version']}", class_="quiet"),
    ]


def _overview(artefacts: Sequence[Mapping[str, Any]]) -> Element:
    rows = []
    for i, artefact in enumerate(artefacts, 1):
        checks = {check["name"]: check for check in artefact["checks"]}
        what, runtime = artefact["artefact"], artefact["runtime"]
        bad = [name for name, check in checks.items() if check["verdict"] == "fail"]
        rows.append(
            element(
                "tr",
                element("td", _verdict(artefact["verdict"])),
                element("th", element("a", what["path"], href=f"#artefact-{i}"), scope="row"),
                element("td", f"{what['format']} {what['type']}"),
                element("td", f"{runtime['name']} {runtime['version']}"),
                *(_value(checks[name]["value"] if name in checks else None) for name in SUMMARY),
                element("td", ", ".join(bad), class_="detail"),
                class_="failed" if artefact["verdict"] == "fail" else None,
            )
        )
    heads = ["verdict", "artefact", "type", "runtime", *SUMMARY.values(), "failed checks"]
    return _table(heads, rows, numbers=SUMMARY.values())


def _artefact(artefact: Mapping[str, Any], place: int) -> Element:
    rows = [
        element(
            "tr",
            element("td", _verdict(check["verdict"])),
            element("th", check["name"], scope="row"),
            _value(check["value"]),
            _value(check["threshold"], bound(check["comparison"], check["threshold"])),
            element("td", check["detail"], class_="detail"),
            class_="failed" if check["verdict"] == "fail" else None,
        )
        for check in artefact["checks"]
    ]
    return element(
        "article",
        element("h2", _verdict(artefact["verdict"]), f" {artefact['artefact']['path']}"),
        element("p", ran(artefact), class_="quiet"),
        _table(["verdict", "check", "value", "bound", "detail"], rows, numbers=("value", "bound")),
        *_divergence(artefact),
        *_tensors(artefact.get("tensors", ())),
        element("h3", "Provenance"),
        element("dl", *_provenance(artefact)),
        id=f"artefact-{place}",
    )


def _divergence(artefact: Mapping[str, Any]) -> list[Element]:
    values = artefact.get("series", {}).get("logits.kl")
    if not values:
        return []
    found = {check["name"]: check["threshold"] for check in artefact["checks"]}
    mean, p99 = found.get("logits.kl_mean"), found.get("logits.kl_p99")
    bounds = {"p99 <=": p99, "mean <=": mean}
    lines = {name: at for name, at in bounds.items() if at is not None}
    broken = sum(value is None for value in values)
    caption = "KL(reference || artefact) in nats at every position"
    width = in_columns(len(values))
    if width > 1:
        caption += f", {width} of them in a column: their range, and their mean as a point"
    if p99 is not None:
        above = sum(value is not None and value > p99 for value in values)
        caption += f"; {above} of {len(values)} above the bound on the 99th percentile"
    if broken:
        caption += f"; {broken} not finite, marked at the top"
    plot = kl_plot(values, lines, _sequences(artefact["prompts"]), p99)
    return [
        element("h3", "Divergence along positions"),
        element("figure", plot, element("figcaption", f"{caption}.")),
    ]


def _sequences(prompts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Name and tokens of each prompt, then of each text as a whole."""
    texts = prompts.get("texts", ())
    own = prompts["sequences"] - sum(text["sequences"] for text in texts)
    named = [(f"prompt {i}", n) for i, n in enumerate(prompts["lengths"][:own], 1)]
    return named + [(PurePath(text["name"]).name, text["tokens"]) for text in texts]


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> list[Element]:
    if not tensors:
        return []
    heading, some = element("h3", "Error by tensor"), changed(tensors)
    same = len(tensors) - len(some)
    if not some:
        said = f"All {same} tensors have the source's numbers, none of them rounded."
        return [heading, element("p", said)]
    caption = "Relative error: ||stored - source|| / ||source||"
    if same:
        caption += f"; {same} of {len(tensors)} tensors have the source's numbers and no point"
    ranking = worst_first(tensors)
    rows = [
        element(
            "tr",
            element("th", tensor["name"], scope="row"),
            element("td", tensor["type"]),
            _value(tensor["size"], f"{tensor['size']:,}"),
            _value(tensor["relative_rms"]),
            _value(tensor["worst"]),
            _value(tensor["differing"]),
            _value(tensor["nonfinite"]),
            class_="failed" if wrong(tensor) else None,
        )
        for tensor in ranking[:WORST]
    ]
    numbers = ("values", "relative RMS error", "error in bounds", "differing", "not finite")
    return [
        heading,
        element("figure", tensor_plot(tensors), element("figcaption", f"{caption}.")),
        element("h3", "Worst tensors"),
        _table(["tensor", "type", *numbers], rows, numbers),
    ]


def _provenance(artefact: Mapping[str, Any]) -> list[Element]:
    """All keys of the JSON object, one below the other: new ones need no change here."""
    rows = {f"sha256 of {name}": sha for name, sha in artefact["artefact"]["files"].items()}
    for group in ("source", "reference", "runtime", "prompts", "texts"):
        for key, value in artefact[group].items():
            rows[f"{group}: {key}"] = _said(value) or "-"
    return [part for k, v in rows.items() for part in (element("dt", k), element("dd", v))]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        between = "; " if any(isinstance(inner, Mapping) for inner in value) else ", "
        return between.join(map(_said, value))
    return str(value)


def _table(heads: Sequence[str], rows: Sequence[Element], numbers: Iterable[str]) -> Element:
    right = set(numbers)
    head = [element("th", h, scope="col", class_="number" if h in right else None) for h in heads]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    return element("div", table, class_="scroll")


def _verdict(verdict: str, warning: str = "") -> Element:
    word = f"passed {warning}" if warning and verdict == "warning" else WORDS[verdict]
    return element("span", word, class_=f"verdict {verdict}")


def _value(value: float | None, shown: str | None = None) -> Element:
    """A cell; the attribute has all digits."""
    text = number(value) if shown is None else shown
    inner = text if value is None else element("data", text, value=repr(value))
    return element("td", inner, class_="number")
