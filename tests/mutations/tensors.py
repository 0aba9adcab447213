"""Bugs in the bytes of a stored tensor, as a codec, a disk or an edit may leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import LazyTensor, StoredTensor
from tests.mutations.mutation import MATRICES, VALUES, Files, in_files
from tests.support.tampering import flip_bit, rescale_block, rewrite_array, stored_arrays, swap_rows

__all__ = ["TENSORS"]

CODED_GGUF = ("gguf-Q8_0", "gguf-Q4_0")
INT4 = ("onnx-int4",)
UNUSED = -1, -3
"""Rows of the embedding that no token uses."""


def change_tensor(change: Callable[[LazyTensor], None], part: str) -> Files:
    """Change the first tensor whose name contains one of the words of `part`."""
    words = part.split()

    def change_files(artefact: Path, source: Checkpoint) -> None:
        kind = _format(artefact)
        tensors = load(kind).stored_artefact(artefact, source.decoder).tensors
        change(next(t for name, t in tensors.items() if any(word in name for word in words)))

    return change_files


EMBEDDING = "wte embed_tok token_embd"
FC_IN = "mlp.fc_in.weight mlp.fc1.weight ffn_up.weight"
KEY_BIAS = "0.self_attn.k_proj.bias 0.attn_k.bias"


def _format(artefact: Path) -> str:
    if artefact.is_file():
        return "gguf"
    return "onnx" if (artefact / "onnx").is_dir() else "huggingface"


def change_bytes(change: Callable[[torch.Tensor], None]) -> Callable[[LazyTensor], None]:
    """Change the bytes of the first array that a tensor is stored in."""
    return lambda tensor: rewrite_array(stored_arrays(tensor)[0], change)


def _swap_nibbles(codes: torch.Tensor) -> None:
    codes.copy_(codes >> 4 | codes << 4)


def _swap_halves(rows: torch.Tensor) -> None:
    """Exchange the two halves of each Q4_0 block: 16 bytes of codes after a scale of 2."""
    blocks = rows.reshape(-1, 18)
    _swap_nibbles(blocks[:, 2:])


def _change_zero_point(tensor: LazyTensor) -> None:
    def change(points: torch.Tensor) -> None:
        points[0, 0] += 1 if points[0, 0] & 15 < 15 else -1

    rewrite_array(stored_arrays(tensor)[2], change)


def _zero_tail(tensor: LazyTensor) -> None:
    def change(rows: torch.Tensor) -> None:
        rows[-(len(rows) // 8) :] = 0

    rewrite_array(stored_arrays(tensor)[0], change)


def _set_bias(tensor: LazyTensor) -> None:
    assert isinstance(tensor, StoredTensor)

    def change(bias: torch.Tensor) -> None:
        bias[3] = 0.01

    rewrite_array(tensor, change)


def _negate_scale(tensor: LazyTensor) -> None:
    assert isinstance(tensor, QuantizedTensor)
    rescale_block(tensor, 5, -1.0)


TENSORS = (
    in_files(
        "NaN in a row no token has",
        "tensor",
        ("weights.finite",),
        change_tensor(lambda t: rescale_block(t, UNUSED[0], float("nan")), EMBEDDING),
        MATRICES,
    ),
    in_files(
        "float16 overflow: an infinite weight",
        "tensor",
        ("weights.finite",),
        change_tensor(lambda t: rescale_block(t, 7, float("inf")), FC_IN),
        MATRICES,
    ),
    in_files(
        "two rows no token has exchanged",
        "tensor",
        VALUES,
        change_tensor(lambda t: swap_rows(t, *UNUSED), EMBEDDING),
        MATRICES,
    ),
    in_files("a flipped bit", "tensor", VALUES, change_tensor(flip_bit, FC_IN), MATRICES),
    in_files(
        "the end of a tensor never written",
        "tensor",
        VALUES,
        change_tensor(_zero_tail, FC_IN),
        MATRICES,
    ),
    in_files(
        "a bias that CodeGen has not",
        "tensor",
        VALUES,
        change_tensor(_set_bias, KEY_BIAS),
        ("hf-phi-float16", "gguf-F16", "gguf-Q4_0"),
    ),
    in_files(
        "a block's scale off by 1 %",
        "tensor",
        VALUES,
        change_tensor(lambda t: rescale_block(t, 7, 1.01), FC_IN),
        (*INT4, *CODED_GGUF),
    ),
    in_files(
        "a block's scale of the wrong sign",
        "tensor",
        VALUES,
        change_tensor(_negate_scale, FC_IN),
        (*INT4, *CODED_GGUF),
    ),
    in_files(
        "nibbles in the wrong order",
        "tensor",
        VALUES,
        change_tensor(change_bytes(_swap_nibbles), FC_IN),
        INT4,
    ),
    in_files(
        "halves of a block exchanged",
        "tensor",
        VALUES,
        change_tensor(change_bytes(_swap_halves), FC_IN),
        ("gguf-Q4_0",),
    ),
    in_files(
        "a zero point off by one", "tensor", VALUES, change_tensor(_change_zero_point, FC_IN), INT4
    ),
)
