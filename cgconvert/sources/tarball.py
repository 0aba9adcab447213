"""The release tarballs: unpacked once, into the cache, the named regular files only."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import IO, Any

from cgconvert.errors import InputError, OutputError
from cgconvert.io.staging import Staging
from cgconvert.io.strict_json import read_json
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.tar_stream import TarError, TarFile, TarStream

__all__ = ["cache_folder", "is_tarball", "unpack"]

SUFFIXES = (".tar.gz", ".tgz")
WANTED = frozenset(
    (
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "model.safetensors",
        *TOKENIZER_FILES,
    )
)
RECORD = ".cgconvert-archive.json"
BLOCK = 4 << 20
LARGEST_RATIO = 20
"""How many times its size an archive of weights may unpack to: float16 gives 1.1, a bomb 1000."""
SMALL = 64 << 20
AFTER_END = 1 << 20
"""Zeros that may follow the archive's end inside the gzip stream: tar fills up its blocks."""


def is_tarball(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name without .tar.gz: what the checkpoint is called."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def cache_folder() -> Path:
    """Where unpacked tarballs are kept: $CGCONVERT_CACHE, else the user's cache folder."""
    if given := os.environ.get("CGCONVERT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cgconvert"


def unpack(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with a tarball's checkpoint, and {"archive", "archive_sha256"}.

    A tarball of the same path, size and time is not unpacked again. Raises InputError for an
    archive that is broken or holds no checkpoint, OutputError where the disk has no room.
    """
    try:
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
        final = cache_folder() / "unpacked" / f"{stem(path)}-{key}"
        if not (final / RECORD).is_file():
            with Staging(final, force=True) as staging:  # also what an interrupted run left
                _into(path, staging.content)
                staging.commit_folder()
    except OSError as error:
        raise OutputError(f"{path}: cannot be unpacked: {error.strerror or error}") from error
    return final, read_json(final / RECORD)


def _into(path: Path, folder: Path) -> None:
    with path.open("rb") as raw:
        hashed = _Hashing(raw)
        _extract(path, hashed, folder)
        while hashed.read(BLOCK):  # to the end, for the hash
            pass
    record = {"archive": path.name, "archive_sha256": hashed.digest.hexdigest()}
    (folder / RECORD).write_text(json.dumps(record))


def _extract(path: Path, raw: _Hashing, folder: Path) -> None:
    budget = LARGEST_RATIO * path.stat().st_size + SMALL
    try:
        with gzip.GzipFile(fileobj=raw, mode="rb") as plain:  # type: ignore[call-overload]
            archive = TarStream(plain, budget)
            for member in archive:
                _member(path, archive, member, folder)
            if plain.read(AFTER_END).strip(b"\0") or plain.read(1):  # its CRC is checked here
                raise TarError("data follows its end")
    except (TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's own complaints carry no errno
            raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
        raise
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no config.json")


def _member(path: Path, archive: TarStream, member: TarFile, folder: Path) -> None:
    parts = Path(member.name).parts
    name = parts[-1] if parts else ""
    if name not in WANTED:
        return
    if ".." in parts or Path(member.name).is_absolute() or len(parts) > 3:
        raise InputError(f"{path}: refused: member {member.name!r} points outside")
    target = folder / name
    if target.exists():
        raise InputError(f"{path}: holds {name} twice")
    free = shutil.disk_usage(folder).free
    if member.size > free:
        raise OutputError(
            f"{folder}: {path.name} needs {member.size:,} bytes for {name}, {free:,} are free; "
            "set CGCONVERT_CACHE to another disk"
        )
    with target.open("wb") as file:
        while data := archive.read(BLOCK):
            file.write(data)


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data
