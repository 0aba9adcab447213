"""Measure in how many groups qkv_proj is packed: the right number makes a page of text likely.

The weights do not show the number. But a wrong one takes rows of q, k and v for each other, so
that attention is destroyed. No two numbers stand for the same model: behind the queries of a
group, the smaller number still has queries where the larger one has values.

All numbers are measured in one pass. Every weight is read once, the packed matrix is multiplied
once, and only its outputs are split differently; each number has hidden states of its own. All is
computed in float32, and only a chunk of a matrix is in memory.

A pass costs 2 * parameters * PAGE_TOKENS operations for each divisor of n_head: on two cores of
100 GFLOPS, 3 seconds for 350M with 5 divisors (measured), so 20 for 2B with 6, and three minutes
for 16B with 8 beside the reading of its 32 GB. More tokens would not decide better, see FAR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cgconvert.errors import InputError
from cgconvert.io.progress import Amount, Progress, progress_of_reading
from cgconvert.lazy import torch
from cgconvert.model.decoder import (
    WARNING,
    Checkpoint,
    Decoder,
    Geometry,
    Layer,
    qkv_row_indices,
)
from cgconvert.model.device import read_float32, torch_device
from cgconvert.model.forward import RotaryTables, attend, gelu, norm, rotary
from cgconvert.model.tensor import LazyTensor
from cgconvert.texts.page import PAGE

__all__ = [
    "FAR",
    "STEP",
    "GroupPerplexities",
    "measure_groups",
    "page_ids",
    "with_doubtful_groups_warned",
    "with_measured_groups",
]

STEP = "measuring the groups of qkv_proj"
"""What progress calls the measurement."""

PAGE_TOKENS = 128
"""How many ids of the page are used: half a page of prose and code."""

CHUNK_BYTES = 128 << 20
"""How many bytes of a matrix are in memory at once, as float32."""

FAR = 2.5
"""A number is beaten if its perplexity is more than so many times that of the best number.

Measured on the page: the built-in model is better at the right number than at each other by a
factor of 9.4; its first 3 layers alone by 5.8, and with noise as large as the weights by 9.0. In
random models of six geometries, with nearly uniform and with sharp attention, the worst number is
not 1.3 times the best, and in the built-in model with random q, k and v not 1.6 times.
"""

KNOWN = 1 / 8
"""A model knows the page if its perplexity is at most this share of the tokenizer's entries.

