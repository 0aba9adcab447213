"""Correct artefacts of every type, verified: how near each check comes to its bound.

    python -m tests.verification.false_alarms --seeds 10
    python -m tests.verification.false_alarms --seeds 2 --size 350M --vocabulary 4096 --type int4

Random models of the family's geometries with their layers cut, with nearly uniform and with sharp
attention. What a check says of a correct artefact is noise, and a bound has to be well above the
worst of it. Leaves with 1 where a check failed.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.testing import synthetic
from cgconvert.verification.observe import NEW_TOKENS
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.verify import verify
from tests.support.artefacts import WRITERS, write

__all__ = ["CheckResult", "Worst", "as_markdown", "geometry", "random_model", "run", "worst_of"]

PADDING = 51200 - 50295
"""Rows of the published models that no token has."""


@dataclass(frozen=True)
class CheckResult:
    """One check of one artefact; `model` says which."""

    type: str
    model: str
    check: Check

    @property
    def deviation(self) -> float:
        """How far the value is from what a perfect artefact has, in the direction that fails."""
        value = self.check.value
        if value is None:
            return -math.inf
        if math.isnan(value):
            return math.inf
        return value - self._ideal if self.check.comparison == "<=" else self._ideal - value

    @property
    def share(self) -> float | None:
        """The deviation as a share of what the bound allows; None where there is no bound."""
        threshold = self.check.threshold
        if threshold is None or self.check.value is None:
            return None
        allowed = abs(threshold - self._ideal)
        if not allowed:
            return 0.0 if self.deviation <= 0 else math.inf
        return self.deviation / allowed

    @property
    def _ideal(self) -> float:
        """Agreement and ratios are 1 where nothing is lost, everything else is 0."""
        return float(self.check.comparison == ">=" or self.check.name.endswith("ratio"))


@dataclass(frozen=True)
class Worst:
    """The worst of one check over all artefacts of a type, and how many of them failed it."""

    result: CheckResult
    count: int
    failed: int


def geometry(
    size: str,
    vocabulary: int,
    layers: int = 2,
    heads: int | None = None,
    positions: int | None = None,
) -> Geometry:
    """A published geometry with fewer layers and, where told so, fewer heads and positions."""
    whole = family.SIZES[size]
    heads = heads or whole.n_head
    return replace(
        whole,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * whole.head_dim,
        n_inner=4 * heads * whole.head_dim,
        n_positions=positions or whole.n_positions,
        vocab_size=vocabulary,
    )


def random_model(
    size: str, made: Geometry, seed: int, sharpness: float, folder: Path
) -> Checkpoint:
    """A checkpoint of random weights, written to the folder and read like any other.

    Its tokenizer is the embedded one, filled up with tokens that no text has until only as many
    rows are left as the published models have.
    """
    state = synthetic.RandomState(made, seed, sharpness=sharpness)
    path = synthetic.write("safetensors", state, made, folder, f"codegen-{size}-mono", None)
    tokenizer = Tokenizer.load(embedded.path())
    filled = tokenizer.size
    extra = {f"~{n}~": n for n in range(filled, made.vocab_size - PADDING)}
    if extra:
        vocabulary = {**tokenizer.vocabulary, **extra}
        tokenizer = Tokenizer.from_parts(vocabulary, tokenizer.merges, tokenizer.added)
    for name, content in tokenizer.files(made.n_positions).items():
        (path / name).write_bytes(content)
    return read(str(path))


def run(
    source: Checkpoint,
    label: str,
    types: Iterable[str],
    folder: Path,
    new_tokens: int = NEW_TOKENS,
    threads: int = 1,
) -> Iterator[list[CheckResult]]:
    """Write each type, verify it, take it away; yield its checks."""
    for type_ in types:
        plan = write(type_, source, folder)
        report = verify(
            plan.output, plan.format, plan.type, source, "cpu",
            new_tokens=new_tokens, threads=threads,
        )  # fmt: skip
        if plan.is_folder:
            shutil.rmtree(plan.output)
        else:
            plan.output.unlink()
        yield [CheckResult(type_, label, check) for check in report.checks]


def worst_of(results: Sequence[CheckResult]) -> list[Worst]:
    """The worst result of each type and check, in the order in which they first occur."""
    groups: dict[tuple[str, str], list[CheckResult]] = {}
    for result in results:
        groups.setdefault((result.type, result.check.name), []).append(result)
    return [
        Worst(
            max(group, key=lambda s: s.deviation),
            len(group),
            sum(s.check.verdict == Verdict.FAIL for s in group),
        )
        for group in groups.values()
    ]


def as_markdown(worst_results: Sequence[Worst]) -> str:
    """A line for each type and check with a bound other than 0, or that failed."""
    lines = [
        "| type | check | worst | bound | share of it | of | failed in |",
        "|---|---|---|---|---|---|---|",
    ]
    exact: set[str] = set()
    for worst in worst_results:
        result, check = worst.result, worst.result.check
        if check.threshold == 0 and not worst.failed:
            exact.add(check.name)
            continue
        if check.value is None and not worst.failed:
            continue
        value = "" if check.value is None else f"{check.value:.3g}"
        bound = "" if check.threshold is None else f"{check.comparison} {check.threshold:.4g}"
        share = "" if result.share is None else f"{result.share:.0%}"
        failed = f"**{worst.failed} of {worst.count}**" if worst.failed else f"0 of {worst.count}"
        cells = (result.type, check.name, value, bound, share, result.model, failed)
        lines.append(f"| {' | '.join(cells)} |")
    if exact:
        lines += [
            "",
            f"Exactly 0 as demanded wherever not named above: {', '.join(sorted(exact))}.",
        ]
    return "\n".join(lines)


def _chosen(names: Sequence[str]) -> list[str]:
    """Types by their whole name or the last part of it."""
    for name in names:
        if not any(_is(type_, name) for type_ in WRITERS):
            raise click.UsageError(f"no type {name!r}; there are {', '.join(WRITERS)}")
    return [t for t in WRITERS if not names or any(_is(t, name) for name in names)]


def _is(type_: str, name: str) -> bool:
    return type_ == name or type_.endswith(f"-{name}")


@contextmanager
def _scratch(work: Path | None) -> Iterator[Path]:
    """A folder for a model, its artefacts, and what verify keeps of its reference."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        os.environ["CGCONVERT_CACHE"] = f"{folder}/cache"
        yield Path(folder)


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--first-seed", type=int, default=0, show_default=True)
@click.option("--size", "sizes", type=click.Choice(list(family.SIZES)), multiple=True)
@click.option("--type", "types", multiple=True, help="Such as int4, hf-phi-float16, gguf-Q4_0.")
@click.option("--vocabulary", type=click.IntRange(1), default=51200, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--heads", type=click.IntRange(4), help="Cut the width to so many heads.")
@click.option("--positions", type=click.IntRange(2), help="Cut the context to so many.")
@click.option(
    "--sharpness", type=float, multiple=True, default=(1.0, 4.0), show_default=True,
    help="Of attention; the seeds take turns.",
)  # fmt: skip
@click.option("--trained", is_flag=True, help="The embedded model as well.")
@click.option("--new-tokens", type=click.IntRange(0), default=NEW_TOKENS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(
    seeds: int,
    first_seed: int,
    sizes: tuple[str, ...],
    types: tuple[str, ...],
    vocabulary: int,
    layers: int,
    heads: int | None,
    positions: int | None,
    sharpness: tuple[float, ...],
    trained: bool,
    new_tokens: int,
    threads: int,
    work: Path | None,
) -> None:
    """Print the worst value of each check of each type over correct artefacts."""
    chosen = _chosen(types)
    results: list[CheckResult] = []

    def add(source: Checkpoint, label: str, folder: Path) -> None:
        for checks in run(source, label, chosen, folder, new_tokens, threads):
            failed = [s.check.name for s in checks if s.check.verdict == Verdict.FAIL]
            click.echo(f"{label} {checks[0].type}: {', '.join(failed) or 'passed'}", err=True)
            results.extend(checks)

    for number in range(seeds):
        seed, sharp = first_seed + number, sharpness[number % len(sharpness)]
        for size in sizes or family.SIZES:
            with _scratch(work) as folder:
                made = geometry(size, vocabulary, layers, heads, positions)
                source = random_model(size, made, seed, sharp, folder)
                add(source, f"{size} seed {seed} sharpness {sharp:g}", folder)
    if trained:
        with _scratch(work) as folder:
            add(read(embedded.NAME), embedded.NAME, folder)
    worst_results = worst_of(results)
    click.echo(as_markdown(worst_results))
    if any(worst.failed for worst in worst_results):
        sys.exit(1)


if __name__ == "__main__":
    main()
