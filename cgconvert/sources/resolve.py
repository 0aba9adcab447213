"""Find the file or folder on the disk that a model's name, path or Hub id stands for."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.errors import InputError, UsageError
from cgconvert.escaping import abridged
from cgconvert.io.file_names import can_exist
from cgconvert.io.followed_links import note_user_path
from cgconvert.model import family
from cgconvert.sources import hub, tarball
from cgconvert.sources.snapshot import cached_repository

__all__ = ["Source", "is_path", "plain_name", "resolve"]

FILE_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".gz", ".tgz", ".tar", ".zip",
    ".7z", ".json", ".npz", ".h5", ".msgpack", ".yaml", ".yml",
)  # fmt: skip
"""Ends of a location that is a file's, and no name on the Hub."""

HUB_ADDRESS = re.compile(r"https?://(www\.)?(huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)(/.*)?")

_FAMILY = (
    f"not a name of the family (codegen-350M-mono, codegen2-1B, gpt-j-6b ...) or {embedded.NAME}"
)


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
            published checkpoint (codegen-350M-mono), in any case; a path; a Hub id. A published
            checkpoint is looked for at ./checkpoints/<name>, ./checkpoints/<name>.tar.gz and
            ./<name>, then in the Hub's cache, then downloaded. A tarball is unpacked into
            cgconvert's cache. A path in the Hub's cache stands for the repository that it belongs
            to. What has the form of a path (see `is_path`) is never looked for on the Hub.
        revision: Branch, tag or commit on the Hub. With one, a name or id always means the Hub.
        needs_tokenizer: Whether a model from the Hub needs its tokenizer too.

    Raises:
        InputError: There is no such checkpoint, or it cannot be downloaded or unpacked.
        UsageError: A revision is given for a path that does not lie in the Hub's cache, or the
            location is empty.
    """
    source = _resolved(location, revision, needs_tokenizer)
    note_user_path(source.path)
    return source


def _resolved(location: str, revision: str | None, needs_tokenizer: bool) -> Source:
    if not location.strip():
        raise UsageError("the source is empty; give a path, a name such as codegen-350M-mono, or "
                         f"the built-in {embedded.NAME}")  # fmt: skip
    path = Path(location)
    if not can_exist(path):
        raise InputError(f"{abridged(location)}: no file has such a name")
    name = location if path.exists() and revision is None else family.canonical_name(location)
    if name == embedded.NAME and not path.exists():
        if revision is not None:
            raise UsageError(f"`revision` chooses a commit on the Hub; {location} is built in")
        return Source(embedded.path(), embedded.NAME, {"embedded": embedded.NAME})
    if family.is_published_checkpoint(name):
        for candidate in _places(location, name) if revision is None else ():
            if candidate.exists():
                return _from_path(candidate)
        return _from_hub(family.hub_id(name), name, revision, needs_tokenizer)
    is_id = _is_hub_id(location)
    if path.exists() and not (revision is not None and is_id):
        return _from_path(path, revision)
    if family.is_llama(path.name):  # before gigabytes are downloaded
        raise InputError(f"{location}: is {family.LLAMA}")
    if is_id and not (revision is None and is_path(location)):
        repository = family.canonical_id(location)
        return _from_hub(repository, repository.split("/")[1], revision, needs_tokenizer)
    raise InputError(f"{location}: {_explain_absent(location)}")


def is_path(location: str) -> bool:
    """Whether a location that does not exist was meant as a path, and not as a Hub id.

    It begins with a dot, a tilde, a slash or a drive, has a backslash or several slashes, ends in
    a slash or a suffix of a checkpoint's file, or names a folder that exists and something in it.
    """
    return bool(
        location[0] in ".~/"
        or "\\" in location
        or re.match(r"[A-Za-z]:", location)
        or location.count("/") > 1
        or location.endswith(("/", *FILE_SUFFIXES))
        or ("/" in location and Path(location).parent.is_dir())
    )


def _places(location: str, name: str) -> list[Path]:
    """Return where a published checkpoint may lie, under the user's spelling of its name too."""
    return [
        place
        for spelling in dict.fromkeys((location, name))
        for place in (
            Path("checkpoints") / spelling,
            Path("checkpoints") / f"{spelling}.tar.gz",
            Path(spelling),
        )
    ]


def _explain_absent(location: str) -> str:
    """Say that there is nothing of this path or name, and what may be meant; continues "LOCATION:".

    Of a path the neighbours are looked at, of a name those of the family.
    """
    text = "no such file or folder"
    if match := HUB_ADDRESS.fullmatch(location):
        return f"{text}, but an address; give the Hub's id, {match['id']}"
    if re.match(r"\w+://", location):
        return f"{text}, but an address; download it and give the path"
    path = Path(location)
    if "/" not in location and not is_path(location):
        asked = family.did_you_mean(location)
        return f"{text}; {asked}" if asked else f"{text}, and {_FAMILY}"
    with contextlib.suppress(RuntimeError):  # a user without a home
        if location.startswith("~") and path.expanduser().exists():
            return f"{text}; write it without quotes, or as {path.expanduser()}"
    parent = path.parent
    if not parent.is_dir():
        absent = [folder for folder in path.parents if not folder.exists()]
        return f"{text}, nor a folder {absent[-1]}" if absent else text
    name = family.canonical_name(path.name)
    if family.is_published_checkpoint(name):
        return f"{text}; to have it downloaded, give {name}"
    neighbours = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, sorted(neighbours), n=1, cutoff=0.7)
    if near:
        return f"{text}; did you mean {parent / near[0]}?"
    if _is_hub_id(location):
        return f"{text}; if the Hub's {location} is meant, add `revision=main`"
    return text


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
