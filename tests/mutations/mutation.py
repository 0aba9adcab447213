"""A conversion bug, and how it is planted in an artefact that is otherwise valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cgconvert.model.decoder import Checkpoint
from cgconvert.write.hashing import file_sha256
from cgconvert.write.manifest import find_manifest, manifest_path
from cgconvert.write.plan import Plan
from tests.support.artefacts import copied, write

__all__ = [
    "CALIBRATED", "FINE_TUNE", "GEOMETRY", "GGUF", "HF", "MATRICES", "MODELS", "ONE_LAYER", "ONNX",
    "VALUES", "Mutation", "in_files", "in_model", "in_source", "plant",
]  # fmt: skip

HF = ("hf-float16", "hf-gptj-float16", "hf-phi-float16")
ONNX = ("onnx-float32", "onnx-int4")
GGUF = ("gguf-F16", "gguf-Q8_0", "gguf-Q4_0")
MATRICES = (*HF, *ONNX, *GGUF)
"""The types that a bug is planted in, unless a format cannot have it."""

CALIBRATED = ("gguf-Q4_0-cal",)
"""The types of calibrated artefacts."""

FINE_TUNE = ("fine-tune",)
ONE_LAYER = ("one layer",)
MODELS = ("sharp", "trained", *FINE_TUNE, *ONE_LAYER)
"""The models that bugs are planted in: a random one with sharp attention, the embedded one, a small
one with tokens, a chat template and settings of its own, and the first layer of the embedded one,
which is calibrated in seconds."""

VALUES = ("weights.equal", "weights.error")
GEOMETRY = ("weights.geometry",)

Model = Callable[[Checkpoint], Checkpoint]
Files = Callable[[Path, Checkpoint], None]


@dataclass(frozen=True)
class Mutation:
    """A conversion bug.

    Either `model` returns the model as a faulty writer would write it, or `source` returns it as a
    faulty reader would read it, for the converter and for `verify`, or `files` changes an artefact
    in place. At least one of the checks `caught_by` must fail: those that name the bug.
    """

    name: str
    where: str
    types: tuple[str, ...]
    caught_by: frozenset[str]
    model: Model | None = None
    source: Model | None = None
    files: Files | None = None
    models: tuple[str, ...] = MODELS[:2]


def in_model(
    name: str, caught_by: Iterable[str], model: Model, types: tuple[str, ...] = MATRICES
) -> Mutation:
    """A bug of a writer: the real writers write the faulty model, with its manifest."""
    return Mutation(name, "writer", types, frozenset(caught_by), model=model)


def in_source(
    name: str, caught_by: Iterable[str], source: Model, models: tuple[str, ...] = MODELS[:2]
) -> Mutation:
    """A bug of a reader: the real writers write what was read, and `verify` reads the same."""
    return Mutation(name, "reader", MATRICES, frozenset(caught_by), source=source, models=models)


def in_files(
    name: str, where: str, caught_by: Iterable[str], files: Files, types: tuple[str, ...]
) -> Mutation:
    """A bug in the file `where` of an artefact, whose manifest gets the new hashes."""
    return Mutation(name, where, types, frozenset(caught_by), files=files)


def plant(
    mutation: Mutation, type_: str, source: Checkpoint, valid: Mapping[str, Plan], folder: Path
) -> Plan:
    """Write the artefact with the bug into `folder`, with a manifest that fits its files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = mutation.model or mutation.source
    if written is not None:
        return write(type_, written(source), folder)
    assert mutation.files is not None
    plan = valid[type_]
    target = copied(plan, folder)
    mutation.files(target, source)
    _refresh(target)
    return replace(plan, output=target)


def _refresh(artefact: Path) -> None:
    """Write the files' current hashes into the manifest."""
    manifest = find_manifest(artefact)
    assert manifest is not None
    paths = {name: artefact / name if artefact.is_dir() else artefact for name in manifest.files}
    files = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in paths.items()
    }
    manifest_path(artefact).write_bytes(replace(manifest, files=files).to_json())
