"""Quantize a model on calibration text: the types, the budget, and the matrices fitted to it.

What is asked for is a size, a rate of bits or a loss. Which matrix gets which type follows from
what each would cost the model's output (quant/sensitivity.py, quant/allocation.py); then every
matrix is fitted to the inputs it meets (quant/calibration.py).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cgconvert.calibrate.allocation import Choice, allocate, path
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.quantizer import CalibrationSet, Quantizer
from cgconvert.calibrate.sensitivity import Name
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.coded import Coded
from cgconvert.errors import UsageError
from cgconvert.formats.gguf.types import ENCODINGS, TYPES
from cgconvert.io.progress import Progress
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU
from cgconvert.model.tensor_names import GGUF, TensorNames

__all__ = ["Budget", "CalibrationResult", "adjusted", "calibrate_gguf", "changeable", "check"]

CANDIDATES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types that a matrix can get; others of the same size lose more."""

SMALL_BLOCKS = ("Q4_0", "Q4_1", "Q8_0")
"""Instead, where rows do not divide into blocks of 256."""

MATRICES = ("wte", "q", "k", "v", "o", "fc_in", "fc_out", "head")


@dataclass(frozen=True)
class Budget:
    """What the file may take: one of these.

    `like` is a standard mix, whose bytes are the limit; `nbytes` is the whole file's, `bpw` bits a
    weight of all matrices, `kl` the mean divergence in nats a token that may be lost. `mix` is a
    standard mix, taken as it is. `fixed` are types by pattern of the tensor's name in GGUF, first
    match first.
    """

    like: str | None = None
    nbytes: int | None = None
    bpw: float | None = None
    kl: float | None = None
    mix: str | None = None
    fixed: Sequence[tuple[str, str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class CalibrationResult:
    """The coded model, the type of each matrix by its name in the format it is for, vectors that
    changed by theirs, and the loss that was expected, in nats a token: None where nothing was
    chosen."""

    checkpoint: Checkpoint
    table: Mapping[str, str]
    adjusted: tuple[str, ...]
    expected_kl: float | None


def calibrate_gguf(
    checkpoint: Checkpoint,
    budget: Budget,
    windows: CalibrationSet,
    effort: CalibrationPreset,
    folder: Path,
    progress: Progress,
    overhead: int = 0,
    device: torch.device = CPU,
) -> CalibrationResult:
    """Choose the types and fit the matrices; steps that are complete are kept in `folder`.

    `overhead` are the bytes of a file that are not matrices'. Raises UsageError where nothing fits
    the budget or a pattern fits nothing, InputError where rows divide into no type's blocks.
    """
    source, size = checkpoint.decoder, checkpoint.tokenizer.size
    quantizer = Quantizer(source, windows, size, effort.sweeps, folder, progress, device)
    expected: float | None = None
    if budget.mix is not None:
        types = _mixed(source, budget.mix)
        for pattern, wanted in reversed(budget.fixed):
            types |= dict.fromkeys(_named(types, pattern), _codec(wanted))
    else:
        codecs = {name: _codec(name) for name in _candidates(source, budget.fixed)}
        choices = _fixed(quantizer.choices(codecs), budget.fixed)
        chosen = allocate(choices, _bytes(choices, budget, source, overhead))
        types = {name: codecs[c.type] for name, c in chosen.items()}
        expected = sum(choice.loss for choice in chosen.values())
    decoder = quantizer.calibrated(types)
    return CalibrationResult(
        checkpoint=replace(checkpoint, decoder=decoder),
        table={_gguf(name): types[name].name for name in sorted(types, key=_order)},
        adjusted=tuple(adjusted(source, decoder, GGUF)),
        expected_kl=expected,
    )


def check(decoder: Decoder, budget: Budget, overhead: int = 0) -> None:
    """Raises UsageError where a budget cannot be met whatever is measured, saying what is the
    least, or a pattern fits nothing; InputError where rows divide into no type's blocks."""
    types = dict.fromkeys(_candidates(decoder, ()))
    fixed: dict[Name, str] = {}
    least = 0
    for pattern, wanted in reversed(budget.fixed):
        fixed |= dict.fromkeys(_named(_names(decoder), pattern), wanted)
    if budget.mix is not None:
        _mixed(decoder, budget.mix)
    for name in _names(decoder):
        shape = _matrix(decoder, name).shape
        some = [_codec(fixed[name])] if name in fixed else [_codec(t) for t in types]
        fits = [codec for codec in some if shape[1] % codec.block_size == 0]
        least += min(codec.row_bytes(shape) for codec in fits or some) * shape[0]
    if budget.nbytes is not None and least + overhead > budget.nbytes:
        raise UsageError(
            f"a file of {budget.nbytes} bytes is too small: the least is {least + overhead}"
        )
    weights = _weights(decoder, _names(decoder))
    if budget.bpw is not None and least > int(budget.bpw * weights / 8):
        rate = math.ceil(800 * least / weights) / 100
        raise UsageError(f"{budget.bpw:g} bits a weight are too few: the least is {rate:g}")


def changeable(decoder: Decoder) -> tuple[str, ...]:
    """Names in GGUF of the vectors that calibration can change."""
    layers = range(decoder.geometry.n_layer)
    biases = [
        GGUF.layer[part].format(i=i) for i in layers for part in ("fc_in_bias", "fc_out_bias")
    ]
    return (*biases, GGUF.model["head_bias"])


def _codec(name: str) -> BlockCodec:
    encoding = ENCODINGS.get(name)
    if not isinstance(encoding, BlockCodec):
        known = ", ".join(n for n, e in ENCODINGS.items() if isinstance(e, BlockCodec))
        raise UsageError(f"type {name!r} is not one of {known}")
    return encoding


def _candidates(decoder: Decoder, fixed: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    sizes = {_matrix(decoder, name).shape[1] for name in _names(decoder)}
    small = any(size % _codec(CANDIDATES[0]).block_size for size in sizes)
    wanted = (kind for _, kind in fixed)
    return tuple(dict.fromkeys((*CANDIDATES, *(SMALL_BLOCKS if small else ()), *wanted)))


def _names(decoder: Decoder) -> list[Name]:
    inner = [(i, part) for i in range(decoder.geometry.n_layer) for part in MATRICES[1:-1]]
    return [MATRICES[0], *inner, MATRICES[-1]]


def _mixed(decoder: Decoder, mix: str) -> dict[Name, BlockCodec]:
    """Raises InputError where a matrix does not divide into its type's blocks."""
    found: dict[Name, BlockCodec] = {}
    file_type, layers = TYPES[mix], decoder.geometry.n_layer
    for name in _names(decoder):
        at = (name,) if isinstance(name, str) else (name[1], name[0], layers)
        encoding = file_type.encoding_of(*at)
        if isinstance(encoding, BlockCodec):
            encoding.row_bytes(_matrix(decoder, name).shape)
            found[name] = encoding
    return found


def _bytes(
    choices: Mapping[Name, Sequence[Choice]], budget: Budget, decoder: Decoder, overhead: int
) -> int:
    """What the matrices may take together."""
    if budget.nbytes is not None:
        return budget.nbytes - overhead
    if budget.kl is not None:
        for nbytes, loss in path(choices):
            if loss <= budget.kl:
                return nbytes
        raise UsageError(f"no choice of types loses as little as {budget.kl:g}; allow more")
    if budget.bpw is not None:
        return int(budget.bpw * _weights(decoder, choices) / 8)
    raise UsageError("a budget needs bytes, bits a weight or a divergence")


def _fixed(
    choices: Mapping[Name, Sequence[Choice]], fixed: Sequence[tuple[str, str]]
) -> dict[Name, Sequence[Choice]]:
    """Only the type that was asked for, where one was."""
    left = dict(choices)
    for pattern, wanted in reversed(fixed):
        for name in _named(choices, pattern):
            left[name] = [c for c in choices[name] if c.type == wanted]
            if not left[name]:
                known = ", ".join(c.type for c in choices[name])
                raise UsageError(f"{_gguf(name)}: type {wanted!r} is not one of {known}")
    return left


def _named(names: Iterable[Name], pattern: str) -> list[Name]:
    found = [name for name in names if fnmatch.fnmatchcase(_gguf(name), pattern)]
    if not found:
        raise UsageError(f"no matrix is called {pattern!r}; there is {_gguf('wte')}, for one")
    return found


def _matrix(decoder: Decoder, name: Name) -> Any:
    if isinstance(name, str):
        return getattr(decoder, name)
    return getattr(decoder.layers[name[0]], name[1])


def _weights(decoder: Decoder, names: Iterable[Name]) -> int:
    return sum(math.prod(_matrix(decoder, name).shape) for name in names)


def _gguf(name: Name) -> str:
    if isinstance(name, str):
        return GGUF.model[name]
    return GGUF.layer[name[1]].format(i=name[0])


def _order(name: Name) -> tuple[int, int]:
    if isinstance(name, str):
        return (-1 if name == "wte" else 1 << 30), 0
    return name[0], MATRICES.index(name[1])


def adjusted(source: Decoder, done: Decoder, names: TensorNames) -> list[str]:
    """Names of the vectors that are not the source's any more."""
    found = [
        names.layer[part].format(i=i)
        for i, (before, after) in enumerate(zip(source.layers, done.layers, strict=True))
        for part in names.layer
        if getattr(after, part) is not getattr(before, part)
        and not isinstance(getattr(after, part), Coded)
    ]
    ends = [
        name
        for part, name in names.model.items()
        if getattr(done, part) is not getattr(source, part)
        and not isinstance(getattr(done, part), Coded)
    ]
    return [*found, *ends]
