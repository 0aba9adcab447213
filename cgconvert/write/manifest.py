"""The manifest of an artefact: its source, the options and libraries, the hashes of all files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json
from cgconvert.version import __version__

__all__ = [
    "NAME",
    "SCHEMA",
    "Manifest",
    "expected",
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
    all; `files` maps each written file to {bytes, sha256}. No field holds a time, so two runs give
    the same manifest. The file ends with a SHA-256 of everything before it.
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
        """The file's content."""
        table = asdict(self)
        table["sha256"] = hashlib.sha256(_json(table)).hexdigest()
        return _json(table)


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def manifest_path(artefact: Path) -> Path:
    """Path of an artefact's manifest: inside a folder, beside a single file."""
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
    """{bytes, sha256} by the present name of each file: a single file may have been renamed."""
    if not artefact.is_dir() and len(manifest.files) == 1:
        return {artefact.name: next(iter(manifest.files.values()))}
    return dict(manifest.files)


def _is_sound(raw: Mapping[str, Any]) -> bool:
    """Whether every field has its type, and the name is safe as part of a path."""
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


def libraries() -> dict[str, str]:
    """Versions of the libraries that the bytes written depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