A model that knows nothing has a share of about 1 (random weights: 0.93 to 1.35), and nothing can
be decided by it. The built-in model has 0.006, and 0.04 with noise as large as its weights.
"""


@dataclass(frozen=True)
class GroupPerplexities:
    """The perplexity of the page for each number of groups that fits the geometry.

    Attributes:
        by_number: The perplexities, by number of groups; infinite if they are not finite.
        tokenizer_size: The number of ids in the tokenizer.
    """

    by_number: Mapping[int, float]
    tokenizer_size: int

    @property
    def best(self) -> int:
        """The number with the smallest perplexity."""
        return min(self.by_number, key=lambda number: self.by_number[number])

    @property
    def is_page_known(self) -> bool:
        """Whether the model knows the page at the best number; otherwise nothing is decided."""
        return self.by_number[self.best] <= KNOWN * self.tokenizer_size

    @property
    def clear_winner(self) -> int | None:
        """The number that beats each other one by more than FAR; None if there is none."""
        beaten = [number for number in self.by_number if self.is_beaten(number)]
        return self.best if len(beaten) == len(self.by_number) - 1 else None

    def ratio(self, number: int) -> float:
        """Return the perplexity with `number` groups over the smallest one; 1 if none is finite."""
        smallest = self.by_number[self.best]
        return self.by_number[number] / smallest if math.isfinite(smallest) else 1.0

    def is_beaten(self, number: int) -> bool:
        """Whether the model knows the page and another number is better by more than FAR."""
        return self.is_page_known and self.ratio(number) > FAR

    def figures(self) -> str:
        """Write the perplexities, the smallest first: "24 with 4 groups, 227 with 2"."""
        ascending = sorted(self.by_number.items(), key=lambda item: (item[1], item[0]))
        texts = [f"{_rounded(perplexity)} with {number}" for number, perplexity in ascending]
        texts[0] += " group" if self.best == 1 else " groups"
        return ", ".join(texts)


def _rounded(perplexity: float) -> str:
    """Write a perplexity with three significant digits: 24.1, 4650."""
    return f"{float(f'{perplexity:.3g}'):.7g}"


def with_measured_groups(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose packed qkv_proj is split by the measured number of groups.

    The number, which becomes mp_num, is the one that makes the page of text most likely; it is 1
    if the model has one head. A checkpoint that stores q, k and v apart is returned as it is.

    Raises InputError if the model does not know the page, or if no number is a clear winner.
    """
    if not checkpoint.geometry.mp_num:
        return checkpoint
    measured = measure_groups(checkpoint)
    number = 1 if measured is None else measured.clear_winner
    if measured is not None and number is None:
        reason = (
            "too near to decide"
            if measured.is_page_known
            else "so this model does not know English and Python, or this is not its tokenizer"
        )
        raise InputError(
            f"{checkpoint.path}: text does not show the number of groups in qkv_proj: the "
            f"perplexity of a page is {measured.figures()}, {reason}; give the number with "
            "`mp_num`"
        )
    assert number is not None
    notes = checkpoint.notes
    if measured is not None:
        notes += (
            f"{checkpoint.path}: qkv_proj was measured to be packed in {number}: the perplexity of "
            f"a page of text is {measured.figures()}",
        )
    return replace(
        checkpoint,
        decoder=checkpoint.decoder.with_groups(number),
        origin={**checkpoint.origin, "mp_num": number},
        notes=notes,
    )


def with_doubtful_groups_warned(checkpoint: Checkpoint) -> Checkpoint:
    """Add a warning to a checkpoint if another number of groups is better by more than FAR."""
    measured, number = measure_groups(checkpoint), checkpoint.geometry.mp_num
    if measured is None or not measured.is_beaten(number):
        return checkpoint
    note = (
        f"{WARNING}{checkpoint.path}: `mp_num={number}` looks wrong, qkv_proj looks packed in "
        f"{measured.best}: the perplexity of a page of text is {measured.figures()}"
    )
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def page_ids(checkpoint: Checkpoint) -> list[int]:
    """Return the ids on which a model is measured: the first PAGE_TOKENS ids of the page."""
    return checkpoint.tokenizer.encode(PAGE)[:PAGE_TOKENS]


def measure_groups(
    checkpoint: Checkpoint, progress: Progress | None = None
) -> GroupPerplexities | None:
    """Measure the perplexity of the page for each number of groups that fits the geometry.

    In a context that is shorter than the page, the page is cut into sequences. Returns None if the
    model stores q, k and v apart, or if only one number fits. `progress` gets a step and an advance
    for each layer. Raises InputError if the tokenizer has ids that the model has no row for.
    """
    decoder, geometry = checkpoint.decoder, checkpoint.geometry
    numbers = [n for n in range(1, geometry.n_head + 1) if geometry.n_head % n == 0]
    if not geometry.mp_num or len(numbers) == 1:
        return None
    ids = page_ids(checkpoint)
    if max(ids) >= geometry.vocab_size:
        raise InputError(
            f"{checkpoint.path}: the embedding has {geometry.vocab_size} rows, and the tokenizer "
            f"gives id {max(ids)} for a plain text; give the right one with `tokenizer`"
        )
    length = min(len(ids), geometry.n_positions)
    sequences = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    with torch.inference_mode():
        x = read_float32(decoder.wte.rows(sequences.flatten().numpy()), torch_device("cpu"))
        x = x.unflatten(0, sequences.shape).repeat(len(numbers), 1, 1)
        tables = rotary(geometry, length)
        progress = progress or progress_of_reading()
        progress.step(STEP, Amount(len(decoder.layers), "layers"))
        for layer in decoder.layers:
            x = _layer(geometry, layer, x, numbers, tables)
            progress.advance(1)
        x = _norm(geometry, x, decoder.ln_f_weight, decoder.ln_f_bias)
        next_ids = sequences[:, 1:].repeat(len(numbers), 1)
        losses = _losses(decoder, x[:, :-1], next_ids, checkpoint.tokenizer.size)
        means = losses.double().mean(dim=1).reshape(len(numbers), -1).mean(dim=1)
    perplexities = means.exp().nan_to_num(nan=math.inf, posinf=math.inf).tolist()
    return GroupPerplexities(
        dict(zip(numbers, perplexities, strict=True)), checkpoint.tokenizer.size
    )


