"""Admit the graph of an ONNX folder to onnxruntime, or the folder to onnxruntime-genai.

onnxruntime loads the files that a graph names as its data, and onnxruntime-genai the graph that
genai_config.json names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, TensorProto

from cgconvert.errors import InputError
from cgconvert.formats.comparison import as_mapping
from cgconvert.formats.huggingface.admitted_entries import admit_configuration, admit_tokenizer
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.builder import MICROSOFT, OPERATORS
from cgconvert.formats.onnx.files import GRAPH_FOLDER, find_graph, folder_of
from cgconvert.formats.onnx.genai_checks import admit_genai_config, admit_genai_template
from cgconvert.io.admitted import AdmittedFiles, admitting
from cgconvert.io.strict_json import read_json
from cgconvert.model.chat_templates import CHAT_TEMPLATE
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES

__all__ = ["admit_genai", "admit_onnx", "check_graph"]

SETTINGS = ("config.json", "generation_config.json")
GENAI_CONFIG = "genai_config.json"

SMALL = 64
"""The most elements of a tensor that is kept in the graph itself."""

FIELDS: Mapping[str, Collection[str]] = {
    "ModelProto": ("ir_version", "producer_name", "producer_version", "opset_import", "graph",
                   "metadata_props", "domain", "model_version", "doc_string"),
    "GraphProto": ("name", "node", "initializer", "input", "output", "value_info", "doc_string"),
    "NodeProto": ("name", "op_type", "domain", "input", "output", "attribute", "doc_string"),
    "AttributeProto": ("name", "type", "i", "ints", "f", "floats"),
    "TensorProto": ("name", "dims", "data_type", "data_location", "external_data", "raw_data",
                    "int32_data", "int64_data", "float_data"),
    "ValueInfoProto": ("name", "type", "doc_string"),
    "TypeProto": ("tensor_type",),
    "Tensor": ("elem_type", "shape"),
    "TensorShapeProto": ("dim",),
    "Dimension": ("dim_value", "dim_param"),
    "OperatorSetIdProto": ("domain", "version"),
    "StringStringEntryProto": ("key", "value"),
}  # fmt: skip
"""The fields of each message of a graph that cgconvert writes, or that only describe it."""

EXTERNAL_KEYS = ["length", "location", "offset"]
"""What is said of data in another file. onnxruntime would take weights that it has packed itself
from where a key that begins with "prepacked" says (tensor_external_data_info.cc)."""

DATA_INSIDE = frozenset(("raw_data", "int32_data", "int64_data", "float_data"))

_NUMBERS = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)


def admit_onnx(path: Path) -> AdmittedFiles:
    """Admit the graph at `path`, or the only one of a folder, to onnxruntime."""
    graph = find_graph(path)
    with admitting(path, folder_of(graph)) as files:
        files.path = _link_graph(files, _name(graph), graph)
        files.copy_present((*SETTINGS, *TOKENIZER_FILES))
        check_graph(files.path)
        Tokenizer.load(files.folder)
        admit_configuration(files)
        admit_tokenizer(files, with_template=False)
    return files


def admit_genai(path: Path) -> AdmittedFiles:
    """Admit a folder, or that of the graph at `path`, to onnxruntime-genai."""
    folder = path if path.is_dir() else folder_of(path)
    with admitting(folder, folder) as files:
        config_path = files.copy(GENAI_CONFIG)
        name = _named_graph(config_path)
        if path.is_file() and name != _name(path):
            raise InputError(
                f"{config_path}: is for {Path(name).name}, not {path.name}; onnxruntime-genai runs "
                "the graph that it names"
            )
        if not (folder / name).is_file():
            raise InputError(f"{config_path}: names the graph {name!r}, which is not there")
        graph = _link_graph(files, name, folder / name)
        files.copy_present((*SETTINGS, *TOKENIZER_FILES, CHAT_TEMPLATE))
        check_graph(graph)
        Tokenizer.load(files.folder)
        admit_genai_config(config_path, graph)
        admit_genai_template(files.folder)
        if (files.folder / "config.json").is_file():
            admit_configuration(files)
        admit_tokenizer(files, with_template=True)
    return files


def _name(graph: Path) -> str:
    """The path of a graph as seen from the folder of its configuration."""
    return graph.name if folder_of(graph) == graph.parent else f"{GRAPH_FOLDER}/{graph.name}"


def _named_graph(config_path: Path) -> str:
    """Read which graph a genai_config.json names. Raises InputError if it may not name it."""
    model = as_mapping(read_json(config_path).get("model"))
    name = as_mapping(model.get("decoder")).get("filename")
    if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{config_path}: names the graph {name!r}, outside the folder")
    if len(name) > 200:
        raise InputError(f"{config_path}: names the graph {name!r}, too long a name")
    return name


def _link_graph(files: AdmittedFiles, name: str, graph: Path) -> Path:
    """Let the runtime have a graph, and the files beside it that it names as its data.

    Both are links, since onnxruntime follows a link to data only into the folder of the graph or
    into that which a link to the graph leads to (tensorprotoutils.cc: ValidateExternalDataPath).
    """
    target = files.link(name, graph)
    folder = Path(name).parent
    for data in sorted(reader.data_files(target, graph)):
        files.link((folder / data.name).as_posix(), data)
    return target


def check_graph(graph: Path) -> None:
    """Check that a graph has its data in its folder, and only operators that cgconvert writes.

    Raises InputError.
    """
    reader.decoded_tensors(graph)
    model = reader.parse(graph)
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise InputError(f"{graph}: has functions or other parts that no graph of cgconvert has")
    if {entry.domain for entry in model.opset_import} - {"", "ai.onnx", MICROSOFT}:
        raise InputError(f"{graph}: uses operators of another domain than ONNX Runtime's own")
    _check_constants(graph, model)
    _check_nodes(graph, model)
    _check_fields(graph, model)


def _check_fields(graph: Path, model: ModelProto) -> None:
    """Check that a graph has no field that cgconvert does not write, at any depth."""
    messages: list[Message] = [model]
    while messages:
        message = messages.pop()
        kind = message.DESCRIPTOR.name
        for field, value in message.ListFields():
            if field.name not in FIELDS.get(kind, ()):
                raise InputError(
                    f"{graph}: has {field.name} in {kind}, which cgconvert does not write"
                )
            if isinstance(value, Message):
                messages.append(value)
            elif field.message_type is not None:
                messages.extend(value)
    for tensor in model.graph.initializer:
        is_external = tensor.data_location == TensorProto.EXTERNAL
        keys = sorted(entry.key for entry in tensor.external_data)
        inside = {field.name for field, _ in tensor.ListFields()} & DATA_INSIDE
        if keys != (EXTERNAL_KEYS if is_external else []) or (is_external and inside):
            raise InputError(
                f"{graph}: tensor {tensor.name!r} says more of its data than the file, the offset "
                "and the length, or says it twice"
            )


def _check_constants(graph: Path, model: ModelProto) -> None:
    """Check that tensors in the graph itself are small."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        try:
            is_small = 0 <= min(tensor.dims, default=0) <= max(tensor.dims, default=0) <= SMALL
            is_small = is_small and len(tensor.dims) < 3
            is_small = is_small and onnx.numpy_helper.to_array(tensor).size <= SMALL
        except Exception as error:  # onnx does not check the tensor
            raise InputError(f"{graph}: tensor {tensor.name!r} is damaged: {error}") from error
        if not is_small:
            raise InputError(f"{graph}: tensor {tensor.name!r} is too large to be in the graph")


def _check_nodes(graph: Path, model: ModelProto) -> None:
    """Check that operators are known, come after those whose outputs they take, and that no name
    is given twice."""
    known = {value.name for value in model.graph.input}
    if twice := [tensor.name for tensor in model.graph.initializer if tensor.name in known]:
        raise InputError(f"{graph}: {twice[0]!r} is a tensor and an input")
    known |= {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        if OPERATORS.get(node.op_type) != node.domain.removeprefix("ai.onnx"):
            kind = f"{node.domain}:{node.op_type}"
            raise InputError(
                f"{graph}: node {node.name!r} is {kind!r}, which cgconvert does not write"
            )
        if any(attribute.type not in _NUMBERS for attribute in node.attribute):
            raise InputError(f"{graph}: node {node.name!r} has an attribute that is no number")
        if unknown := [name for name in node.input if name not in known]:
            raise InputError(
                f"{graph}: node {node.name!r} takes {unknown[0]!r}, which nothing before it gives"
            )
        outputs = [name for name in node.output if name]
        if twice := [name for name in outputs if name in known]:
            raise InputError(f"{graph}: node {node.name!r} gives {twice[0]!r} a second time")
        known.update(outputs)
