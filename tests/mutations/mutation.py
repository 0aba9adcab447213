"""What a planted mistake is, and how it gets into an artefact that is otherwise right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.hashing import file_sha256
from cgconvert.write.manifest import find_manifest, manifest_path
from cgconvert.write.plan import Plan
from tests.support.artefacts import copied, write

__all__ = [
    "GEOMETRY", "GGUF", "HF", "MATRICES", "ONNX", "VALUES", "Mutation", "in_files", "in_model",
    "plant",
]  # fmt: skip

HF = ("hf-float16", "hf-phi-float16")
ONNX = ("onnx-float32", "onnx-int4")
GGUF = ("gguf-F16", "gguf-Q8_0", "gguf-Q4_0")
MATRICES = (*HF, *ONNX, *GGUF)
"""The types that a mistake is planted in unless its format has no place for it."""

VALUES = ("weights.equal", "weights.error")
GEOMETRY = ("weights.geometry",)

Model = Callable[[Checkpoint], Checkpoint]
Files = Callable[[Path, Checkpoint], None]


@dataclass(frozen=True)
class Mutation:
    """A conversion bug.

    Either `model` gives the model as a wrong writer would have it, or `files` changes an artefact
    where it lies. At least one of the checks `caught_by` has to fail, being what the bug is about.
    """

    name: str
    where: str
    types: tuple[str, ...]
    caught_by: frozenset[str]
    model: Model | None = None
    files: Files | None = None


def in_model(
    name: str, caught_by: Iterable[str], model: Model, types: tuple[str, ...] = MATRICES
) -> Mutation:
    """A bug of a writer: the real writers write the wrong model, manifest and all."""
    return Mutation(name, "writer", types, frozenset(caught_by), model=model)


def in_files(
    name: str, where: str, caught_by: Iterable[str], files: Files, types: tuple[str, ...]
) -> Mutation:
    """A bug in a written file called `where`; its manifest is made to fit."""
    return Mutation(name, where, types, frozenset(caught_by), files=files)


def plant(
    mutation: Mutation, type_: str, source: Checkpoint, right: Mapping[str, Plan], folder: Path
) -> Plan:
    """The artefact with the bug, in `folder`, and a manifest that has nothing against it."""
    folder.mkdir(parents=True, exist_ok=True)
    if mutation.model is not None:
        return write(type_, mutation.model(source), folder)
    assert mutation.files is not None
    plan = right[type_]
    target = copied(plan, folder)
    mutation.files(target, source)
    _refresh(target)
    return replace(plan, output=target)


def _refresh(artefact: Path) -> None:
    """Give the manifest the hashes of the files as they are now."""
    manifest = find_manifest(artefact)
    assert manifest is not None
    paths = {name: artefact / name if artefact.is_dir() else artefact for name in manifest.files}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in paths.items()
    }
    manifest_path(artefact).write_bytes(replace(manifest, files=files).to_json())
