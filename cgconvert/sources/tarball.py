"""Unpack the checkpoint in a release tarball into the cache, unless it was unpacked before."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from cgconvert.errors import InputError, OutputError
from cgconvert.io.cache import cache_folder
from cgconvert.io.commit import Anything
from cgconvert.io.progress import Amount, format_bytes, progress_of_reading
from cgconvert.io.staging import Staging
from cgconvert.io.stand_ins import check_head
from cgconvert.io.strict_json import read_json
from cgconvert.model.chat_templates import CHAT_TEMPLATE
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.tar_stream import TarError, TarMember, TarStream

__all__ = ["checkpoint_name", "is_tarball", "unpack"]

SUFFIXES = (".tar.gz", ".tgz")

CHECKPOINT_FILES = frozenset(
    (
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "model.safetensors",
        *TOKENIZER_FILES,
        CHAT_TEMPLATE,
    )
)
"""The files that are unpacked; all others are skipped."""

ORIGIN_FILE = ".cgconvert-archive.json"
"""Written into a complete folder last: name and SHA-256 of its archive."""

READ_BYTES = 4 << 20
"""Bytes read at once."""

MAX_RATIO = 20
"""An archive may unpack to this many times its size: float16 weights give 1.1, a bomb 1000."""

SMALL_BYTES = 64 << 20
"""Bytes that any archive may unpack to in addition, because small texts compress better."""

MAX_PADDING_BYTES = 1 << 20
"""Most zero bytes after the archive's end mark; tar writes some to fill its last record."""


def is_tarball(path: Path) -> bool:
    """Whether the name of this file is that of a compressed tar archive."""
    return path.name.endswith(SUFFIXES)


def checkpoint_name(path: Path) -> str:
    """The name of the checkpoint in a tarball: the file's name without .tar.gz or .tgz."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def unpack(path: Path) -> tuple[Path, dict[str, Any]]:
    """Unpack the checkpoint in a tarball.

    A tarball of the same path, size and modification time is not unpacked again.

    Returns:
        The folder with the checkpoint, and its origin for the manifest:
        {"archive": name, "archive_sha256": hash}.

    Raises:
        InputError: The archive is damaged or holds no checkpoint.
        OutputError: The disk has too little space, or writing failed.
    """
    try:
        status = path.stat()
        identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
        folder = cache_folder() / "unpacked" / f"{checkpoint_name(path)}-{key}"
        check_head(path)
        if not (folder / ORIGIN_FILE).is_file():
            with Staging(folder, Anything()) as staging:  # replaces an incomplete folder
                _unpack_into(path, staging.content)
                staging.commit_folder()
    except OSError as error:
        raise OutputError(f"{path}: cannot be unpacked: {error.strerror or error}") from error
    return folder, read_json(folder / ORIGIN_FILE)


def _unpack_into(path: Path, folder: Path) -> None:
    """Extract the checkpoint's files into `folder`, hash the archive, and write ORIGIN_FILE."""
    progress = progress_of_reading()
    progress.step(f"unpacking {path}", Amount(path.stat().st_size, "bytes"))
    with path.open("rb") as file:
        archive = _HashingReader(file, progress.advance)
        _extract(path, archive, folder)
        while archive.read(READ_BYTES):  # so that the hash covers the whole file
            pass
    origin = {"archive": path.name, "archive_sha256": archive.hasher.hexdigest()}
    (folder / ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")


def _extract(path: Path, archive: _HashingReader, folder: Path) -> None:
    """Extract the checkpoint's files; `archive` reads the file at `path`."""
    max_bytes = MAX_RATIO * path.stat().st_size + SMALL_BYTES
    try:
        with gzip.GzipFile(fileobj=archive, mode="rb") as tar_file:  # type: ignore[call-overload]
            tar_stream = TarStream(tar_file, max_bytes)
            for member in tar_stream:
                _extract_member(path, tar_stream, member, folder)
            # Reading to the end makes gzip check its CRC.
            if tar_file.read(MAX_PADDING_BYTES).strip(b"\0") or tar_file.read(1):
                raise TarError("data follows its end")
    except (TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable .tar.gz: {error}; fetch it again") from error
    except OSError as error:
        if error.errno is None:  # gzip's own errors have no errno, the system's have one
            raise InputError(f"{path}: not a readable .tar.gz: {error}; fetch it again") from error
        raise
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no config.json")


def _extract_member(path: Path, tar_stream: TarStream, member: TarMember, folder: Path) -> None:
    """Write a member's data into `folder` if it is one of CHECKPOINT_FILES, in whatever folder."""
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
            f"{folder}: {path.name} needs {format_bytes(member.size)} for {name}, "
            f"{format_bytes(free)} are free; set CGCONVERT_CACHE to another disk"
        )
    with target.open("wb") as file:
        while data := tar_stream.read(READ_BYTES):
            file.write(data)


class _HashingReader:
    """Reads from a file and hashes all that it reads; `advance` gets the bytes of each read."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.hasher, self.advance = file, hashlib.sha256(), advance

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hasher.update(data)
        self.advance(len(data))
        return data
