"""Release tarballs: the files of a checkpoint are unpacked into the cache, once."""

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
CHECKPOINT_FILES = frozenset(
    (
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "model.safetensors",
        *TOKENIZER_FILES,
    )
)
RECORD = ".cgconvert-archive.json"
READ_BYTES = 4 << 20
LARGEST_RATIO = 20
"""An archive may unpack to this many times its size: float16 weights give 1.1, a bomb 1000."""
SMALL_BYTES = 64 << 20
"""Further bytes that any archive may unpack to, as small texts compress better."""
MAX_PADDING = 1 << 20
"""Zero bytes that may follow the archive's end in the gzip stream: tar fills up its last block."""


def is_tarball(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Name of the checkpoint: the file's name without .tar.gz."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def cache_folder() -> Path:
    """Folder of unpacked tarballs: $CGCONVERT_CACHE, else the user's cache folder."""
    if folder := os.environ.get("CGCONVERT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cgconvert"


def unpack(path: Path) -> tuple[Path, dict[str, Any]]:
    """Unpack a tarball's checkpoint, unless one of this path, size and time was unpacked before.

    Returns:
        The folder with the checkpoint, and {"archive": name, "archive_sha256": hash}.

    Raises:
        InputError: The archive is damaged or holds no checkpoint.
        OutputError: The disk has too little space, or cannot be written.
    """
    try:
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
        final = cache_folder() / "unpacked" / f"{stem(path)}-{key}"
        if not (final / RECORD).is_file():
            with Staging(final, force=True) as staging:  # also over an incomplete folder
                _unpack_into(path, staging.content)
                staging.commit_folder()
    except OSError as error:
        raise OutputError(f"{path}: cannot be unpacked: {error.strerror or error}") from error
    return final, read_json(final / RECORD)


def _unpack_into(path: Path, folder: Path) -> None:
    with path.open("rb") as raw:
        file = _HashingReader(raw)
        _extract(path, file, folder)
        while file.read(READ_BYTES):  # to the end, for the hash
            pass
    record = {"archive": path.name, "archive_sha256": file.digest.hexdigest()}
    (folder / RECORD).write_text(json.dumps(record))


def _extract(path: Path, raw: _HashingReader, folder: Path) -> None:
    budget = LARGEST_RATIO * path.stat().st_size + SMALL_BYTES
    try:
        with gzip.GzipFile(fileobj=raw, mode="rb") as plain:  # type: ignore[call-overload]
            archive = TarStream(plain, budget)
            for member in archive:
                _extract_member(path, archive, member, folder)
            if plain.read(MAX_PADDING).strip(b"\0") or plain.read(1):  # gzip checks its CRC here
                raise TarError("data follows its end")
    except (TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
    except OSError as error:
        if error.errno is None:  # raised by gzip itself
            raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
        raise
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no config.json")


def _extract_member(path: Path, archive: TarStream, member: TarFile, folder: Path) -> None:
    parts = Path(member.name).parts
    name = parts[-1] if parts else ""
    if name not in CHECKPOINT_FILES:
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
        while data := archive.read(READ_BYTES):
            file.write(data)


class _HashingReader:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data
