"""Mistakes in the bytes of a written tensor: what a codec, a disk or a careless edit leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cgconvert.formats.gguf.reader import BlockTensor
from cgconvert.formats.onnx.reader import BlocksTensor
from cgconvert.formats.registry import load
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tensor import LazyTensor, Stored
from tests.mutations.mutation import MATRICES, VALUES, Files, in_files
from tests.support.tampering import arrays, flipped, rescaled, rewritten, swapped

__all__ = ["TENSORS"]

CODED_GGUF = ("gguf-Q8_0", "gguf-Q4_0")
INT4 = ("onnx-int4",)
UNUSED = -1, -3
"""Rows of the embedding that no token has."""


def tensor(change: Callable[[LazyTensor], None], part: str) -> Files:
    """Change the first tensor whose name holds one of `part`'s words."""
    words = part.split()

    def on(artefact: Path, source: Checkpoint) -> None:
        kind = _format(artefact)
        tensors = load(kind).stored(artefact, source.decoder).tensors
        change(next(t for name, t in tensors.items() if any(word in name for word in words)))

    return on


EMBEDDING = "wte embed_tok token_embd"
FC_IN = "mlp.fc_in.weight mlp.fc1.weight ffn_up.weight"
KEY_BIAS = "0.self_attn.k_proj.bias 0.attn_k.bias"


def _format(artefact: Path) -> str:
    if artefact.is_file():
        return "gguf"
    return "onnx" if (artefact / "onnx").is_dir() else "huggingface"


def stored(change: Callable[[torch.Tensor], None]) -> Callable[[LazyTensor], None]:
    """Of the bytes of the first array that the tensor is stored in."""
    return lambda found: rewritten(arrays(found)[0], change)


def _nibbles(codes: torch.Tensor) -> None:
    codes.copy_(codes >> 4 | codes << 4)


def _halves(rows: torch.Tensor) -> None:
    """Q4_0's two halves of a block, the codes after each scale."""
    blocks = rows.reshape(-1, 18)
    _nibbles(blocks[:, 2:])


def _zero_points(found: LazyTensor) -> None:
    assert isinstance(found, BlocksTensor)

    def change(points: torch.Tensor) -> None:
        points[0, 0] += 1 if points[0, 0] & 15 < 15 else -1

    rewritten(found.arrays[2], change)


def _tail(found: LazyTensor) -> None:
    def change(rows: torch.Tensor) -> None:
        rows[-(len(rows) // 8) :] = 0

    rewritten(arrays(found)[0], change)


def _not_zero(found: LazyTensor) -> None:
    assert isinstance(found, Stored)

    def change(bias: torch.Tensor) -> None:
        bias[3] = 0.01

    rewritten(found, change)


def _sign(found: LazyTensor) -> None:
    assert isinstance(found, BlockTensor | BlocksTensor)
    rescaled(found, 5, -1.0)


TENSORS = (
    in_files("NaN in a row no token has", "tensor", ("weights.finite",),
             tensor(lambda t: rescaled(t, UNUSED[0], float("nan")), EMBEDDING), MATRICES),
    in_files("float16 overflow: an infinite weight", "tensor", ("weights.finite",),
             tensor(lambda t: rescaled(t, 7, float("inf")), FC_IN), MATRICES),
    in_files("two rows no token has exchanged", "tensor", VALUES,
             tensor(lambda t: swapped(t, *UNUSED), EMBEDDING), MATRICES),
    in_files("a flipped bit", "tensor", VALUES, tensor(flipped, FC_IN), MATRICES),
    in_files("the end of a tensor never written", "tensor", VALUES, tensor(_tail, FC_IN),
             MATRICES),
    in_files("a bias that CodeGen has not", "tensor", VALUES, tensor(_not_zero, KEY_BIAS),
             ("hf-phi-float16", "gguf-F16", "gguf-Q4_0")),
    in_files("a block's scale off by 1 %", "tensor", VALUES,
             tensor(lambda t: rescaled(t, 7, 1.01), FC_IN), (*INT4, *CODED_GGUF)),
    in_files("a block's scale of the wrong sign", "tensor", VALUES, tensor(_sign, FC_IN),
             (*INT4, *CODED_GGUF)),
    in_files("nibbles in the wrong order", "tensor", VALUES, tensor(stored(_nibbles), FC_IN),
             INT4),
    in_files("halves of a block exchanged", "tensor", VALUES, tensor(stored(_halves), FC_IN),
             ("gguf-Q4_0",)),
    in_files("a zero point off by one", "tensor", VALUES, tensor(_zero_points, FC_IN), INT4),
)  # fmt: skip
