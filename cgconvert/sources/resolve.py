"""From what a user typed to a place on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.errors import InputError
from cgconvert.model import family
from cgconvert.sources import hub, tarball

__all__ = ["Source", "find"]


@dataclass(frozen=True)
class Source:
    """A folder or file, what it is called, and where it came from (for the manifest)."""

    path: Path
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)


def find(given: str, revision: str | None = None) -> Source:
    """Resolve a path, the embedded model, a family name or a Hub id, in this order.

    A family name is looked for at ./checkpoints/<name>, ./checkpoints/<name>.tar.gz and ./<name>,
    then in the Hub cache, then downloaded. Raises InputError where there is nothing.
    """
    path = Path(given)
    if given == embedded.NAME and not path.exists():
        return Source(embedded.path(), embedded.NAME, {"embedded": embedded.NAME})
    if family.is_member(given):
        for candidate in (
            Path("checkpoints") / given,
            Path("checkpoints") / f"{given}.tar.gz",
            Path(given),
        ):
            if candidate.exists():
                return _local(candidate)
        return _from_hub(family.hub_id(given), given, revision)
    if path.exists():
        return _local(path)
    if _is_hub_id(given):
        return _from_hub(given, given.split("/")[1], revision)
    raise InputError(
        f"{given}: no such file or folder, and not a name of the family "
        f"({family.NAMES[0]} ... {family.NAMES[-1]}) or {embedded.NAME}"
    )


def _local(path: Path) -> Source:
    if path.is_file() and tarball.is_tarball(path):
        folder, record = tarball.unpack(path)
        return Source(folder, tarball.stem(path), record)
    resolved = path.resolve()
    if path.is_dir():
        return Source(path, resolved.name)
    return Source(path, resolved.parent.name if path.suffix != ".gguf" else path.stem)


def _from_hub(repository: str, name: str, revision: str | None) -> Source:
    folder, commit = hub.checkpoint(repository, revision)
    return Source(folder, name, {"hub": repository, "revision": commit})


def _is_hub_id(given: str) -> bool:
    parts = given.split("/")
    return len(parts) == 2 and all(parts) and not given.startswith((".", "~"))
