"""Quantize a model on a calibration text for ONNX Runtime: MatMulNBits blocks, fitted.

The types are those of the conversion without a text, so graph, bytes and speed are the same; or
they are chosen under a budget: blocks of other sizes and 8 bits, where they save most of the loss.
q, k and v are one matrix of the graph and get one type; they are fitted apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cgconvert.calibrate.allocation import choose_types
from cgconvert.calibrate.calibrated_plan import CalibratedPlan
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.calibrate.result import CalibrationResult
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import UsageError
from cgconvert.formats.onnx import writer
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import QKV
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Geometry
from cgconvert.model.device import CPU, deterministic
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import ONNX
from cgconvert.write.plan import Plan

__all__ = ["CalibratedONNX", "calibrate_onnx", "variant_types"]

PACKED = ("q", "k", "v")
"""Parts that are one matrix of the graph."""

BLOCK_SIZES = (32, 64, 128)
"""Block sizes that a budget chooses from, beside the variant's own. At the same bytes 16 gains
nothing on these, and it is slower by a third."""


@dataclass(frozen=True)
class CalibratedONNX(CalibratedPlan):
    """The plan of an ONNX folder whose 4-bit matrices are fitted to a text.

    `block_options` are those of formats.onnx.writer.plan, so graph, bytes and speed are those of
    the plan without a text.
    """

    block_options: dict[str, Any] = field(default_factory=dict)
    format: str = "onnx"

    def __post_init__(self) -> None:
        """Refuse unknown blocks (UsageError) and rows they do not divide (InputError)."""
        variant_types(self.source.geometry, self._variant)

    @property
    def _variant(self) -> Variant:
        return Variant(bits=4, **self.block_options)

    @cached_property
    def limit(self) -> int:
        return writer.plan(self.source, self.output, bits=4, **self.block_options).nbytes

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate, and plan the folder. Raises InputError where the text is too short."""
        calibration_set = self.claim(folder)
        with deterministic(self.device):
            result = calibrate_onnx(
                self.source, self._variant, calibration_set, self.preset, folder, progress,
                device=self.device,
            )  # fmt: skip
        plan = writer.plan(
            result.checkpoint, self.output, bits=4, adjusted=result.adjusted, **self.block_options
        )
        options = {**plan.options, **self.manifest_options(result)}
        return replace(plan, source=self.source, options=options)


def calibrate_onnx(
    source: Checkpoint,
    variant: Variant,
    calibration_set: CalibrationSet,
    preset: CalibrationPreset,
    folder: Path,
    progress: Progress,
    nbytes: int | None = None,
    device: torch.device = CPU,
) -> CalibrationResult:
    """Fit the matrices of a variant of 4 or 8 bits.

    The result goes to formats.onnx.writer.plan with the same variant's options and `adjusted`.

    Args:
        source: The model.
        variant: The graph that it is for.
        calibration_set: The windows of text.
        preset: How much is done.
        folder: Keeps completed steps.
        progress: Advances with the steps.
        nbytes: Bytes that all matrices may take together, the embedding among them. With it the
            types are chosen as for GGUF, so that a graph of that size loses least; the functions
            of the API do not offer it. Without it they are the variant's.
        device: Computes it.

    Raises:
        InputError: Rows do not divide into blocks.
        UsageError: Nothing fits the budget, or 8 bits for all matrices fit it.
    """
    decoder, vocab_size = source.decoder, source.tokenizer.size
    quantizer = Quantizer(
        decoder, calibration_set, vocab_size, preset.sweeps, folder, progress, device
    )
    types = variant_types(source.geometry, variant)
    expected_kl: float | None = None
    if nbytes is not None:
        if variant.bits != 4:
            raise UsageError("a budget chooses among 4 and 8 bits: it goes with 4")
        codecs = {codec.name: codec for codec in _candidates(source.geometry, variant)}
        chosen, expected_kl = choose_types(quantizer.choices(codecs), nbytes, _graph_matrix)
        types = {name: codecs[chosen[name]] for name in types}
        if all(codec.bits == 8 for codec in types.values()):
            raise UsageError(f"all matrices fit into {nbytes} bytes in 8 bits: ask for these")
    calibrated = quantizer.calibrate(types)
    table = {_graph_name(name): codec.name for name, codec in types.items()}
    return CalibrationResult.of(source, calibrated, table, ONNX, expected_kl)


def variant_types(geometry: Geometry, variant: Variant) -> dict[MatrixId, MatMulNBits]:
    """The type of each matrix in a variant, in the order of the graph.

    Raises UsageError where the variant is not of 4 or 8 bits, InputError where rows do not divide
    into blocks.
    """
    g = geometry
    shapes = {"wte": (g.vocab_size, g.n_embd), "head": (g.vocab_size, g.n_embd),
              "fc_in": (g.n_inner, g.n_embd), "fc_out": (g.n_embd, g.n_inner)}  # fmt: skip
    ends = {"wte": variant.embedding, "head": variant.head(g.n_embd)}
    types = {}
    for name in MatrixId.all(g.n_layer):
        layout = ends.get(name.part, variant.matrix)
        if not isinstance(layout, MatMulNBits):
            raise UsageError("calibration is for matrices of 4 or 8 bits")
        layout.arrays(shapes.get(name.part, (g.n_embd, g.n_embd)))
        types[name] = layout.with_search()
    return types


def _candidates(geometry: Geometry, variant: Variant) -> list[MatMulNBits]:
    """The types that a budget chooses from."""
    matrix = variant.matrix
    assert isinstance(matrix, MatMulNBits)
    columns = (geometry.n_embd, geometry.n_inner)
    sizes = sorted({matrix.block_size, *BLOCK_SIZES})
    fitting = [size for size in sizes if not any(n % size for n in columns)]
    layouts = [MatMulNBits(4, size, matrix.symmetric) for size in fitting]
    layouts.append(MatMulNBits(8, fitting[-1], symmetric=True))  # at 8 bits the size loses nothing
    return [layout.with_search() for layout in layouts]


def _graph_matrix(name: MatrixId) -> MatrixId:
    """What stands for a matrix of the graph: q for q, k and v together."""
    return MatrixId(PACKED[0], name.layer) if name.part in PACKED else name


def _graph_name(name: MatrixId) -> str:
    return QKV.format(i=name.layer) if name.part in PACKED else name.name(ONNX)
