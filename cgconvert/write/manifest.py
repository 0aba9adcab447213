"""The manifest of an artefact: its source, the options and libraries, the hashes of all files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json
from cgconvert.version import __version__

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA",
    "Manifest",
    "artefact_files",
    "expected_files",
    "find_manifest",
    "is_as_written",
    "library_versions",
    "manifest_path",
]

MANIFEST_NAME = "cgconvert.json"
SCHEMA = 1
"""Version of the manifest's fields. A manifest of any other version is refused."""

LIBRARIES = ("torch", "numpy", "safetensors", "onnx", "gguf", "tokenizers")
"""The libraries that the written bytes depend on."""


@dataclass(frozen=True)
class Manifest:
    """The content of `cgconvert.json` in a folder, or of `<file>.cgconvert.json` beside a file.

    No field holds a time, so two runs write the same manifest. In the file, a last field `sha256`
    has the SHA-256 of the file without that field.

    Attributes:
        name: The name of the model.
        format: The artefact's format, for example gguf.
        type: The type of its weights, for example Q8_0.
        source: The checkpoint it was made from: its layout, origin, files (name, bytes and sha256
            of each), and one sha256 for all of them.
        options: The options of the conversion.
        files: {"bytes": size, "sha256": hash} of each file, by its path in the artefact.
        schema: The version of these fields.
        cgconvert: The version of cgconvert.
        libraries: The version of each of LIBRARIES.
        notes: What the user should know of the source and of the artefact, a line each. The file
            has the field only if there are any.
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
    notes: Sequence[str] = ()

    def to_json(self) -> bytes:
        """The bytes of the manifest's file."""
        fields = asdict(self)
        if not self.notes:
            del fields["notes"]
        fields["sha256"] = hashlib.sha256(_json_bytes(fields)).hexdigest()
        return _json_bytes(fields)


def _json_bytes(fields: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file's name is not UTF-8; JSON's escapes keep it
        return (json.dumps(fields, indent=2) + "\n").encode()


def manifest_path(artefact: Path) -> Path:
    """Path of an artefact's manifest: inside a folder, beside a single file."""
    if artefact.is_dir():
        return artefact / MANIFEST_NAME
    return artefact.with_name(f"{artefact.name}.{MANIFEST_NAME}")


def artefact_files(artefact: Path) -> dict[str, Path]:
    """Find the files of an artefact, by their paths in it; its manifest is left out."""
    if not artefact.is_dir():
        return {artefact.name: artefact}
    manifest = manifest_path(artefact)
    return {
        path.relative_to(artefact).as_posix(): path
        for path in sorted(artefact.rglob("*"))
        if path.is_file() and path != manifest
    }


def find_manifest(artefact: Path) -> Manifest | None:
    """Read the manifest of an artefact; None if the artefact has no manifest.

    Raises InputError if the manifest is not valid JSON, has another schema, or lacks a field.
    """
    path = manifest_path(artefact)
    if not path.is_file():
        return None
    fields = read_json(path)
    if fields.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{path}: has schema {fields.get('schema')!r}; this version reads {SCHEMA}"
        )
    if not _is_valid(fields):
        raise InputError(f"{path}: is not a cgconvert manifest")
    return Manifest(**{key: fields[key] for key in Manifest.__dataclass_fields__ if key in fields})


def is_as_written(path: Path) -> bool:
    """Whether the file at `path` is a manifest with the SHA-256 that cgconvert gave it."""
    try:
        fields = read_json(path)
    except (InputError, OSError):
        return False
    sha256 = fields.pop("sha256", None)
    return bool(sha256 == hashlib.sha256(_json_bytes(fields)).hexdigest())


def expected_files(artefact: Path, manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """The manifest's entry of each file of an artefact, {"bytes": size, "sha256": hash}, by path.

    The entry of a single file is under the present name of the file, which may have been renamed
    since it was written.
    """
    if not artefact.is_dir() and len(manifest.files) == 1:
        return {artefact.name: next(iter(manifest.files.values()))}
    return dict(manifest.files)


def _is_valid(fields: Mapping[str, Any]) -> bool:
    """Whether every field has its type, and `name` is safe as a part of a path."""
    texts = [fields.get(key) for key in ("name", "format", "type", "cgconvert")]
    objects = [fields.get(key) for key in ("source", "options", "files", "libraries")]
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(o, dict) for o in objects):
        return False
    name, source, files = str(fields["name"]), fields["source"], fields["files"]
    notes = fields.get("notes", [])
    return (
        "/" not in name
        and name.strip(". ") != ""
        and name.isprintable()
        and isinstance(source.get("origin"), dict)
        and isinstance(source.get("layout"), str)
        and isinstance(source.get("sha256"), str)
        and all(isinstance(entry, dict) for entry in files.values())
        and isinstance(notes, list)
        and all(isinstance(note, str) for note in notes)
    )


def library_versions() -> dict[str, str]:
    """The installed version of each of LIBRARIES."""
    # Not imported at the top: it brings email and zipfile, which takes as long as all of this code.
    from importlib.metadata import version

    return {name: version(name) for name in LIBRARIES}
