"""A verification as one HTML page that needs nothing else: no script, no font, no request.

The page is a tree of elements (see markup.py), so a name out of a file cannot become markup; a
Content-Security-Policy forbids what is not in the file. Numbers are `data` elements that hold every
digit of the JSON report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, tostring

from cgconvert.verify.markup import element
from cgconvert.verify.report_plot import kl_plot
from cgconvert.verify.report_words import SUMMARY, bound, number, ran

__all__ = ["as_html"]

WORDS = {"pass": "passed", "info": "info", "warning": "warning", "fail": "failed"}

# Colours keep a contrast of 4.5 to their ground in both modes; no verdict is told by colour alone.
STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --raised: #f6f8fa; --text: #1f2328; --quiet: #57606a; --rule: #d0d7de;
  --pass: #1a7f37; --info: #57606a; --warning: #8a5a00; --fail: #b91c1c; --point: #0759b8; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #0d1117; --raised: #161b22; --text: #e6edf3; --quiet: #9da7b3; --rule: #3d444d;
  --pass: #3fb950; --info: #9da7b3; --warning: #d29922; --fail: #ff7b72; --point: #6cb6ff; } }
body { background: var(--ground); color: var(--text); margin: 2rem auto; max-width: 72rem;
  padding: 0 1.5rem; font: 15px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
article { border-top: 1px solid var(--rule); margin-top: 2rem; padding-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem .75rem .3rem .5rem; text-align: left;
  vertical-align: top; }
thead th { background: var(--raised); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.detail, .quiet, figcaption, dt { color: var(--quiet); }
.detail { overflow-wrap: anywhere; }
.verdict { font-weight: 600; white-space: nowrap; }
.pass { color: var(--pass); } .info { color: var(--info); font-weight: 400; }
.warning { color: var(--warning); } .fail { color: var(--fail); }
tr.failed > * { box-shadow: inset 0 -100px color-mix(in srgb, var(--fail) 9%, transparent); }
code, dd { font-family: ui-monospace, monospace; font-size: .87em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem; margin: 0; }
dd { margin: 0; }
a { color: inherit; }
figure { margin: 0; }
svg { display: block; height: auto; width: 100%; }
svg text { fill: var(--quiet); font: 11.5px system-ui, sans-serif; }
svg path { fill: none; }
.grid { stroke: var(--rule); stroke-width: .7; }
.line { stroke: var(--warning); stroke-width: 1.3; stroke-dasharray: 6 4; }
.points { stroke: var(--point); stroke-linecap: round; stroke-width: 3.4; stroke-opacity: .75; }
.points.above, .points.broken { stroke: var(--fail); stroke-opacity: 1; stroke-width: 5; }
@media print { article { break-inside: avoid-page; } }
"""

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
    caption = "KL(reference || artefact) in nats at every position of the prompts"
    if p99 is not None:
        above = sum(value is not None and value > p99 for value in values)
        caption += f"; {above} of {len(values)} above the bound on the 99th percentile"
    if broken:
        caption += f"; {broken} not finite, marked at the top"
    plot = kl_plot(values, lines, artefact["prompts"].get("lengths", ()), p99)
    return [
        element("h3", "Divergence along positions"),
        element("figure", plot, element("figcaption", f"{caption}.")),
    ]


def _provenance(artefact: Mapping[str, Any]) -> list[Element]:
    """All keys of the JSON object, one below the other: new ones need no change here."""
    rows = {f"sha256 of {name}": sha for name, sha in artefact["artefact"]["files"].items()}
    for group in ("source", "reference", "runtime", "prompts", "texts"):
        for key, value in artefact[group].items():
            said = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows[f"{group}: {key}"] = said
    return [part for k, v in rows.items() for part in (element("dt", k), element("dd", v))]


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
