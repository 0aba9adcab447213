"""Plants every bug in every type of the models that it has a place in.

python -m tests.mutations                       prints what is missed
python -m tests.mutations --write               also writes docs/mutations.md
python -m tests.mutations --only cache --model sharp
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import torch

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from tests.conftest import first_layers
from tests.mutations import MODELS, MUTATIONS, survey
from tests.mutations.fine_tunes import fine_tune_source
from tests.mutations.peers import Peers
from tests.mutations.table import Row, as_markdown
from tests.support.artefacts import write_all
from tests.support.tampering import checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "mutations.md"


def sharp(folder: Path) -> Checkpoint:
    folder.mkdir()
    return checkpoint(folder, sharpness=4)


SOURCES: Mapping[str, Callable[[Path], Checkpoint]] = {
    "sharp": sharp,
    "trained": lambda _: read(embedded.NAME),
    "fine-tune": fine_tune_source,
    "one layer": lambda _: first_layers(1, positions=96),
}


def rows(model: str, source: Checkpoint, folder: Path, only: str) -> Iterator[Row]:
    peers = Peers.of(source)
    kinds = {type_ for m in MUTATIONS if model in m.models for type_ in m.types}
    valid = write_all(sorted(kinds), source, folder / "valid")
    refused = {type_: peers.caught(plan) for type_, plan in valid.items()}
    chosen = [m for m in MUTATIONS if model in m.models and (only in m.name or only == m.where)]
    pairs = [(mutation, type_) for mutation in chosen for type_ in mutation.types]
    for outcome, plan in survey(pairs, source, valid, folder / "planted"):
        # A method that refuses the valid artefact of this type cannot judge a faulty one.
        verdicts = {
            name: None if refused[outcome.type][name] else caught
            for name, caught in peers.caught(plan).items()
        }
        yield Row(model, outcome, verdicts)


@click.command()
@click.option("--only", default="", help="Part of a bug's name, or where it is planted.")
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, default=MODELS)
@click.option("--write", is_flag=True, help=f"Write docs/{DOCUMENT.name}.")
def main(only: str, models: tuple[str, ...], write: bool) -> None:
    """Exit with 1 if a bug is missed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # some bugs give infinite logits
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CGCONVERT_CACHE"] = f"{scratch}/cache"
        for model in models:
            folder = Path(scratch) / model
            folder.mkdir(parents=True)
            source = SOURCES[model](folder / "source")
            for row in rows(model, source, folder, only):
                results.append(row)
                outcome = row.outcome
                if not outcome.caught:
                    name = f"{model} {outcome.type}, {outcome.mutation.name}"
                    click.echo(f"{name}: MISSED; {outcome.error or ', '.join(outcome.failed)}")
    text = as_markdown(results)
    if write:
        DOCUMENT.write_text(text, encoding="utf-8")
    missed = sum(not row.outcome.caught for row in results)
    click.echo(f"{len(results) - missed} of {len(results)} caught")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
