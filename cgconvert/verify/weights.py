"""Every stored tensor against the source's, and nothing run: what no prompt reaches shows here.

The source's rows are put into the layout's order and compared where they lie, some rows at a time,
so memory follows a chunk and each file is read once, in its own order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.matmul_nbits import Blocks
from cgconvert.codecs.nbits import NBits
from cgconvert.codecs.searched import SearchedCodec
from cgconvert.errors import first_few
from cgconvert.formats.gguf.reader import BlockTensor
from cgconvert.formats.onnx.reader import BlocksTensor
from cgconvert.formats.registry import load
from cgconvert.formats.stored import StoredArtefact
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.verify.quantization_error import adjustment, searched_error
from cgconvert.verify.verdict import Check, at_most

__all__ = ["TensorError", "block_error", "check_weights", "compare"]

CHUNK_BYTES = 16 << 20
"""float32 bytes of the rows of a tensor in memory at once."""

NAMED = 3
"""How many tensors a check's detail names, the worst first."""

RULED = ("Q8_0", "Q4_0")
"""GGUF types whose scale and codes follow from the weights by a rule; others' are searched.
With an imatrix the second is searched too."""

HALF_ULP, TINY = 2.0**-11, 2.0**-25
"""Rounding to float16: relative for normal numbers, absolute for subnormal ones."""

SLACK = 1 + 2.0**-10
"""For the float32 arithmetic of an encoder: some 2^-17 of a step at 8 bits."""


@dataclass(frozen=True)
class TensorError:
    """What became of one tensor, stored as `type`.

    `differing` counts values of an unquantized tensor that are not the source's in its type, bit
    for bit; `worst` is the largest error of a quantized one as a multiple of its type's bound.
    `relative_rms` is ||stored - source|| / ||source||, what rounding to the type costs included:
    norms of rows in float32, their sums in float64; NaN where a stored value is.
    """

    name: str
    type: str
    size: int
    nonfinite: int
    differing: int
    relative_rms: float
    worst: float | None = None


def check_weights(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    source: Decoder,
    progress: Progress | None = None,
) -> tuple[list[Check], list[TensorError]]:
    """weights.geometry, .tensors, .finite, .equal; .error where some are quantized, .adjusted where
    some are changed and say so.

    With them what they were judged by: each tensor, in the layout's order.

    Raises InputError where the artefact cannot be read at all.
    """
    stored = load(format).stored(artefact, source)
    errors = compare(stored, progress or Silent())
    faults = _faults(stored)
    equal = [e for e in errors if e.worst is None]
    adjusted = [e for e in errors if e.name in stored.adjusted]
    quantized = [e for e in errors if e.worst is not None and e not in adjusted]
    differences = stored.differences
    checks = [
        at_most("weights.geometry", float(len(differences)), 0, "; ".join(differences)),
        at_most("weights.tensors", float(len(faults)), 0, first_few(faults, NAMED)),
        _counted("weights.finite", [(e.name, e.nonfinite, e.size) for e in errors], "not finite"),
        _counted("weights.equal", [(e.name, e.differing, e.size) for e in equal], "differ"),
    ]
    for name, some in (("weights.error", quantized), ("weights.adjusted", adjusted)):
        some.sort(key=lambda e: -(e.worst or 0))
        detail = ", ".join(f"{e.name} {e.worst:.3g}" for e in some[:NAMED])
        checks += [at_most(name, some[0].worst, 1, detail)] if some else []
    return checks, errors


def compare(stored: StoredArtefact, progress: Progress) -> list[TensorError]:
    """Every tensor that is there in the shape it should have, in the layout's order."""
    total = sum(math.prod(tensor.shape) for tensor in stored.expected.values())
    progress.step("comparing weights", total)
    errors, coarsest = [], _coarsest(stored) if stored.adjusted else None
    for name, wanted in stored.expected.items():
        found = stored.tensors.get(name)
        if found is not None and _fault(found, wanted) is None:
            error = _compare(name, found, wanted, name in stored.computed)
            if name in stored.adjusted and len(found.shape) == 1:
                error = replace(error, differing=0, worst=adjustment(found, wanted))
            elif isinstance(found, BlockTensor | BlocksTensor) and (
                stored.adjusted
                or error.worst is None
                or (stored.weighted and isinstance(_codec(found), SearchedCodec))
            ):
                worst = searched_error(found, _codec(found), wanted, _rows(found), coarsest)
                error = replace(error, worst=worst)
            errors.append(error)
        progress.advance(math.prod(wanted.shape))
    return errors


