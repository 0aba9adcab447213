"""The release tarballs: unpacked once, into the cache, the named regular files only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from cgconvert.errors import InputError, OutputError
from cgconvert.tokenizer_files import TOKENIZER_FILES

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
MAX_MEMBERS = 10_000
BLOCK = 4 << 20


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
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        parent = cache_folder() / "unpacked"
        final = parent / f"{stem(path)}-{key}"
        if not (final / RECORD).is_file():
            parent.mkdir(parents=True, exist_ok=True)
            _into(path, parent, final)
        return final, json.loads((final / RECORD).read_text())
    except OSError as error:
        raise OutputError(f"{path}: cannot be unpacked: {error.strerror or error}") from error


def _into(path: Path, parent: Path, final: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=parent))
    try:
        with path.open("rb") as raw:
            hashed = _Hashing(raw)
            _extract(path, hashed, temporary)
            while hashed.read(BLOCK):  # to the end, for the hash
                pass
        record = {"archive": path.name, "archive_sha256": hashed.digest.hexdigest()}
        (temporary / RECORD).write_text(json.dumps(record))
        if final.exists():  # a folder without its record: an older interrupted run
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _extract(path: Path, raw: _Hashing, folder: Path) -> None:
    try:
        with tarfile.open(fileobj=cast(IO[bytes], raw), mode="r|gz") as archive:
            for count, member in enumerate(archive):
                if count > MAX_MEMBERS:
                    raise InputError(f"{path}: holds more than {MAX_MEMBERS} members")
                _member(path, archive, member, folder)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
    except OSError as error:
        if error.errno is None:  # gzip's own complaints carry no errno
            raise InputError(f"{path}: not a readable .tar.gz: {error}") from error
        raise
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no config.json")


def _member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    parts = Path(member.name).parts
    name = parts[-1] if parts else ""
    if not member.isreg() or name not in WANTED:
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
    source = archive.extractfile(member)
    assert source is not None  # regular files always have one
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, BLOCK)
    if target.stat().st_size != member.size:
        raise InputError(f"{path}: ends inside {name}; it is truncated")


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data
