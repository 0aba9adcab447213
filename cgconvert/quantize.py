"""Quantize a model on calibration text: the types, the budget, and the matrices fitted to it.

What is asked for is a size, a rate of bits or a loss. Which matrix gets which type follows from
what each would cost the model's output (quant/sensitivity.py, quant/allocation.py); then every
matrix is fitted to the inputs it meets (quant/calibration.py).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import UsageError
from cgconvert.formats.gguf_types import ENCODINGS, TYPES
from cgconvert.model import Decoder
from cgconvert.names import GGUF, Names
from cgconvert.quant.allocation import Choice, allocate, path
from cgconvert.quant.blocks import BlockType
from cgconvert.quant.coded import Coded
from cgconvert.quant.quantizer import Quantizer, Windows
from cgconvert.quant.sensitivity import Name
from cgconvert.stream.progress import Progress
from cgconvert.text import Text

__all__ = ["Budget", "Calibrated", "adjusted", "calibrate"]

CANDIDATES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types that a matrix can get; others of the same size lose more."""

MATRICES = ("wte", "q", "k", "v", "o", "fc_in", "fc_out", "head")


@dataclass(frozen=True)
class Budget:
    """What the file may take: one of these.

    `like` is a standard mix, whose bytes are the limit; `nbytes` is the whole file's, `bpw` bits a
    weight of all matrices, `kl` the mean divergence in nats a token that may be lost. `fixed` are
    types by pattern of the tensor's name in GGUF, first match first.
    """

    like: str | None = None
    nbytes: int | None = None
    bpw: float | None = None
    kl: float | None = None
    fixed: Sequence[tuple[str, str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Calibrated:
    """The coded model, the type of each matrix by its name in the format it is for, vectors that
    changed by theirs, and the loss that was expected, in nats a token."""

    checkpoint: Checkpoint
    table: Mapping[str, str]
    adjusted: tuple[str, ...]
    expected_kl: float | None
    options: Mapping[str, Any]


def calibrate(
    checkpoint: Checkpoint,
    budget: Budget,
    text: Text,
    folder: Path,
    progress: Progress,
    overhead: int = 0,
) -> Calibrated:
    """Choose the types and fit the matrices; steps that are complete are kept in `folder`.

    `overhead` are the bytes of a file that are not matrices'. Raises InputError where the text is
    too short, UsageError where nothing fits the budget or a pattern fits nothing.
    """
    g = checkpoint.geometry
    ids = text.ids(checkpoint.tokenizer)
    windows = Windows.of(ids, g.n_positions, text.name)
    quantizer = Quantizer(checkpoint.decoder, windows, checkpoint.tokenizer.size, folder, progress)
    codecs = {name: _codec(name) for name in CANDIDATES}
    choices = _fixed(quantizer.choices(codecs), budget.fixed)
    chosen = allocate(choices, _bytes(choices, budget, checkpoint.decoder, overhead))
    decoder = quantizer.calibrated({name: codecs[c.type] for name, c in chosen.items()})
    table = {_gguf(name): choice.type for name, choice in sorted(chosen.items(), key=_order)}
    return Calibrated(
        checkpoint=replace(checkpoint, decoder=decoder),
        table=table,
        adjusted=tuple(adjusted(checkpoint.decoder, decoder, GGUF)),
        expected_kl=sum(choice.loss for choice in chosen.values()),
        options={"calibration": {"text": text.name, "sha256": text.sha256,
                                 "windows": windows.sha256}},
    )  # fmt: skip


def _codec(name: str) -> BlockType:
    encoding = ENCODINGS[name]
    assert isinstance(encoding, BlockType)
    return encoding


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
    weights = sum(math.prod(_matrix(decoder, name).shape) for name in choices)
    if budget.bpw is not None:
        return int(budget.bpw * weights / 8)
    mix, layers = TYPES[budget.like or "Q4_K_M"], decoder.geometry.n_layer
    total = 0
    for name in choices:
        shape = _matrix(decoder, name).shape
        encoding = mix.of(name) if isinstance(name, str) else mix.of(name[1], name[0], layers)
        total += shape[0] * sum(array.row_bytes for array in encoding.arrays(shape))
    return total


def _fixed(
    choices: Mapping[Name, Sequence[Choice]], fixed: Sequence[tuple[str, str]]
) -> dict[Name, Sequence[Choice]]:
    """Only the type that was asked for, where one was."""
    left = dict(choices)
    for pattern, wanted in reversed(fixed):
        if wanted not in CANDIDATES:
            raise UsageError(f"type {wanted!r} is not one of {', '.join(CANDIDATES)}")
        names = [name for name in choices if fnmatch.fnmatch(_gguf(name), pattern)]
        if not names:
            raise UsageError(f"no matrix is called {pattern!r}; there is {_gguf('wte')}, for one")
        left |= {n: [c for c in choices[n] if c.type == wanted] for n in names}
    return left


def _matrix(decoder: Decoder, name: Name) -> Any:
    if isinstance(name, str):
        return getattr(decoder, name)
    return getattr(decoder.blocks[name[0]], name[1])


def _gguf(name: Name) -> str:
    if isinstance(name, str):
        return GGUF.model[name]
    return GGUF.block[name[1]].format(i=name[0])


def _order(entry: tuple[Name, Choice]) -> tuple[int, int]:
    name = entry[0]
    if isinstance(name, str):
        return (-1 if name == "wte" else 1 << 30), 0
    return name[0], MATRICES.index(name[1])


def adjusted(source: Decoder, done: Decoder, names: Names) -> list[str]:
    """Names of the vectors that are not the source's any more."""
    found = [
        names.block[part].format(i=i)
        for i, (before, after) in enumerate(zip(source.blocks, done.blocks, strict=True))
        for part in names.block
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
