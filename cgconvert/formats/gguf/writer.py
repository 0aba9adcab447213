"""GGUF for an unmodified llama.cpp, which runs CodeGen as its architecture `phi2`.

Format: docs/gguf.md of ggml-org/ggml; tensors and keys: src/models/phi2.cpp of llama.cpp.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.encoding import F32, Encoding
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import (
    ImportanceEncoding,
    PackedRowsEncoding,
    QuantizedTensor,
)
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.gguf.generation import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATES,
    GenerationMetadata,
    generation_metadata,
)
from cgconvert.formats.gguf.header import ALIGNMENT, HeaderWriter, padded
from cgconvert.formats.gguf.imatrix import Imatrix
from cgconvert.formats.gguf.model_card import default_folder
from cgconvert.formats.gguf.type_choices import DEFAULT_TYPE
from cgconvert.formats.gguf.type_names import TYPE_KEY, MatrixType, mix_name, standard_mix
from cgconvert.formats.gguf.types import TYPES, FileType
from cgconvert.model import family
from cgconvert.model.chat_templates import DEFAULT
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import GGUF, named_tensors
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.write.plan import FilePlan, Plan, TensorPlan, lay_out

__all__ = [
    "ADJUSTED",
    "ALIGNMENT",
    "ARCHITECTURE",
    "IMATRIX",
    "PRE_TOKENIZER",
    "file_name",
    "header_size",
    "output_path",
    "plan",
    "type_name",
]

EncodedTensor = tuple[str, LazyTensor, Encoding]
"""The name of a tensor in the file, its numbers, and how they are stored."""

ARCHITECTURE = "phi2"
PRE_TOKENIZER = "gpt-2"
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
"""Ids that llama.cpp's own samplers never pick (since mid-2026; older ones ignore the key)."""


ADJUSTED = "cgconvert.adjusted"
"""Names of the vectors that calibration has changed."""

IMATRIX = "quantize.imatrix"
"""Prefix of the keys by which llama-quantize names its imatrix (tools/quantize/quantize.cpp)."""


def file_name(checkpoint: Checkpoint, type: str) -> str:  # noqa: A002 - the option's name
    """`<name>-<type>.gguf`: BaseName, SizeLabel, FineTune and Encoding of GGUF's convention."""
    return f"{checkpoint.name.replace(' ', '-')}-{type}.gguf"


def output_path(checkpoint: Checkpoint, output: Path | None, type: str) -> Path:  # noqa: A002
    """The path of a new file: `output`, or the default folder and `file_name`.

    Raises UsageError where `output` does not end in .gguf.
    """
    path = output or default_folder(checkpoint) / file_name(checkpoint, type)
    if path.suffix != ".gguf":
        raise UsageError(f"{path}: a GGUF file's name ends in .gguf")
    return path


def plan(
    checkpoint: Checkpoint,
    output: Path,
    *,
    type: str = DEFAULT_TYPE,  # noqa: A002
    fixed: Sequence[tuple[str, str]] = (),
    adjusted: Sequence[str] = (),
    importance: Imatrix | None = None,
    name: str | None = None,
) -> Plan:
    """Plan the file at `output`, its matrices stored as `type` says, its vectors as F32.

    `fixed` are other types by pattern of a matrix's name, the first match first. Matrices that are
    quantized already stay as they are. `adjusted` are the names of vectors that calibration has
    changed; the file records them. `importance` is an imatrix of this model: matrices of a searched
    type then lose least where their inputs are large. `name` is the name of the file's type, by
    default that of its matrices' types (type_names.py).

    Raises UsageError for an unknown type and a pattern that fits nothing, InputError where a row
    does not divide into blocks or the tokenizer has no merges, without which llama.cpp loads no
    vocabulary.
    """
    if type not in TYPES:
        raise UsageError(f"type {type!r} is not one of {', '.join(TYPES)}")
    _check_merges(checkpoint)
    tensors = _apply_patterns(list(_tensors(checkpoint.decoder, TYPES[type])), fixed)
    tensors = [(key, tensor, _weighted(key, e, importance)) for key, tensor, e in tensors]
    # Offsets in the header count from the end of the header, so its length does not matter yet.
    tensors_from_zero = lay_out(tensors, align=ALIGNMENT)
    matrices = _matrices(tensors_from_zero)
    name = name or mix_name(matrices)
    header = _header(
        checkpoint, name, standard_mix(matrices), tensors_from_zero, adjusted, importance
    )
    tensor_plans = lay_out(tensors, start=padded(len(header)), align=ALIGNMENT)
    data_end = tensor_plans[-1].arrays[-1].offset + tensor_plans[-1].arrays[-1].nbytes
    file = FilePlan(output.name, header, tensor_plans, padded(data_end))
    options: dict[str, Any] = {"type": type}
    if fixed:
        options["tensor_type"] = dict(fixed)
    if importance is not None:
        options["imatrix"] = importance.manifest_entry
    notes = generation_metadata(checkpoint).notes
    return Plan(checkpoint, output, False, "gguf", name, (file,), options, notes)


