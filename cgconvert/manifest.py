"""The manifest: what an artefact was made from, with what, and the hashes of both."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgconvert import __version__
from cgconvert.errors import InputError

__all__ = [
    "NAME",
    "SCHEMA",
    "Manifest",
    "digest_of",
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
    give the same manifest.
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
        return (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode()


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
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = {key: raw[key] for key in Manifest.__dataclass_fields__ if key in raw}
        manifest = Manifest(**known)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is not a cgconvert manifest") from error
    if manifest.schema != SCHEMA:
        raise InputError(f"{path}: has schema {manifest.schema}; this version reads {SCHEMA}")
    fields = (manifest.source, manifest.options, manifest.files)
    if not isinstance(manifest.name, str) or not all(isinstance(f, dict) for f in fields):
        raise InputError(f"{path}: is not a cgconvert manifest")
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Sequence[Path]) -> dict[str, Any]:
    """{files: [{name, bytes, sha256}], sha256}: each file, and one digest over names and hashes."""
    entries = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    ]
    whole = hashlib.sha256()
    for entry in sorted(entries, key=lambda e: str(e["name"])):
        whole.update(f"{entry['sha256']}  {entry['name']}\n".encode())
    return {"files": entries, "sha256": whole.hexdigest()}


def libraries() -> dict[str, str]:
    """Versions of the libraries that take part in writing."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
