"""Reader of the ONNX folders that cgconvert writes.

The graph's description of its external data is checked here, because onnx and its checker accept
data that is outside the folder or truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.headers import most_stored, tensor_lines
from cgconvert.formats.huggingface import config as configs
from cgconvert.formats.onnx.files import find_graph, folder_of
from cgconvert.formats.onnx.weights import COS, QKV, ROTARY_BASE, ROTARY_ORDER
from cgconvert.io.foreign import foreign_call
from cgconvert.io.reading import read_bytes, spend, timed_reading
from cgconvert.io.remembered import remembered
from cgconvert.io.stand_ins import check_head
from cgconvert.io.strict_json import read_json
from cgconvert.model.architectures import explain_architecture, explain_config
from cgconvert.model.chat_templates import chat_template_files
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.dtype import FLOAT16, FLOAT32, UINT8, DType
from cgconvert.model.generation_config import generation_files, read_generation_config
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.model.tensor_names import ONNX
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES

__all__ = [
    "data_files",
    "decoded_tensors",
    "decoder",
    "find_graph",
    "folder_of",
    "parse",
    "read",
    "stored_tensors",
    "stored_type",
]

MAX_GRAPH_BYTES = 4 << 20
"""A graph of this family without its weights has a few hundred kilobytes; empty nodes of a larger
file would take GBs in memory."""

MAX_PARTS = 1 << 16
"""The most nodes, attributes, names and numbers: a graph of 34 layers has
10,000."""
MAX_NAME = 60
"""The most characters of a file's name: 4 bytes each at most, and file systems take 255."""

_DTYPES: Mapping[int, DType] = {
    TensorProto.FLOAT: FLOAT32,
    TensorProto.FLOAT16: FLOAT16,
    TensorProto.UINT8: UINT8,
}


def stored_tensors(graph: Path) -> dict[str, StoredTensor]:
    """Return every initializer with external data as it is stored, quantized or not, lazily.

    Raises InputError if the file is not an ONNX graph, or if data is not completely inside a
    regular file in the graph's folder.
    """
    return _tensors(graph, parse(graph))


