"""Quantize a model on calibration text for ONNX Runtime: MatMulNBits' blocks, fitted.

The types are those of the data-free conversion, so graph, bytes and speed are the same, or they are
chosen under a budget: blocks of other sizes and 8 bits, where they save most of the loss. q, k and
v are one matrix of the graph and get one type; they are fitted apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cgconvert.calibrate.allocation import Choice, allocate
from cgconvert.calibrate.gguf import CalibrationResult, adjusted
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.quantizer import CalibrationSet, Quantizer
from cgconvert.calibrate.sensitivity import Name
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.nbits import NBits
from cgconvert.errors import UsageError
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.weights import QKV
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Geometry
from cgconvert.model.device import CPU
from cgconvert.model.tensor_names import ONNX

__all__ = ["calibrate_onnx", "standard_types"]

PACKED = ("q", "k", "v")

SIZES = (32, 64, 128)
"""Of the blocks that a budget chooses from, beside the variant's own. 16 gains nothing on these at
the same bytes, and is slower by a third."""


def calibrate_onnx(
    checkpoint: Checkpoint,
    variant: Variant,
    windows: CalibrationSet,
    effort: CalibrationPreset,
    folder: Path,
    progress: Progress,
    nbytes: int | None = None,
    device: torch.device = CPU,
) -> CalibrationResult:
    """Fit the matrices of a variant of 4 or 8 bits; complete steps are kept in `folder`.

    `nbytes` is what all matrices may take together, the embedding counted: then their types are
    chosen. The result goes to `formats.onnx.plan` with the same variant's options and `adjusted`.

    Raises InputError where rows do not divide into blocks, UsageError for a budget that nothing
    fits or that 4 bits are not needed for.
    """
    source, size = checkpoint.decoder, checkpoint.tokenizer.size
    quantizer = Quantizer(source, windows, size, effort.sweeps, folder, progress, device)
    types = standard = standard_types(checkpoint.geometry, variant)
    expected: float | None = None
    if nbytes is not None:
        if variant.bits != 4:
            raise UsageError("a budget chooses among 4 and 8 bits: it goes with 4")
        codecs = {codec.name: codec for codec in _candidates(checkpoint.geometry, variant)}
        chosen = allocate(_packed(quantizer.choices(codecs)), nbytes)
        types = {name: codecs[chosen[_key(name)].type] for name in standard}
        expected = sum(choice.loss for choice in chosen.values())
        if all(codec.layout.bits == 8 for codec in types.values()):
            raise UsageError(f"all matrices fit into {nbytes} bytes in 8 bits: ask for these")
    decoder = quantizer.calibrated(types)
    return CalibrationResult(
        checkpoint=replace(checkpoint, decoder=decoder),
        table={_named(name): types[name].name for name in types},
        adjusted=tuple(adjusted(source, decoder, ONNX)),
        expected_kl=expected,
    )


def standard_types(geometry: Geometry, variant: Variant) -> dict[Name, NBits]:
    """The variant's own, by matrix, as the graph lists them. Raises InputError as `arrays`."""
    g = geometry
    wide, narrow = (g.n_embd, g.n_inner), (g.n_embd, g.n_embd)
    shapes: dict[Name, tuple[int, int]] = {"wte": (g.vocab_size, g.n_embd)}
    for i in range(g.n_layer):
        shapes |= dict.fromkeys([(i, part) for part in (*PACKED, "o")], narrow)
        shapes |= {(i, "fc_in"): (g.n_inner, g.n_embd), (i, "fc_out"): wide}
    shapes["head"] = (g.vocab_size, g.n_embd)
    ends = {"wte": variant.embedding, "head": variant.head(g.n_embd)}
    found = {}
    for name, shape in shapes.items():
        encoding = ends[name] if isinstance(name, str) else variant.matrix
        if not isinstance(encoding, MatMulNBits):
            raise UsageError("calibration is for matrices of 4 or 8 bits")
        encoding.arrays(shape)
        found[name] = NBits(encoding)
    return found


def _candidates(geometry: Geometry, variant: Variant) -> list[NBits]:
    matrix = variant.matrix
    assert isinstance(matrix, MatMulNBits)
    rows = (geometry.n_embd, geometry.n_inner)
    sizes = sorted({matrix.block_size, *SIZES})
    fitting = [size for size in sizes if not any(n % size for n in rows)]
    layouts = [MatMulNBits(4, size, matrix.symmetric) for size in fitting]
    layouts.append(MatMulNBits(8, fitting[-1], symmetric=True))  # at 8 bits the size loses nothing
    return [NBits(layout) for layout in layouts]


def _packed(choices: Mapping[Name, Sequence[Choice]]) -> dict[Name, list[Choice]]:
    """q, k and v of a layer as one choice, under the name of its q."""
    found: dict[Name, list[Choice]] = {}
    for name, some in choices.items():
        known = found.get(_key(name))
        found[_key(name)] = list(some) if known is None else [
            Choice(a.type, a.nbytes + b.nbytes, a.loss + b.loss)
            for a, b in zip(known, some, strict=True)
        ]  # fmt: skip
    return found


def _key(name: Name) -> Name:
    return name if isinstance(name, str) or name[1] not in PACKED else (name[0], PACKED[0])


def _named(name: Name) -> str:
    if isinstance(name, str):
        return ONNX.model[name]
    return (QKV if name[1] in PACKED else ONNX.layer[name[1]]).format(i=name[0])
