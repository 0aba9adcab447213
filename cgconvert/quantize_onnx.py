"""Quantize a model on calibration text for ONNX Runtime: MatMulNBits' blocks, fitted.

The types are those of the data-free conversion, so graph, bytes and speed are the same; the numbers
are fitted to the inputs each matrix meets (quant/calibration.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.formats.onnx.variant import Variant
from cgconvert.names import ONNX
from cgconvert.quant.blocks import BlockType
from cgconvert.quant.matmul_nbits import MatMulNBits
from cgconvert.quant.nbits import NBits
from cgconvert.quant.quantizer import Quantizer, Windows
from cgconvert.quant.sensitivity import Name
from cgconvert.quantize import Calibrated, adjusted
from cgconvert.stream.progress import Progress
from cgconvert.text import Text

__all__ = ["calibrate_onnx"]

PARTS = ("q", "k", "v", "o", "fc_in", "fc_out")


def calibrate_onnx(
    checkpoint: Checkpoint, variant: Variant, text: Text, folder: Path, progress: Progress
) -> Calibrated:
    ids = text.ids(checkpoint.tokenizer)
    windows = Windows.of(ids, checkpoint.geometry.n_positions, text.name)
    quantizer = Quantizer(checkpoint.decoder, windows, checkpoint.tokenizer.size, folder, progress)
    types = _types(checkpoint, variant)
    decoder = quantizer.calibrated(types)
    return Calibrated(
        checkpoint=replace(checkpoint, decoder=decoder),
        table={},
        adjusted=tuple(adjusted(checkpoint.decoder, decoder, ONNX)),
        expected_kl=0.0,
        options={"calibration": {"text": text.name, "sha256": text.sha256,
                                 "windows": windows.sha256}},
    )  # fmt: skip


def _types(checkpoint: Checkpoint, variant: Variant) -> dict[Name, BlockType]:
    encodings = {"wte": variant.embedding, "head": variant.head(checkpoint.geometry.n_embd)}
    encodings |= {
        (i, part): variant.matrix for i in range(checkpoint.geometry.n_layer) for part in PARTS
    }
    return {n: NBits(e) for n, e in encodings.items() if isinstance(e, MatMulNBits)}