def data_files(graph: Path, beside: Path) -> set[Path]:
    """Return the files that a graph names as its data, in the folder of the file `beside`.

    Raises InputError if it is no graph, or if a file is not there or lies outside the folder.
    """
    return {
        _data_file(beside, f"{beside}: tensor {tensor.name!r}", entry.value)
        for tensor in parse(graph).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def stored_type(graph: Path) -> str:
    """Return int4 or int8 if matrices are quantized, else the type of most bytes, such as float32.

    Raises InputError as `stored_tensors`, and for a number of bits that ONNX Runtime does not have.
    """
    bits = [
        attribute.i
        for node in parse(graph).graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    ]
    if not bits:
        return most_stored(tensor_lines(stored_tensors(graph).values()))
    if min(bits) not in (4, 8):
        raise InputError(f"{graph}: matrices of {min(bits)} bits; ONNX Runtime's have 4 or 8")
    return f"int{min(bits)}"


def decoder(path: Path) -> Decoder:
    """Read the model; quantized weights are decoded when they are read.

    Raises InputError as `read`, but accepts a quantized graph.
    """
    graph = find_graph(path)
    config_path = folder_of(graph) / "config.json"
    model, tensors = parse(graph), decoded_tensors(graph)
    claimed = configs.from_codegen(read_json(config_path), config_path, mp_num=1)
    geometry = _geometry(graph, claimed, model, tensors)
    return ONNX.decoder(geometry, _oriented(tensors), str(graph))


def decoded_tensors(graph: Path) -> dict[str, LazyTensor]:
    """Return every initializer with external data, lazily; quantized ones are decoded when read.

    A quantized matrix has one entry, under its own name, instead of those of its arrays; the
    attributes of the operator that uses it tell how to decode it. Raises InputError as
    `stored_tensors`, and if an operator and its arrays do not agree.
    """
    model = parse(graph)
    stored = _tensors(graph, model)
    decoded: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        if len(node.input) < 3:
            raise InputError(f"{graph}: {node.name}: not the inputs of {node.op_type}")
        table = node.op_type == "GatherBlockQuantized"
        codes = node.input[0 if table else 1]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        bits, name = attributes.get("bits", 4), codes.rpartition("_Q")[0]
        # The scales of a float32 graph come through a Cast, so the arrays are found by name.
        names = [codes, f"{name}_scales"]
        if len(node.input) > 3 and node.input[3]:
            names.append(node.input[3])
        if not name or not all(part in stored for part in names):
            continue
        arrays = tuple(stored[part] for part in names)
        try:
            codec = MatMulNBits(bits, attributes.get("block_size", 32), len(arrays) == 2, table)
            shape = (arrays[0].shape[0], math.prod(arrays[0].shape[1:]) * 8 // bits)
            expected_shapes = [array.shape for array in codec.arrays(shape)]
        except (UsageError, InputError) as error:
            raise InputError(f"{graph}: {node.name}: {error}") from None
        if expected_shapes != [array.shape for array in arrays]:
            raise InputError(f"{graph}: {node.name}: its arrays and attributes do not agree")
        decoded[name] = QuantizedTensor(arrays, shape, codec)
        used.update(names)
    return decoded | {name: tensor for name, tensor in stored.items() if name not in used}


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json beside a graph. Raises InputError for that of another model."""
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type != "codegen":
        named = explain_config(config)
        evidence = f"model_type {str(model_type)[:80]!r}"
        raise InputError(f"{path}: {named or explain_architecture('another model', evidence)}")
    return config


def read(path: Path, name: str) -> Checkpoint:
    """Read a float artefact as a source; only headers are read, the weights are lazy.

    Raises InputError if it is broken, quantized, or not one that cgconvert wrote.
    """
    graph = find_graph(path)
    folder = folder_of(graph)
    config_path = folder / "config.json"
    config = read_config(config_path)
    model = parse(graph)
    stored = _tensors(graph, model)
    geometry = _geometry(graph, configs.from_codegen(config, config_path, mp_num=1), model, stored)
    data = sorted({tensor.path for tensor in stored.values()})
    tokenizer = Tokenizer.load(folder)
    generation = read_generation_config(folder, config, config_path, tokenizer)
    return Checkpoint(
        name=name,
        path=path,
        layout="onnx",
        config=config,
        decoder=ONNX.decoder(geometry, _oriented(_float(graph, stored)), str(graph)),
        tokenizer=tokenizer,
        files=(
            *data,
            graph,
            config_path,
            *(folder / file for file in TOKENIZER_FILES if (folder / file).is_file()),
            *generation_files(folder, config, generation, tokenizer),
            *chat_template_files(folder),
        ),
        generation=generation,
    )


def parse(graph: Path) -> onnx.ModelProto:
    """Parse a graph without its external data; the result must not be changed.

    Raises InputError if the file is not a graph.
    """
    return remembered((parse, graph), lambda: _parse(graph))


def _parse(graph: Path) -> onnx.ModelProto:
    check_head(graph)
    data = read_bytes(graph, MAX_GRAPH_BYTES, kind="a graph of cgconvert's, without weights inside")
    with timed_reading(graph):
        try:
            with foreign_call(graph, "not an ONNX graph"):
                model: onnx.ModelProto = onnx.ModelProto.FromString(data)
        except DecodeError as error:
            raise InputError(f"{graph}: not an ONNX graph, or a damaged one") from error
        _count_parts(graph, model)
    if not model.graph.node:
        raise InputError(f"{graph}: not an ONNX graph, or an empty one")
    # protobuf does not check UTF-8, and cgconvert writes no names of several lines.
    if not all(isinstance(text, str) and text.isprintable() for text in _texts(model)):
        raise InputError(f"{graph}: a damaged ONNX graph: a name in it is not text")
    return model


def _count_parts(graph: Path, model: Message) -> None:
    """Count the nodes, attributes, names, numbers and all other parts, however they are nested.

    Raises InputError for more than any decoder has, before anything looks at each of them.
    """
    count, messages = 0, [model]
    while messages:
        for _, value in messages.pop().ListFields():
            if isinstance(value, Message):
                messages.append(value)
            elif not isinstance(value, str | bytes | int | float):  # a repeated field
                count += len(value)
                if count > MAX_PARTS:
                    raise InputError(f"{graph}: more nodes and tensors than any decoder has")
                if isinstance(value[0], Message):
                    messages.extend(value)
    spend(graph, "parts", count)


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Yield every name and text in a model."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for opset in model.opset_import:
        yield opset.domain
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
    for value in (*model.graph.input, *model.graph.output):
        yield value.name
    for tensor in model.graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _tensors(graph: Path, model: onnx.ModelProto) -> dict[str, StoredTensor]:
    """Return the initializers with external data. Raises InputError."""
    stored: dict[str, StoredTensor] = {}
    sizes: dict[Path, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if tensor.name in stored:
            raise InputError(f"{graph}: tensor {tensor.name!r} is there twice")
        stored[tensor.name] = _stored(graph, tensor, sizes)
    return stored


def _stored(graph: Path, tensor: TensorProto, sizes: dict[Path, int]) -> StoredTensor:
    """Check one initializer's external data; `sizes` caches the sizes of data files."""
    label = f"{graph}: tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype, shape = _DTYPES.get(tensor.data_type), tuple(tensor.dims)
    if dtype is None or min(shape, default=1) < 1:
        raise InputError(f"{label} has type {tensor.data_type} and shape {list(shape)}")
    path = _data_file(graph, label, entries.get("location", ""))
    if path not in sizes:
        check_head(path)
        sizes[path] = path.stat().st_size
    offset, length = (_number(label, key, entries.get(key, "")) for key in ("offset", "length"))
    if length != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{label} has shape {list(shape)} but {length} bytes of data")
    if offset + length > sizes[path]:
        raise InputError(
            f"{label} ends at byte {offset + length} of {path.name}, which has {sizes[path]}; "
            "it is truncated"
        )
    return StoredTensor(path, offset, shape, dtype, tensor.name)


def _data_file(graph: Path, label: str, location: str) -> Path:
    """Return a data file, which must be a regular file in the graph's folder.

    It may be a link only if the graph is one too and both lead into the same folder, as in the
    Hub's cache.
    """
    if (
        location in ("", "..")
        or Path(location).name != location
        or "\\" in location
        or len(location) > MAX_NAME
    ):
        raise InputError(f"{label} has its data outside the folder, at {location!r}")
    path = graph.parent / location
    if not path.is_file():
        raise InputError(f"{label} has its data in {location!r}, which is not there")
    if path.resolve().parent not in (graph.parent.resolve(), graph.resolve().parent):
        raise InputError(f"{label} has its data outside the folder: {location} is a link")
    return path


def _number(label: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(f"{label} has {key} {text!r} for its data, not a number")
    return int(text)


def _float(graph: Path, stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    for name, tensor in stored.items():
        if not tensor.dtype.is_floating_point:
            raise InputError(
                f"{graph}: its weights are quantized ({name!r}); a source has to be a float graph"
            )
    return stored


def _oriented(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return every matrix as [out, in], and q, k and v as separate tensors."""
    bound: dict[str, LazyTensor] = {}
    untransposed = {ONNX.model["wte"], *ONNX.dropped}
    packed = {QKV.format(i=i): i for i in range(len(tensors))}
    for name, tensor in tensors.items():
        # The rows of a matrix for MatMulNBits are outputs already.
        is_transposed = (
            isinstance(tensor, StoredTensor) and len(tensor.shape) == 2 and name not in untransposed
        )
        oriented = tensor.T if is_transposed else tensor
        if name in packed:
            parts = np.array_split(np.arange(oriented.shape[0]), 3)
            for part, rows in zip("qkv", parts, strict=True):
                bound[ONNX.layer[part].format(i=packed[name])] = oriented.rows(rows)
        else:
            bound[name] = oriented
    return bound


def _geometry(
    graph: Path, claimed: Geometry, model: onnx.ModelProto, stored: Mapping[str, LazyTensor]
) -> Geometry:
    """Complete the geometry in config.json by the rotary base, which only the graph records.

    Raises InputError if the graph does not fit the configuration.
    """
    facts = {entry.key: entry.value for entry in model.metadata_props}
    try:
        base = float(facts[ROTARY_BASE])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{graph}: not a graph that cgconvert wrote (no {ROTARY_BASE}); convert from its source"
        ) from error
    if facts.get(ROTARY_ORDER) != "half_split":
        raise InputError(f"{graph}: {ROTARY_ORDER} is {facts.get(ROTARY_ORDER)!r}, not half_split")
    table = stored[COS].shape if COS in stored else ()
    if table != (claimed.n_positions, claimed.rotary_dim // 2):
        raise InputError(
            f"{graph}: its rotary table is {list(table)}, config.json says "
            f"{[claimed.n_positions, claimed.rotary_dim // 2]}"
        )
    return replace(claimed, mp_num=0, rotary_base=base)
