"""Resolve a model's name or path to a file or folder on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.errors import InputError
from cgconvert.model import family
from cgconvert.sources import hub, tarball

__all__ = ["Source", "resolve"]


@dataclass(frozen=True)
class Source:
    """A folder or file with a checkpoint.

    `name` is the model's; `origin` tells the manifest where it came from: a Hub repository and
    commit, an archive and its hash, or nothing for a path.
    """

    path: Path
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)


def resolve(location: str, revision: str | None = None) -> Source:
    """Resolve the embedded model's name, a family name, a path or a Hub id, in this order.

    Args:
        location: The name, path or id. A family name (codegen-350M-mono) is looked for at
            ./checkpoints/<name>, ./checkpoints/<name>.tar.gz and ./<name>, then in the Hub cache,
            then downloaded. A tarball is unpacked into the cache.
        revision: Branch, tag or commit on the Hub.

    Raises:
        InputError: There is no such model, or it cannot be downloaded or unpacked.
    """
    path = Path(location)
    if location == embedded.NAME and not path.exists():
        return Source(embedded.path(), embedded.NAME, {"embedded": embedded.NAME})
    if family.is_member(location):
        for candidate in (
            Path("checkpoints") / location,
            Path("checkpoints") / f"{location}.tar.gz",
            path,
        ):
            if candidate.exists():
                return _local(candidate)
        return _from_hub(family.hub_id(location), location, revision)
    if path.exists():
        return _local(path)
    if _is_hub_id(location):
        return _from_hub(location, location.split("/")[1], revision)
    raise InputError(
        f"{location}: no such file or folder, and not a name of the family "
        f"({family.NAMES[0]} ... {family.NAMES[-1]}) or {embedded.NAME}"
    )


def _local(path: Path) -> Source:
    if path.is_file() and tarball.is_tarball(path):
        folder, origin = tarball.unpack(path)
        return Source(folder, tarball.stem(path), origin)
    resolved = path.resolve()
    if path.is_dir():
        return Source(path, resolved.name)
    return Source(path, resolved.parent.name if path.suffix != ".gguf" else path.stem)


def _from_hub(repository: str, name: str, revision: str | None) -> Source:
    folder, commit = hub.fetch_checkpoint(repository, revision)
    return Source(folder, name, {"hub": repository, "revision": commit})


def _is_hub_id(location: str) -> bool:
    parts = location.split("/")
    return len(parts) == 2 and all(parts) and not location.startswith((".", "~"))
