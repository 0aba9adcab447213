"""The document docs/mutations.md: which checks and which other methods catch each bug."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.mutations.survey import Outcome

__all__ = ["Row", "as_markdown"]

HEAD = """\
# Planted conversion bugs

Written by `python -m tests.mutations --write`. Each bug is planted in real artefacts of every type
it has a place in: of the embedded trained model and of a small random one with sharp attention, or
of a fine-tune with tokens, a chat template and settings of its own.
The manifest's hashes are made to fit, so that each is caught for what it is; `verify` counts only
where a check fails that the bug is about. The tests plant each of them too, in one type at a time.
A bug of the reader is planted in the source of the artefact and of `verify`, which read it alike.

Beside it stands what a comparison of logits alone would have said: `verify`'s own `logits.*`
checks; the normalised mean squared error of the last token's logits below 1e-2 that llama.cpp's
examples/model-conversion asks for; the absolute difference of 1e-3 above which optimum's exporter
warns. The last two are given one prompt, and count only in the types whose right artefact they
pass: rounding to 4 bits alone is more than optimum allows.
"""


@dataclass(frozen=True)
class Row:
    """One faulty artefact; `peers` holds by method whether it was caught, None if not compared."""

    model: str
    outcome: Outcome
    peers: Mapping[str, bool | None]


Caught = Callable[[Row], bool | None]

METHODS: Mapping[str, Caught] = {
    "verify": lambda row: row.outcome.caught,
    "logits.*": lambda row: row.outcome.by_logits,
    "last token NMSE": lambda row: row.peers["NMSE"],
    "atol 1e-3": lambda row: row.peers["atol"],
}


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the document: totals, bugs that logits never show, and a row for each bug."""
    bugs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        bugs.setdefault((row.outcome.mutation.where, row.outcome.mutation.name), []).append(row)
    lines = [HEAD, f"{len(bugs)} bugs, {len(rows)} artefacts:", ""]
    lines += ["| method | caught |", "|---|---|"]
    lines += [f"| {name} | {_count(rows, caught, ' of ')} |" for name, caught in METHODS.items()]
    hidden = [
        name
        for name, rows_of_bug in bugs.items()
        if not any(r.outcome.by_logits for r in rows_of_bug)
    ]
    seldom = [
        name
        for name, rows_of_bug in bugs.items()
        if name not in hidden and not all(row.outcome.by_logits for row in rows_of_bug)
    ]
    lines += [
        "",
        f"Logits show {len(hidden)} of the bugs in no artefact at all, and {len(seldom)} more only "
        "in some types: in 4 and",
        "8 bits what a bug changes is often less than what rounding does.",
        "",
    ]
    lines += [
        "Numbers are artefacts in which the bug was caught, of those it was planted in.",
        "",
        f"| bug | where | caught by | {' | '.join(METHODS)} |",
        f"|---|---|---|{'---|' * len(METHODS)}",
    ]
    for (where, name), rows_of_bug in bugs.items():
        cells = " | ".join(_count(rows_of_bug, caught, "/") for caught in METHODS.values())
        lines.append(f"| {name} | {where} | {_by(rows_of_bug)} | {cells} |")
    return "\n".join(lines) + "\n"


def _by(rows: Sequence[Row]) -> str:
    """Return the failed checks among those that name the bug."""
    failed = {name for row in rows for name in row.outcome.failed}
    return ", ".join(f"`{name}`" for name in sorted(failed & rows[0].outcome.mutation.caught_by))


def _count(rows: Sequence[Row], caught: Caught, of: str) -> str:
    verdicts = [caught(row) for row in rows if caught(row) is not None]
    return f"{sum(map(bool, verdicts))}{of}{len(verdicts)}" if verdicts else ""