def block_error(blocks: Blocks, source: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """The worst error of each block over what its type allows, float32 [rows, blocks].

    `source` is float32, of the shape of the codes. Rounding to nearest allows half a step, and
    more where the format clips or rounds its scale to float16: see docs/verify.md. The scale
    itself has to be the one its block demands, within the rounding.
    """
    scales = blocks.scales.float()
    steps = blocks.codes.float() - blocks.zero_points.float()[..., None]
    if symmetric:
        # ggml-quants.c, quantize_row_q4_0_ref and quantize_row_q8_0_ref; the same rule in ONNX.
        demanded = source.abs().amax(-1) / (8 if bits == 4 else 127)
    else:
        top = (1 << bits) - 1
        demanded = (source.amax(-1).clamp(min=0) - source.amin(-1).clamp(max=0)) / top
    rounding = (demanded * HALF_ULP).clamp(min=TINY) * SLACK
    scale = (scales.abs() - demanded).abs() / rounding
    error = source - steps * scales[..., None]
    if symmetric:
        # Codes come from the scale before it is rounded, so a code of n steps is n roundings off.
        bound = steps.abs() * rounding[..., None]
        bound += ((scales.abs() + rounding) / 2 * SLACK)[..., None]
        if bits == 4:  # 8 steps have no code: what lies beyond the last one is clipped to 7
            beyond = error.signbit() == scales.signbit()[..., None]  # a scale may be -0
            error = torch.where((steps == 7) & beyond, error / 2, error)
    else:
        # Codes come from the rounded scale, so only the range may be some roundings too short.
        bound = (scales.abs() / 2 * SLACK + top * rounding)[..., None]
    ratio = (error.abs_() / bound).amax(-1)
    return torch.maximum(ratio, scale).nan_to_num_(nan=math.inf)


def _compare(
    name: str, found: LazyTensor, wanted: LazyTensor, computed: bool = False
) -> TensorError:
    step = _rows(found)
    nonfinite = differing = 0
    error = power = 0.0
    worst: float | None = None
    for first in range(0, found.shape[0], step):
        rows = slice(first, min(first + step, found.shape[0]))
        source = wanted.read(rows)
        if isinstance(found, BlockTensor) and found.codec.name not in RULED:
            values = found.read(rows)
            nonfinite += int((~values.isfinite()).sum())
        elif isinstance(found, BlockTensor | BlocksTensor):
            blocks = found.blocks(rows)
            values = _decoded(blocks).reshape(source.shape)
            shaped = source.float().reshape(blocks.codes.shape)
            errors = block_error(blocks, shaped, found.bits, found.symmetric)
            worst = max(worst or 0.0, float(errors.max()))
            nonfinite += int((~blocks.scales.isfinite()).sum()) * blocks.codes.shape[-1]
        else:
            values = found.read(rows)
            nonfinite += int((~values.isfinite()).sum())
            if computed:  # held to one unit in the last place (at 1, the largest there is)
                slack = torch.finfo(values.dtype).eps
                differing += int((~((values.double() - source.double()).abs() <= slack)).sum())
            else:
                differing += _differing(values, source.to(values.dtype))
        error += _squares(values.float() - source.float())
        power += _squares(source.float())
    relative = math.sqrt(error / power) if power else 0.0 if error == 0 else math.inf
    size = math.prod(found.shape)
    return TensorError(name, _type(found), size, nonfinite, differing, relative, worst)


def _codec(tensor: BlockTensor | BlocksTensor) -> BlockCodec:
    return tensor.codec if isinstance(tensor, BlockTensor) else NBits(tensor.codec)


def _coarsest(stored: StoredArtefact) -> BlockCodec | None:
    """The type of the fewest codes; a file may have none."""
    blocks = (t for t in stored.tensors.values() if isinstance(t, BlockTensor | BlocksTensor))
    codecs = [_codec(tensor) for tensor in blocks]
    return min(codecs, key=lambda codec: (codec.top, -codec.block_size), default=None)


def _rows(tensor: LazyTensor) -> int:
    """How many are taken at a time."""
    return max(1, CHUNK_BYTES // (4 * math.prod(tensor.shape[1:])))


def _decoded(blocks: Blocks) -> torch.Tensor:
    """The weights that blocks stand for, float32 [rows, blocks, block size]."""
    steps = blocks.codes.float() - blocks.zero_points.float()[..., None]
    return steps.mul_(blocks.scales.float()[..., None])


def _squares(rows: torch.Tensor) -> float:
    """The sum of squares: float32 within a row, whose length bounds its rounding, then float64."""
    norms = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)
    return float(norms.double().square_().sum())


def _type(tensor: LazyTensor) -> str:
    if isinstance(tensor, BlocksTensor):
        return f"int{tensor.bits}"
    if isinstance(tensor, BlockTensor):
        return tensor.codec.name
    return str(tensor.dtype).removeprefix("torch.")


def _differing(values: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many are not equal bit for bit, so that NaN equals itself and -0 is not 0."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    values, wanted = values.contiguous().view(kind), wanted.contiguous().view(kind)
    return 0 if torch.equal(values, wanted) else int((values != wanted).sum())


def _faults(stored: StoredArtefact) -> list[str]:
    found = []
    for name, wanted in stored.expected.items():
        tensor = stored.tensors.get(name)
        if tensor is None:
            if name not in stored.optional:
                found.append(f"{name} is missing")
        elif fault := _fault(tensor, wanted):
            found.append(f"{name} is {fault}")
    extra = stored.tensors.keys() - stored.expected.keys() - stored.ignored
    return found + [f"{name} is not one of the source's" for name in sorted(extra)]


def _fault(found: LazyTensor, wanted: LazyTensor) -> str | None:
    if tuple(found.shape) != tuple(wanted.shape):
        return f"{list(found.shape)}, not {list(wanted.shape)}"
    return None if found.dtype.is_floating_point else f"{found.dtype}, not a floating type"


def _counted(name: str, counts: Sequence[tuple[str, int, int]], what: str) -> Check:
    bad = sorted((c for c in counts if c[1]), key=lambda c: -c[1] / c[2])
    texts = [f"{count} of {size} {what} in {tensor}" for tensor, count, size in bad]
    return at_most(name, float(sum(c[1] for c in bad)), 0, first_few(texts, NAMED))