def header_size(
    checkpoint: Checkpoint, adjusted: Sequence[str] = (), name: str = DEFAULT_TYPE
) -> int:
    """Bytes of a file before its tensors, the padding included; the same for every standard type.

    With `types.data_size` it gives the length of a file without planning it. `adjusted` and `name`
    are those that the header will have, as in `plan`; if `name` is no type of llama.cpp's, the
    result may be a few bytes too large. Raises InputError where the tokenizer has no merges.
    """
    _check_merges(checkpoint)
    tensors = lay_out(_tensors(checkpoint.decoder, TYPES[DEFAULT_TYPE]), align=ALIGNMENT)
    return padded(len(_header(checkpoint, name, DEFAULT_TYPE, tensors, adjusted, None)))


def type_name(
    checkpoint: Checkpoint,
    type: str,  # noqa: A002 - as in plan
    fixed: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the name of the type of a file whose matrices are stored as `type` and `fixed` say.

    Arguments and errors are those of `plan`.
    """
    tensors = _apply_patterns(list(_tensors(checkpoint.decoder, TYPES[type])), fixed)
    return mix_name(_matrices(lay_out(tensors, align=ALIGNMENT)))


def _matrices(tensor_plans: Sequence[TensorPlan]) -> list[MatrixType]:
    """List how the matrices among the tensors are stored."""
    return [
        MatrixType.of(tensor.name, tensor.encoding.name, tensor.arrays[0].shape, tensor.nbytes)
        for tensor in tensor_plans
        if len(tensor.arrays[0].shape) == 2
    ]


def _check_merges(checkpoint: Checkpoint) -> None:
    """Raise InputError if the tokenizer has no merges, because llama.cpp loads no such file."""
    if not checkpoint.tokenizer.merges:
        raise InputError(
            f"{checkpoint.path}: its tokenizer has no merges, and llama.cpp loads no GGUF without; "
            "give the model's tokenizer with `tokenizer`, or convert to another format"
        )


def _tensors(decoder: Decoder, kind: FileType) -> Iterator[EncodedTensor]:
    """Every tensor by name with its encoding, in the order the model uses them."""
    layers = decoder.geometry.n_layer
    for name, part, layer, tensor in named_tensors(decoder, GGUF, bias_dtype=F32.dtype):
        if isinstance(tensor, QuantizedTensor):
            yield name, tensor.arrays[0], PackedRowsEncoding(tensor.codec, tensor.shape)
        elif len(tensor.shape) == 2:
            yield name, tensor, kind.encoding_of(part, layer or 0, layers)
        else:
            yield name, tensor, F32


def _apply_patterns(
    tensors: list[EncodedTensor], fixed: Sequence[tuple[str, str]]
) -> list[EncodedTensor]:
    """Give matrices whose names fit a pattern its type; the first pattern that fits decides."""
    changed = list(tensors)
    for pattern, type_ in reversed(fixed):
        if type_ not in ENCODINGS:
            raise UsageError(f"type {type_!r} is not one of {', '.join(ENCODINGS)}")
        matching = [
            index
            for index, (name, tensor, _) in enumerate(tensors)
            if len(tensor.shape) == 2 and fnmatch.fnmatchcase(name, pattern)
        ]
        if not matching:
            raise UsageError(f"no matrix is called {pattern!r}; there is {tensors[0][0]}, for one")
        for index in matching:
            changed[index] = (*tensors[index][:2], ENCODINGS[type_])
    return changed


def _weighted(name: str, encoding: Encoding, importance: Imatrix | None) -> Encoding:
    """Give a matrix's importances to its search, as llama-quantize does for types that search.

    Rows of q and k change places on the way to the file, columns do not.
    """
    columns = None if importance is None else importance.importance(name)
    if columns is None or not isinstance(encoding, BlockCodec) or encoding.search is None:
        return encoding
    return ImportanceEncoding(encoding, columns)


def _header(
    checkpoint: Checkpoint,
    name: str,
    mix: str | None,
    tensor_plans: tuple[TensorPlan, ...],
    adjusted: Sequence[str],
    importance: Imatrix | None,
) -> bytes:
    """The metadata and the list of tensors, as the bytes at the start of the file.

    `name` is the name of the file's type, and `mix` llama.cpp's for the types of its matrices; None
    if it has none.
    """
    writer, generation = HeaderWriter(ARCHITECTURE), generation_metadata(checkpoint)
    _describe(writer, checkpoint)
    for key, value in generation.sampling.items():
        if isinstance(value, int):
            writer.add_int32(key, value)
        else:
            writer.add_float32(key, value)
    writer.add_file_type(_file_type(mix, tensor_plans))
    if name != mix:
        writer.add_string(TYPE_KEY, name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_geometry(writer, checkpoint.geometry)
    _add_tokenizer(writer, checkpoint.tokenizer, checkpoint.geometry.vocab_size, generation)
    if adjusted:
        writer.add_array(ADJUSTED, list(adjusted))
    if importance is not None:
        writer.add_string(f"{IMATRIX}.file", importance.file)
        for text in importance.datasets[:1]:
            writer.add_string(f"{IMATRIX}.dataset", text)
        writer.add_uint32(f"{IMATRIX}.entries_count", len(importance.inputs))
        writer.add_uint32(f"{IMATRIX}.chunks_count", importance.chunks)
    for tensor_plan in tensor_plans:
        number = gguf.GGMLQuantizationType[tensor_plan.encoding.name]
        # The type of the numbers is in `number`; float32 only says that shapes are logical.
        writer.add_tensor_info(
            tensor_plan.name,
            tensor_plan.arrays[0].shape,
            np.dtype(np.float32),
            tensor_plan.nbytes,
            number,
        )
    return writer.header()


def _file_type(mix: str | None, tensor_plans: Sequence[TensorPlan]) -> int:
    """Return the number that llama.cpp shows as the file's type.

    Every number names a mix. For other types of matrices it is that of the type in which most bytes
    are stored, with the mark that llama.cpp shows as "(guessed)". Without the entry its loader
    counts tensors, of which most are vectors, and shows "all F32".
    """
    if mix is not None:
        return int(TYPES[mix].number)
    sizes: Counter[str] = Counter()
    for tensor in tensor_plans:
        sizes[tensor.encoding.name] += tensor.nbytes
    most = next((name for name, _ in sizes.most_common() if name in TYPES), DEFAULT_TYPE)
    return int(TYPES[most].number) | gguf.LlamaFileType.GUESSED


def _describe(writer: HeaderWriter, checkpoint: Checkpoint) -> None:
    """Add the general.* entries: name, size, tags, licence."""
    name, parameters = checkpoint.name, checkpoint.geometry.parameters
    known_as = checkpoint.known_as
    _, _, base, finetune, version, size = gguf.Metadata.get_model_id_components(name, parameters)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_basename(base or name)
    writer.add_finetune(finetune or "")  # the writer leaves out what is empty
    writer.add_version(version or "")
    writer.add_size_label(size or gguf.size_label(parameters, parameters, 0, 0))
    writer.add_tags(["text-generation", *family.model_of(known_as).tags])
    license_name = family.license_of(known_as)
    if license_name:
        writer.add_license(license_name)
    if family.is_published_checkpoint(known_as):  # who made a fine-tune is not known
        writer.add_organization(family.published(known_as).organisation)
        writer.add_languages(list(family.model_of(known_as).languages))


def _add_geometry(writer: HeaderWriter, geometry: Geometry) -> None:
    """Add the phi2.* entries, from which llama.cpp builds the model."""
    writer.add_context_length(geometry.n_positions)
    writer.add_embedding_length(geometry.n_embd)
    writer.add_feed_forward_length(geometry.n_inner)
    writer.add_block_count(geometry.n_layer)
    writer.add_head_count(geometry.n_head)
    writer.add_head_count_kv(geometry.n_head)
    writer.add_layer_norm_eps(geometry.layer_norm_epsilon)
    writer.add_rope_dimension_count(geometry.rotary_dim)
    writer.add_rope_freq_base(geometry.rotary_base)


def _add_tokenizer(
    writer: HeaderWriter, tokenizer: Tokenizer, rows: int, generation: GenerationMetadata
) -> None:
    """Add one token for each row of the embedding, ids and chat templates.

    Rows without a token get an unused name.
    """
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = gguf.TokenType
    types = [int(kinds.UNUSED)] * rows
    for token, index in tokenizer.vocabulary.items():
        tokens[index], types[index] = token, int(kinds.NORMAL)
    for added in tokenizer.added:
        tokens[added.id] = added.content
        types[added.id] = int(kinds.CONTROL if added.special else kinds.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_values(gguf.Keys.Tokenizer.LIST, tokens)
    writer.add_values(gguf.Keys.Tokenizer.TOKEN_TYPE, types)
    merges = [f"{left} {right}" for left, right in tokenizer.merges]
    writer.add_values(gguf.Keys.Tokenizer.MERGES, merges)
    for key, index in generation.ids.items():
        writer.add_uint32(key, index)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    ends = generation.ids.values()
    padding = (index for index in range(tokenizer.size, rows) if index not in ends)
    suppressed = [*generation.suppressed, *padding]
    if suppressed:
        writer.add_values(SUPPRESSED, suppressed)
    for name, template in generation.templates.items():
        writer.add_string(CHAT_TEMPLATE if name == DEFAULT else f"{CHAT_TEMPLATE}.{name}", template)
    named = [name for name in generation.templates if name != DEFAULT]
    if named:
        writer.add_values(CHAT_TEMPLATES, named)