def _layer(
    geometry: Geometry,
    layer: Layer,
    x: torch.Tensor,
    numbers: list[int],
    tables: RotaryTables,
) -> torch.Tensor:
    """Compute x + attention(norm(x)) + mlp(norm(x)) with q, k and v split by each number of groups.

    x is [len(numbers) * sequences, T, n_embd]: the hidden states with `numbers[0]` groups, then
    those with `numbers[1]`, and so on.
    """
    normed = _norm(geometry, x, layer.ln_weight, layer.ln_bias)
    packed = _linear(normed, layer.packed(geometry.mp_num)).chunk(len(numbers))
    contexts = []
    for number, outputs in zip(numbers, packed, strict=True):
        q, k, v = (
            outputs[..., torch.from_numpy(indices)].unflatten(-1, (geometry.n_head, -1))
            for indices in qkv_row_indices(geometry.n_embd, number)
        )
        contexts.append(attend(q, k, v, *tables).flatten(-2))
    attention = _linear(torch.cat(contexts), layer.o)
    inner = gelu(_linear(normed, layer.fc_in, layer.fc_in_bias))
    return x + attention + _linear(inner, layer.fc_out, layer.fc_out_bias)


def _losses(
    decoder: Decoder, x: torch.Tensor, next_ids: torch.Tensor, tokenizer_size: int
) -> torch.Tensor:
    """Compute -log p of the next ids in nats; ids without a token have no probability.

    x is the head's input, [N, T, n_embd]; `next_ids` and the result are [N, T].
    """
    log_total = torch.full(next_ids.shape, -math.inf)
    chosen = torch.full(next_ids.shape, -math.inf)
    for first, last in _chunks(decoder.head):
        rows = slice(first, min(last, tokenizer_size))
        if rows.start >= rows.stop:
            break
        logits = x @ decoder.head.read(rows).float().T + decoder.head_bias.read(rows).float()
        log_total = torch.logaddexp(log_total, logits.logsumexp(-1))
        is_here = (next_ids >= rows.start) & (next_ids < rows.stop)
        columns = (next_ids - rows.start).clamp(0, logits.shape[-1] - 1)
        values = logits.gather(-1, columns[..., None])[..., 0]
        chosen = torch.where(is_here, values, chosen)
    return log_total - chosen


def _norm(
    geometry: Geometry, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor
) -> torch.Tensor:
    """Apply a layer norm."""
    vectors = read_float32(weight, torch_device("cpu")), read_float32(bias, torch_device("cpu"))
    return norm(x, *vectors, geometry.layer_norm_epsilon)


def _linear(x: torch.Tensor, weight: LazyTensor, bias: LazyTensor | None = None) -> torch.Tensor:
    """Compute x @ weight.T + bias, float32 [..., rows of `weight`]."""
    out = torch.empty(*x.shape[:-1], weight.shape[0])
    for first, last in _chunks(weight):
        rows = slice(first, last)
        part = x @ weight.read(rows).float().T
        out[..., rows] = part if bias is None else part + bias.read(rows).float()
    return out


def _chunks(weight: LazyTensor) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each chunk of CHUNK_BYTES of a matrix."""
    rows, width = weight.shape
    step = max(1, CHUNK_BYTES // (4 * width))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
