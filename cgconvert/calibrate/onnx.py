"""Quantize a model to ONNX Runtime's MatMulNBits blocks with a calibration text.

By default the types are those of the conversion without a text, so that graph, size and speed are
the same. Under a budget they are chosen instead, among blocks of several sizes and 8 bits. q, k and
v are a single matrix in the graph, so they get the same type, but each is fitted separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cgconvert.calibrate.allocation import choose_types
from cgconvert.calibrate.calibrated_plan import CalibratedPlan, CalibrationResult
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.presets import CalibrationPreset
from cgconvert.calibrate.quantizer import Quantizer
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import UsageError
from cgconvert.formats.onnx import writer
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import QKV
from cgconvert.io.progress import Progress, format_bytes
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.device import deterministic, torch_device
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor_names import ONNX
from cgconvert.write.plan import Plan

__all__ = ["CalibratedONNX", "calibrate_onnx", "variant_types"]

QKV_PARTS = ("q", "k", "v")
"""The parts that are a single matrix in the graph."""

BLOCK_SIZES = (32, 64, 128)
"""The block sizes that are chosen from under a budget, besides the variant's. Blocks of 16 are not
better at the same size, and a third slower."""


@dataclass(frozen=True)
class CalibratedONNX(CalibratedPlan):
    """The plan of an ONNX folder whose 4-bit matrices are fitted to a text.

    Attributes:
        block_options: The block options of formats.onnx.writer.plan. Graph, size and speed are
            those of an uncalibrated folder with these options.
        format: The name of the artefact's format.
        is_folder: See LazyPlan.
    """

    block_options: dict[str, Any] = field(default_factory=dict)
    format: str = "onnx"
    is_folder: bool = True

    def __post_init__(self) -> None:
        """Check the block options, and that the rows of each matrix are whole blocks.

        Raises UsageError for unknown blocks, InputError for rows that are not whole blocks.
        """
        variant_types(self.source.geometry, self._variant)

    @property
    def _variant(self) -> Variant:
        """The graph that the folder will contain."""
        return Variant(bits=4, **self.block_options)

    @cached_property
    def _uncalibrated(self) -> Plan:
        """The plan of the same folder by the weights alone."""
        return writer.plan(self.source, self.output, bits=4, **self.block_options)

    @property
    def limit(self) -> int:
        return self._uncalibrated.nbytes

    @property
    def options(self) -> Mapping[str, Any]:
        return {**self._uncalibrated.options, **super().options}

    @property
    def type(self) -> str:
        return "int4"

    @property
    def matrices(self) -> str:
        return "MatMulNBits, fitted to a text"

    @property
    def timed_codec(self) -> BlockCodec:
        return next(iter(variant_types(self.source.geometry, self._variant).values()))

    @property
    def candidates(self) -> int:
        return 0

    def resolve(self, folder: Path, progress: Progress) -> Plan:
        """Calibrate the model and plan the folder; raises InputError if the text is too short."""
        calibration_set = self.claim(folder)
        with deterministic(self.device):
            result = calibrate_onnx(
                self.source, self._variant, calibration_set, self.preset, folder, progress,
                device=self.device,
            )  # fmt: skip
        plan = writer.plan(
            result.checkpoint, self.output, bits=4, adjusted=result.adjusted, **self.block_options
        )
        options = self.manifest_options(result)
        return replace(plan, source=self.source, options=options)


def calibrate_onnx(
    source: Checkpoint,
    variant: Variant,
    calibration_set: CalibrationSet,
    preset: CalibrationPreset,
    folder: Path,
    progress: Progress,
    nbytes: int | None = None,
    device: torch.device | None = None,
) -> CalibrationResult:
    """Quantize the model for a variant of 4 or 8 bits, fitted to a text.

    The result can be written by formats.onnx.writer.plan with the options of the same variant and
    `adjusted`.

    Args:
        source: The model.
        variant: The graph in which the matrices will be used.
        calibration_set: The windows of text.
        preset: The amount of work.
        folder: The folder that stores completed steps.
        progress: Advances with the steps.
        nbytes: The bytes that all matrices, including the embedding, may take together. If it is
            given, types are chosen as for GGUF, so that the loss is least within this size; the
            functions of the API do not offer it. If it is None, the types are the variant's.
        device: The device of all computations.

    Raises:
        InputError: The rows of a matrix are not whole blocks.
        UsageError: No choice of types fits into `nbytes`, or 8 bits for all matrices fit.
    """
    device = device or torch_device("cpu")
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
            raise UsageError(
                f"all matrices fit into {format_bytes(nbytes)} in 8 bits: ask for these"
            )
    calibrated, promise = quantizer.calibrate(types)
    table = {_graph_name(name): codec.name for name, codec in types.items()}
    return CalibrationResult.from_decoder(source, calibrated, table, ONNX, expected_kl, promise)


def variant_types(geometry: Geometry, variant: Variant) -> dict[MatrixId, MatMulNBits]:
    """Return the type of each matrix in a variant, in the order of the graph.

    Raises UsageError if the variant is not of 4 or 8 bits, InputError if the rows of a matrix are
    not whole blocks.
    """
    g = geometry
    shapes = {"wte": (g.vocab_size, g.n_embd), "head": (g.vocab_size, g.n_embd),
              "fc_in": (g.n_inner, g.n_embd), "fc_out": (g.n_embd, g.n_inner)}  # fmt: skip
    vocabulary_types = {"wte": variant.embedding, "head": variant.head(g.n_embd)}
    types = {}
    for name in MatrixId.all(g.n_layer):
        layout = vocabulary_types.get(name.part, variant.matrix)
        if not isinstance(layout, MatMulNBits):
            raise UsageError("calibration is for matrices of 4 or 8 bits")
        layout.arrays(shapes.get(name.part, (g.n_embd, g.n_embd)))  # raises the InputError
        types[name] = layout.with_search()
    return types


def _candidates(geometry: Geometry, variant: Variant) -> list[MatMulNBits]:
    """List the types that are chosen from under a budget."""
    matrix = variant.matrix
    assert isinstance(matrix, MatMulNBits)
    columns = (geometry.n_embd, geometry.n_inner)
    sizes = sorted({matrix.block_size, *BLOCK_SIZES})
    fitting = [size for size in sizes if not any(n % size for n in columns)]
    layouts = [MatMulNBits(4, size, matrix.symmetric) for size in fitting]
    layouts.append(MatMulNBits(8, fitting[-1], symmetric=True))  # 8 bits need no small blocks
    return [layout.with_search() for layout in layouts]


def _graph_matrix(name: MatrixId) -> MatrixId:
    """Return the matrix by which a matrix of the graph is identified: q for q, k and v."""
    return MatrixId(QKV_PARTS[0], name.layer) if name.part in QKV_PARTS else name


def _graph_name(name: MatrixId) -> str:
    """Return the name of a matrix in the graph."""
    return QKV.format(i=name.layer) if name.part in QKV_PARTS else name.name(ONNX)
