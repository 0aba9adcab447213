"""What `inspect` tells of a checkpoint or an artefact, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cgconvert.formats import jaxformer
from cgconvert.formats.gguf import header as gguf_header
from cgconvert.formats.gguf import reader as gguf
from cgconvert.formats.huggingface import config_reader as configs
from cgconvert.formats.huggingface import weight_files as weights
from cgconvert.formats.onnx import reader as onnx
from cgconvert.formats.read import ReadOptions, layout_of, read
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor import LazyTensor, Stored
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.sources.resolve import Source, find
from cgconvert.write.manifest import find_manifest

__all__ = ["Description", "TensorLine", "describe"]

SCHEMA = 1


@dataclass(frozen=True)
class TensorLine:
    """A tensor as stored: `shape` in elements, `nbytes` in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Description:
    """`types` counts stored bytes by type; `provenance` is the manifest's account of where an
    artefact came from, or how a checkpoint was found."""

    path: str
    name: str
    layout: str
    geometry: Mapping[str, Any]
    parameters: int
    tokenizer: Mapping[str, Any]
    types: Mapping[str, int]
    tensors: tuple[TensorLine, ...]
    provenance: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class _Parts:
    name: str
    layout: str
    geometry: Geometry
    tokenizer: Tokenizer
    tensors: tuple[TensorLine, ...]
    origin: Mapping[str, Any]


def describe(given: str, options: ReadOptions | None = None) -> Description:
    """Read the headers of whatever `given` names. Raises InputError where it is nothing known."""
    options = options or ReadOptions()
    source = find(given, options.revision)
    parts = _DESCRIBERS[layout_of(source.path)](given, source, options)
    manifest = find_manifest(source.path)
    bytes_of: Counter[str] = Counter()
    for tensor in parts.tensors:
        bytes_of[tensor.type] += tensor.nbytes
    return Description(
        path=str(source.path),
        name=manifest.name if manifest else parts.name,
        layout=parts.layout,
        geometry=parts.geometry.as_dict(),
        parameters=parts.geometry.parameters,
        tokenizer=_tokenizer(parts.tokenizer, parts.geometry),
        types=dict(bytes_of.most_common()),
        tensors=parts.tensors,
        provenance=asdict(manifest) if manifest else dict(parts.origin),
    )


def _tokenizer(tokenizer: Tokenizer, geometry: Geometry) -> dict[str, Any]:
    runs = tokenizer.whitespace_ids
    return {
        "entries": tokenizer.size,
        "merges": len(tokenizer.merges),
        "end_of_text": tokenizer.end_of_text,
        "white_space": [min(runs), max(runs)] if runs else [],
        "padding_rows": geometry.vocab_size - tokenizer.size,
    }


def _checkpoint(given: str, source: Source, options: ReadOptions) -> _Parts:
    checkpoint = read(given, options)
    stored: Iterable[LazyTensor]
    if checkpoint.layout == "jaxformer":
        stored = jaxformer.leaves(checkpoint.path / "model" / "0.npz")
    else:
        suffixes = (".safetensors", ".bin")
        files = tuple(path for path in checkpoint.files if path.suffix in suffixes)
        stored = weights.read(files).values()
    return _Parts(
        checkpoint.name,
        checkpoint.layout,
        checkpoint.geometry,
        checkpoint.tokenizer,
        tuple(_line(tensor) for tensor in stored if isinstance(tensor, Stored)),
        checkpoint.origin,
    )


def _gguf(given: str, source: Source, options: ReadOptions) -> _Parts:
    path = source.path if source.path.is_file() else next(source.path.glob("*.gguf"))
    header = gguf_header.read_header(path)
    tokenizer = options.tokenizer
    return _Parts(
        str(header.metadata.get("general.name", source.name)),
        "gguf",
        gguf.geometry(path, header),
        Tokenizer.load(tokenizer) if tokenizer else gguf.tokenizer(path, header),
        tuple(TensorLine(t.name, t.type, t.shape, t.nbytes) for t in header.tensors),
        source.origin,
    )


def _onnx(given: str, source: Source, options: ReadOptions) -> _Parts:
    graph = onnx.find_graph(source.path)
    folder = onnx.folder_of(graph)
    where = options.config or folder / "config.json"
    return _Parts(
        source.name,
        "onnx",
        configs.from_codegen(configs.read_json(where), where, 1),
        Tokenizer.load(options.tokenizer or folder),
        tuple(_line(tensor) for tensor in onnx.stored_tensors(graph).values()),
        source.origin,
    )


def _line(tensor: Stored) -> TensorLine:
    kind = str(tensor.dtype).removeprefix("torch.")
    return TensorLine(tensor.name, kind, tensor.shape, tensor.nbytes)


_DESCRIBERS: Mapping[str, Callable[[str, Source, ReadOptions], _Parts]] = {
    "huggingface": _checkpoint,
    "jaxformer": _checkpoint,
    "gguf": _gguf,
    "onnx": _onnx,
}
