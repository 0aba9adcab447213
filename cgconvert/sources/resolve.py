"""Find the file or folder on the disk that a model's name, path or Hub id stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.errors import InputError, UsageError
from cgconvert.model import family
from cgconvert.sources import hub, tarball
from cgconvert.sources.snapshot import cached_repository

__all__ = ["Source", "plain_name", "resolve"]


@dataclass(frozen=True)
class Source:
    """A checkpoint on the disk, and where it came from.

    Attributes:
        path: The folder or file with the checkpoint.
        name: The name of the model.
        origin: Where the checkpoint came from, for the manifest: a Hub repository and commit, an
            archive and its SHA-256, or the embedded model. Empty if the user gave its path.
    """

    path: Path
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain_name(self.name))


def plain_name(name: str) -> str:
    """A name of a folder as the name of a model, which is written into files as UTF-8.

    Characters that cannot be printed and bytes that are not UTF-8 become underscores.
    """
    return "".join(c if c.isprintable() else "_" for c in name)


def resolve(location: str, revision: str | None = None, *, needs_tokenizer: bool = True) -> Source:
    """Find a checkpoint, and download or unpack it if need be.

    Args:
        location: One of these, tried in this order: the name of the embedded model; the name of a
            published checkpoint (codegen-350M-mono); a path; a Hub id. A published checkpoint is
            looked for at ./checkpoints/<name>, ./checkpoints/<name>.tar.gz and ./<name>, then in
            the Hub's cache, then downloaded. A tarball is unpacked into cgconvert's cache. A path
            in the Hub's cache stands for the repository that it belongs to.
        revision: Branch, tag or commit on the Hub. With one, a name or id always means the Hub.
        needs_tokenizer: Whether a model from the Hub needs its tokenizer too.

    Raises:
        InputError: There is no such checkpoint, or it cannot be downloaded or unpacked.
        UsageError: A revision is given for a path that does not lie in the Hub's cache.
    """
    path = Path(location)
    if location == embedded.NAME and not path.exists():
        if revision is not None:
            raise UsageError(f"`revision` chooses a commit on the Hub; {location} is built in")
        return Source(embedded.path(), embedded.NAME, {"embedded": embedded.NAME})
    if family.is_published_checkpoint(location):
        candidates = (
            Path("checkpoints") / location,
            Path("checkpoints") / f"{location}.tar.gz",
            path,
        )
        for candidate in candidates if revision is None else ():
            if candidate.exists():
                return _from_path(candidate)
        return _from_hub(family.hub_id(location), location, revision, needs_tokenizer)
    if path.exists() and not (revision is not None and _is_hub_id(location)):
        return _from_path(path, revision)
    if family.is_llama(path.name):  # before gigabytes are downloaded
        raise InputError(f"{location}: is {family.LLAMA}")
    if _is_hub_id(location):
        name = location.split("/")[1]
        try:
            return _from_hub(location, name, revision, needs_tokenizer)
        except InputError as error:
            if not path.parent.is_dir():
                raise
            raise InputError(f"{location}: {name} is not in the folder {path.parent}; as an id on "
                             f"the Hub: {error}") from error  # fmt: skip
    raise InputError(
        f"{location}: no such file or folder, and not a name of the family "
        f"(codegen-350M-mono, codegen2-1B, gpt-j-6b ...) or {embedded.NAME}"
    )


def _from_path(path: Path, revision: str | None = None) -> Source:
    """Make the source for an existing path, which is unpacked if it is a tarball.

    The model is named after its folder, a GGUF file or a tarball after the file, and what lies in
    the Hub's cache after its repository.
    """
    if cached := cached_repository(path, revision):
        name = cached.repository.rpartition("/")[2]
        origin = {"hub": cached.repository, "revision": cached.commit}
        return Source(cached.path, name, origin)
    if revision is not None:
        raise UsageError(f"`revision` chooses a commit on the Hub; {path} is a file or folder here")
    if path.is_file() and tarball.is_tarball(path):
        folder, origin = tarball.unpack(path)
        return Source(folder, tarball.checkpoint_name(path), origin)
    if path.is_file() and path.suffix == ".gguf":
        return Source(path, path.stem)
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    is_for_graphs = folder.name == "onnx" and any(folder.glob("*.onnx"))
    return Source(path, folder.parent.name if is_for_graphs else folder.name)


def _from_hub(repository: str, name: str, revision: str | None, needs_tokenizer: bool) -> Source:
    """Make the source for a Hub repository, which is downloaded if it is not in the Hub's cache."""
    folder, commit = hub.fetch_checkpoint(repository, revision, needs_tokenizer=needs_tokenizer)
    return Source(folder, name, {"hub": repository, "revision": commit})


def _is_hub_id(location: str) -> bool:
    """Whether this has the form of a Hub id, organisation/name, in which no -- may be."""
    parts = location.split("/")
    return len(parts) == 2 and all(parts) and "--" not in location and location[0] not in ".~"
