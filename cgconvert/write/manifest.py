"""The manifest: what an artefact was made from, with what, and the hashes of both."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json
from cgconvert.version import __version__
from cgconvert.write import checksums

__all__ = [
    "NAME",
    "SCHEMA",
    "Manifest",
    "digest_of",
    "expected",
    "file_sha256",
    "find_manifest",
    "libraries",
    "manifest_path",
]

NAME = "cgconvert.json"
SCHEMA = 1
LIBRARIES = ("torch", "numpy", "safetensors", "onnx", "gguf", "tokenizers")


@dataclass(frozen=True)
class Manifest:
    """`cgconvert.json` in a folder, `<file>.cgconvert.json` beside a GGUF.

    `source` has layout, origin, files ({name, bytes, sha256} each) and sha256, one digest of them
    all; `files` maps each written file to {bytes, sha256}. There is no clock in it, so two runs
    give the same manifest. In the file a SHA-256 of all the rest comes last.
    """

    name: str
    format: str
    type: str
    source: Mapping[str, Any]
    options: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    schema: int = SCHEMA
    cgconvert: str = __version__
    libraries: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        told = asdict(self)
        told["sha256"] = hashlib.sha256(_json(told)).hexdigest()
        return _json(told)


def _json(told: Mapping[str, Any]) -> bytes:
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode()


def manifest_path(artefact: Path) -> Path:
    """Where an artefact's manifest is: inside a folder, beside a file."""
    if artefact.is_dir():
        return artefact / NAME
    return artefact.with_name(f"{artefact.name}.{NAME}")


def find_manifest(artefact: Path) -> Manifest | None:
    """The manifest of an artefact, None where there is none. Raises InputError if it is broken."""
    path = manifest_path(artefact)
    if not path.is_file():
        return None
    raw = read_json(path)
    if raw.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{path}: has schema {raw.get('schema')!r}; this version reads {SCHEMA}")
    if not _is_sound(raw):
        raise InputError(f"{path}: is not a cgconvert manifest")
    return Manifest(**{key: raw[key] for key in Manifest.__dataclass_fields__ if key in raw})


def expected(artefact: Path, manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """{bytes, sha256} by the name that a file has now: a single one may have been renamed."""
    if not artefact.is_dir() and len(manifest.files) == 1:
        return {artefact.name: next(iter(manifest.files.values()))}
    return dict(manifest.files)


def _is_sound(raw: Mapping[str, Any]) -> bool:
    """Whether every field has the type that is written. A name is part of a path elsewhere."""
    texts = [raw.get(key) for key in ("name", "format", "type", "cgconvert")]
    tables = [raw.get(key) for key in ("source", "options", "files", "libraries")]
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(t, dict) for t in tables):
        return False
    name, source, files = str(raw["name"]), raw["source"], raw["files"]
    return (
        "/" not in name
        and name.strip(". ") != ""
        and name.isprintable()
        and isinstance(source.get("origin"), dict)
        and isinstance(source.get("layout"), str)
        and isinstance(source.get("sha256"), str)
        and all(isinstance(entry, dict) for entry in files.values())
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(
    files: Sequence[Path], cancelled: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """{files: [{name, bytes, sha256}], sha256}: each file, and one digest over names and hashes.

    `cancelled` is asked now and then; what comes back then is worth nothing. Raises InputError
    where an archive among the files is not what its own CRCs say.
    """
    entries = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": checksums.sha256(path, cancelled),
        }
        for path in files
    ]
    whole = hashlib.sha256()
    for entry in sorted(entries, key=lambda e: str(e["name"])):
        whole.update(f"{entry['sha256']}  {entry['name']}\n".encode())
    return {"files": entries, "sha256": whole.hexdigest()}


def libraries() -> dict[str, str]:
    """Versions of the libraries that take part in writing."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
