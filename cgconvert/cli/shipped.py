"""The recipes that cgconvert ships, and the choice of one by a name."""

from __future__ import annotations

from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.escaping import abridged
from cgconvert.io.file_names import can_exist
from cgconvert.model import family

__all__ = ["STDIN", "find", "implied_source", "shipped", "variants"]

STDIN = Path("-")
"""Written in place of a path, it stands for the standard input."""


def shipped() -> dict[str, Path]:
    """The shipped recipes by name: inside an installed package, at the top of a checkout."""
    here = Path(__file__).resolve().parents[1]
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=_by_size)}


def find(name: str) -> Path:
    """Find a recipe by what a user writes.

    Args:
        name: A path, `-` for the standard input, the name of a shipped recipe, or the name or Hub
            id of a published checkpoint, which has the recipe of its size. The case of letters in
            names does not matter.

    Raises:
        InputError: There is none.
    """
    path, table = Path(name), shipped()
    if not can_exist(path):
        raise InputError(f"{abridged(name)}: no file has such a name")
    if path == STDIN or (path.exists() and not path.is_dir()):
        return path
    recipe = family.canonical_name(name.removesuffix(".yaml"))
    if recipe in table:
        return table[recipe]
    if checkpoint := _published_name(name):
        return table[_of_same_size(checkpoint)]
    if path.is_dir() or ("/" in name and path.suffix not in (".yaml", ".yml")):
        problem = f"is no recipe; for a model of your own: codegen-350M-mono --source {name}"
        raise InputError(f"{name}: {problem}")
    advice = family.did_you_mean(name) or f"shipped are {', '.join(table)}"
    raise InputError(f"{name}: no such recipe; {advice}")


def implied_source(name: str) -> str | None:
    """The source that a recipe's name chooses: the published checkpoint of that name.

    None for every other name: the recipe's own source holds.
    """
    checkpoint = _published_name(name)
    if checkpoint is None or checkpoint in shipped() or find(name) == Path(name):
        return None
    return family.canonical_id(name) if "/" in name else checkpoint


def _published_name(name: str) -> str | None:
    """The name of the published checkpoint that this name or Hub id stands for, in any case."""
    last = family.canonical_name(name.rpartition("/")[2])
    if not family.is_published_checkpoint(last):
        return None
    return last if "/" not in name or family.canonical_id(name) == family.hub_id(last) else None


def variants(recipe: str) -> list[str]:
    """The other published checkpoints that a shipped recipe is for."""
    if not family.is_published_checkpoint(recipe):
        return []
    return [name for name in family.NAMES if name != recipe and _of_same_size(name) == recipe]


def _of_same_size(checkpoint: str) -> str:
    """The shipped recipe for as many layers of the same width; one of the same model if there is.

    MOSS, which has CodeGen's 16B decoder, has that recipe.
    """
    published = family.published(checkpoint)
    size = (published.geometry.n_layer, published.geometry.n_embd)
    fitting = [
        name
        for name in filter(family.is_published_checkpoint, shipped())
        if (family.geometry(name).n_layer, family.geometry(name).n_embd) == size
    ]
    return min(fitting, key=lambda name: family.published(name).model != published.model)


def _by_size(path: Path) -> tuple[str, int, str]:
    """The order of a listing: by model, then by size; the built-in one first."""
    if not family.is_published_checkpoint(path.stem):
        return "", 0, path.stem
    geometry = family.geometry(path.stem)
    return path.stem.split("-")[0], geometry.n_layer * geometry.n_embd**2, path.stem
