"""The types of GGUF files, and the encoding of each matrix in a file of each type.

Numbers are llama.cpp's llama_ftype. Mixed types are those of its llama-quantize for a model with
separate q, k and v (src/llama-quant.cpp: llama_tensor_get_type).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gguf import LlamaFileType

from cgconvert.codecs.encoding import F32, Encoding
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.formats.gguf.header import padded
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import GGUF, named_tensors

__all__ = ["TYPES", "FileType", "data_size"]

Layers = Callable[[int, int], bool]
"""Whether a layer, given its index and the number of layers, has the part's own encoding."""


@dataclass(frozen=True)
class FileType:
    """The encoding of each matrix in a file.

    `number` is llama.cpp's number of the type. `encoding` is the default. `parts` has the
    exceptions: fields of Decoder and Layer with another encoding, and the layers that have it.
    """

    number: LlamaFileType
    encoding: Encoding
    parts: Mapping[str, tuple[Encoding, Layers]] = field(default_factory=dict)

    def encoding_of(self, part: str, layer: int = 0, layers: int = 1) -> Encoding:
        """Return the encoding of a matrix in layer `layer` of `layers`, which only layers need."""
        encoding, in_layer = self.parts.get(part, (self.encoding, _all_layers))
        return encoding if in_layer(layer, layers) else self.encoding


def _all_layers(layer: int, layers: int) -> bool:
    return True


def _more_bits(layer: int, layers: int) -> bool:
    """Choose the first and last eighth of the layers, and every third between (use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _first_eighth(layer: int, layers: int) -> bool:
    return layer < layers // 8


def _first_four(layer: int, layers: int) -> bool:
    return layer < 4


def _uniform(number: LlamaFileType, name: str) -> FileType:
    return FileType(number, ENCODINGS[name])


def _mix(number: LlamaFileType, name: str, **parts: tuple[str, Layers]) -> FileType:
    encodings = {part: (ENCODINGS[kind], layers) for part, (kind, layers) in parts.items()}
    return FileType(
        number, ENCODINGS[name], {"head": (ENCODINGS["Q6_K"], _all_layers), **encodings}
    )


TYPES: Mapping[str, FileType] = {
    "F32": _uniform(LlamaFileType.ALL_F32, "F32"),
    "F16": _uniform(LlamaFileType.MOSTLY_F16, "F16"),
    "BF16": _uniform(LlamaFileType.MOSTLY_BF16, "BF16"),
    "Q8_0": _uniform(LlamaFileType.MOSTLY_Q8_0, "Q8_0"),
    "Q6_K": _uniform(LlamaFileType.MOSTLY_Q6_K, "Q6_K"),
    "Q5_K_M": _mix(
        LlamaFileType.MOSTLY_Q5_K_M, "Q5_K", v=("Q6_K", _more_bits), fc_out=("Q6_K", _more_bits)
    ),
    "Q5_K_S": _mix(LlamaFileType.MOSTLY_Q5_K_S, "Q5_K"),
    "Q5_K": _uniform(LlamaFileType.MOSTLY_Q5_K_S, "Q5_K"),
    "Q4_K_M": _mix(
        LlamaFileType.MOSTLY_Q4_K_M, "Q4_K", v=("Q6_K", _more_bits), fc_out=("Q6_K", _more_bits)
    ),
    "Q4_K_S": _mix(
        LlamaFileType.MOSTLY_Q4_K_S, "Q4_K", v=("Q5_K", _first_four), fc_out=("Q5_K", _first_eighth)
    ),
    "Q4_K": _uniform(LlamaFileType.MOSTLY_Q4_K_S, "Q4_K"),
    "Q4_1": _uniform(LlamaFileType.MOSTLY_Q4_1, "Q4_1"),
    "Q4_0": _uniform(LlamaFileType.MOSTLY_Q4_0, "Q4_0"),
    "Q3_K": _uniform(LlamaFileType.MOSTLY_Q3_K_S, "Q3_K"),
}
"""File types by name. Uniform types store every matrix alike, including embedding and head."""


def data_size(decoder: Decoder, type: str) -> int:  # noqa: A002 - the option's name
    """Return the bytes of all tensors in a file of a type, including the padding after each.

    Matrices that are quantized already keep their own type, as in `writer.plan`.
    With `writer.header_size` this is the length of the file, without planning it. Raises InputError
    if a row does not divide into blocks.
    """
    kind, layers, total = TYPES[type], decoder.geometry.n_layer, 0
    for _, part, layer, tensor in named_tensors(decoder, GGUF, bias_dtype=F32.dtype):
        encoding: Encoding = F32
        if isinstance(tensor, QuantizedTensor):
            encoding = tensor.codec
        elif len(tensor.shape) == 2:
            encoding = kind.encoding_of(part, layer or 0, layers)
        total += sum(
            padded(tensor.shape[0] * array.row_bytes) for array in encoding.arrays(tensor.shape)
        )
    return total
