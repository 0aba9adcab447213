"""Unpack the checkpoint in a release tarball into the cache, unless it was unpacked before.

A folder in the cache is believed only with its record (see unpacked.py). Where the cache is not to
be used, the checkpoint is unpacked into a temporary folder, which is removed when the process ends.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cgconvert.errors import InputError, OutputError
from cgconvert.io.cache import (
    UNPACKED,
    CacheRefusedError,
    empty_folders_removed,
    is_cache_allowed,
    note_use,
    private_folder,
)
from cgconvert.io.commit import Anything
from cgconvert.io.progress import Amount, format_bytes, progress_of_reading
from cgconvert.io.reading import open_regular
from cgconvert.io.staging import Staging
from cgconvert.io.stand_ins import check_head
from cgconvert.io.system.files import wait_for_clock
from cgconvert.model.chat_templates import CHAT_TEMPLATE
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.gzip_stream import GzipStream
from cgconvert.sources.tar_stream import TarError, TarMember, TarStream
from cgconvert.sources.unpacked import identity_of, is_as_unpacked, read_record, write_record

__all__ = ["checkpoint_name", "is_kept", "is_tarball", "unpack"]

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


@empty_folders_removed(UNPACKED)
def unpack(path: Path) -> tuple[Path, dict[str, str]]:
    """Unpack the checkpoint in a tarball.

    A tarball that is as it was when it was unpacked, by its path, inode, size and times, is not
    unpacked again if what it was unpacked to is as it was too.

    Returns:
        The folder with the checkpoint, and its origin for the manifest:
        {"archive": name, "archive_sha256": hash}.

    Raises:
        InputError: The archive is damaged or holds no checkpoint.
        OutputError: There is too little space, writing failed, or the cache's folder is refused.
    """
    try:
        check_head(path)
        if not is_cache_allowed():
            folder = _temporary_folder()
            origin, _ = _unpack_into(path, folder)
            return folder, origin
        identity = f"{path.resolve()}\0{identity_of(path)}"
        key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
        folder = private_folder(UNPACKED) / f"{checkpoint_name(path)}-{key}"
        record = read_record(folder.name)
        if record is not None and is_as_unpacked(folder, record):
            note_use(UNPACKED)
            _kept.add(folder)
            return folder, dict(record.origin)
        with Staging(folder, Anything()) as staging:  # replaces what is not as it was
            origin, hashes = _unpack_into(path, staging.content)
            staging.commit_folder()
        write_record(folder, origin, hashes)
        _kept.discard(folder)
    except CacheRefusedError as error:
        raise OutputError(f"{path}: cannot be unpacked into the cache: {error}") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be unpacked: {error.strerror or error}") from error
    return folder, origin


def is_kept(folder: Path) -> bool:
    """Whether a folder was taken from the cache by this process, and not unpacked by it."""
    return folder in _kept


_kept: set[Path] = set()
"""The folders that were taken from the cache."""


def _temporary_folder() -> Path:
    """Make a folder that is closed to others and lasts until this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="cgconvert-unpacked-", ignore_cleanup_errors=True)
    _temporary_folders.append(folder)
    return Path(folder.name)


_temporary_folders: list[tempfile.TemporaryDirectory[str]] = []
"""The folders of this process, which are removed with these objects."""


def _unpack_into(path: Path, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Extract the checkpoint's files into `folder` and hash the archive.

    Returns the origin for the manifest, and the SHA-256 of each file by its name. Raises InputError
    if the archive is changed meanwhile.
    """
    progress = progress_of_reading()
    wait_for_clock(path)
    identity = identity_of(path)
    progress.step(f"unpacking {path}", Amount(path.stat().st_size, "bytes"))
    with open_regular(path) as file:
        archive = _HashingReader(file, progress.advance)
        hashes = _extract(path, archive, folder)
        while archive.read(READ_BYTES):  # so that the hash covers the whole file
            pass
    if identity_of(path) != identity:
        raise InputError(f"{path}: was changed while it was unpacked; try again")
    return {"archive": path.name, "archive_sha256": archive.hasher.hexdigest()}, hashes


def _extract(path: Path, archive: _HashingReader, folder: Path) -> dict[str, str]:
    """Extract the checkpoint's files; `archive` reads the file at `path`.

    Returns the SHA-256 of each file by its name.
    """
    hashes: dict[str, str] = {}
    max_bytes = MAX_RATIO * path.stat().st_size + SMALL_BYTES
    try:
        tar_file = GzipStream(archive)
        tar_stream = TarStream(tar_file, max_bytes)
        for member in tar_stream:
            hashes |= _extract_member(path, tar_stream, member, folder)
        padding = 0
        while data := tar_file.read(MAX_PADDING_BYTES):  # to the end, where the CRC is checked
            padding += len(data)
            if padding > MAX_PADDING_BYTES or data.strip(b"\0"):
                raise TarError("data follows its end")
    except TarError as error:
        raise InputError(f"{path}: not a readable .tar.gz: {error}; fetch it again") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no config.json")
    return hashes


def _extract_member(
    path: Path, tar_stream: TarStream, member: TarMember, folder: Path
) -> dict[str, str]:
    """Write a member's data into `folder` if it is one of CHECKPOINT_FILES, in whatever folder.

    Returns its name and SHA-256; nothing of any other member.
    """
    parts = Path(member.name).parts
    name = parts[-1] if parts else ""
    if name not in CHECKPOINT_FILES:
        return {}
    if ".." in parts or Path(member.name).is_absolute() or len(parts) > 3:
        raise InputError(f"{path}: refused: member {member.name!r} points outside")
    target = folder / name
    if target.exists():
        raise InputError(f"{path}: holds {name} twice")
    free = shutil.disk_usage(folder).free
    if member.size > free:
        variable = "CGCONVERT_CACHE" if is_cache_allowed() else "TMPDIR"
        raise OutputError(
            f"{folder}: {path.name} needs {format_bytes(member.size)} for {name}, "
            f"{format_bytes(free)} are free; set {variable} to another disk"
        )
    hasher = hashlib.sha256()
    with target.open("wb") as file:
        while data := tar_stream.read(READ_BYTES):
            file.write(data)
            hasher.update(data)
    return {name: hasher.hexdigest()}


class _HashingReader:
    """Reads from a file and hashes all that it reads; `advance` gets the bytes of each read."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.hasher, self.advance = file, hashlib.sha256(), advance

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hasher.update(data)
        self.advance(len(data))
        return data
