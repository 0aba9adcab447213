"""Mistakes of a writer: the model as it would have got it wrong, in every format it has a place in.

Most are what converters of other families were seen to do; the real writers then write them, so
nothing about the files is out of order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import torch

from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder, Layer, half_split_rows, split_rows
from cgconvert.model.tensor import InMemory, LazyTensor, Zeros
from cgconvert.model.tokenizer import WHITESPACE_RUNS, Tokenizer
from tests.mutations.mutation import GEOMETRY, MATRICES, VALUES, Model, in_model
from tests.support.tampering import exchanged, on_block

__all__ = ["WRITERS"]

Change = Callable[[LazyTensor], LazyTensor]

FLOATS = ("hf-float16", "hf-phi-float16", "onnx-float32", "gguf-F16")
ANY_BASE = MATRICES[1:]
"""transformers has CodeGen's rotary base in its code, so that layout refuses another."""


def decoder(change: Callable[[Decoder], Decoder]) -> Model:
    return lambda model: replace(model, decoder=change(model.decoder))


def block(change: Callable[[Layer], Layer]) -> Model:
    return decoder(on_block(change))


def blocks(change: Callable[[Decoder, Layer], Layer]) -> Model:
    return decoder(lambda d: replace(d, layers=tuple(change(d, b) for b in d.layers)))


def geometry(change: Callable[[Decoder], dict[str, float]]) -> Model:
    return decoder(lambda d: replace(d, geometry=replace(d.geometry, **change(d))))


def numbers(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Of the tensor's numbers in float32, put back into its own type."""
    return lambda tensor: InMemory(change(tensor.read().float()).to(tensor.dtype))


def times(factor: float) -> Change:
    return numbers(lambda values: values * factor)


def everywhere(change: Change) -> Model:
    """In every matrix and vector."""

    def on(d: Decoder) -> Decoder:
        top = {name: change(getattr(d, name)) for name in ("wte", "head", "head_bias")}
        made = [Layer(**{f.name: change(getattr(b, f.name)) for f in fields(b)}) for b in d.layers]
        return replace(d, layers=tuple(made), **top)

    return decoder(on)


def dropped(part: str) -> Model:
    def on(owner: Layer) -> Layer:
        bias = getattr(owner, part)
        return replace(owner, **{part: Zeros(bias.shape, bias.dtype)})

    return block(on)


def top_dropped(part: str) -> Model:
    def on(d: Decoder) -> Decoder:
        bias = getattr(d, part)
        return replace(d, **{part: Zeros(bias.shape, bias.dtype)})

    return decoder(on)


def regrouped(groups: int) -> Model:
    """qkv_proj taken apart as if it were packed in another number of groups."""

    def on(d: Decoder, b: Layer) -> Layer:
        packed = b.packed(4)
        q, k, v = (packed.rows(rows) for rows in split_rows(d.geometry.n_embd, groups))
        return replace(b, q=q, k=k, v=v)

    return blocks(on)


def query_key_value(d: Decoder, b: Layer) -> Layer:
    """The order in a group taken for q, k, v; it is q, v, k."""
    return replace(b, k=b.v, v=b.k)


def keys_in_halves(d: Decoder, b: Layer) -> Layer:
    g = d.geometry
    return replace(b, k=b.k.rows(half_split_rows(g.n_head, g.head_dim, g.rotary_dim)))


def heads_reversed(d: Decoder, b: Layer) -> Layer:
    g = d.geometry
    index = np.arange(g.n_embd).reshape(g.n_head, g.head_dim)[::-1].reshape(-1)
    return replace(b, q=b.q.rows(index), k=b.k.rows(index), v=b.v.rows(index))


def no_head(d: Decoder) -> Decoder:
    def zero(values: torch.Tensor) -> torch.Tensor:
        values[: d.geometry.head_dim] = 0
        return values

    return on_block(lambda b: replace(b, v=numbers(zero)(b.v)))(d)


def bias_of_another_layer(d: Decoder) -> Decoder:
    return on_block(lambda b: replace(b, fc_in_bias=d.layers[0].fc_in_bias))(d)


def shuffled(b: Layer) -> Layer:
    """The inner neurons in another order on one side only."""
    index = np.roll(np.arange(b.fc_in.shape[0]), 7)
    return replace(b, fc_in=b.fc_in.rows(index), fc_in_bias=b.fc_in_bias.rows(index))


def layers(order: Callable[[list[Layer]], list[Layer]]) -> Model:
    def on(d: Decoder) -> Decoder:
        kept = tuple(order(list(d.layers)))
        return replace(d, geometry=replace(d.geometry, n_layer=len(kept)), layers=kept)

    return decoder(on)


def rolled(tensor: LazyTensor) -> LazyTensor:
    return tensor.rows(np.roll(np.arange(tensor.shape[0]), 1))


def row_wise_int8(values: torch.Tensor) -> torch.Tensor:
    step = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / step).round() * step


def clipped(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-2 * values.std(), 2 * values.std())


def flushed(values: torch.Tensor) -> torch.Tensor:
    """As hardware does that has no subnormal numbers."""
    return values.masked_fill(values.abs() < torch.finfo(torch.float16).tiny, 0)


def matrices(change: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    apply = numbers(change)
    return everywhere(lambda tensor: apply(tensor) if len(tensor.shape) == 2 else tensor)


def padded_row_wins(model: Checkpoint) -> Checkpoint:
    def up(values: torch.Tensor) -> torch.Tensor:
        values[model.tokenizer.size :] = 50
        return values

    d = model.decoder
    return replace(model, decoder=replace(d, head_bias=numbers(up)(d.head_bias)))


def tokenizer(change: Callable[[Tokenizer], Tokenizer]) -> Model:
    return lambda model: replace(model, tokenizer=change(model.tokenizer))


def no_whitespace(t: Tokenizer) -> Tokenizer:
    kept = [token for token in t.added if token.content not in WHITESPACE_RUNS]
    return Tokenizer.from_parts(t.vocabulary, t.merges, kept)


def letters_exchanged(t: Tokenizer) -> Tokenizer:
    other = dict(t.vocabulary)
    other["e"], other["r"] = other["r"], other["e"]
    return Tokenizer.from_parts(other, t.merges, t.added)


TOKENS = ("tokenizer.ids", "tokenizer.files")

WRITERS = (
    in_model("rotary pairs in halves", VALUES, decoder(Decoder.half_split)),
    in_model("rotary pairs in halves, of the keys only", VALUES, blocks(keys_in_halves)),
    in_model("values and keys exchanged", VALUES, blocks(query_key_value)),
    in_model("queries and keys exchanged", VALUES, block(lambda b: replace(b, q=b.k, k=b.q))),
    in_model("qkv_proj taken for 1 group", VALUES, regrouped(1)),
    in_model("qkv_proj taken for 2 groups", VALUES, regrouped(2)),
    in_model("qkv_proj taken for 8 groups", VALUES, regrouped(8)),
    in_model("heads in reverse order", VALUES, blocks(heads_reversed)),
    in_model("one head zeroed", VALUES, decoder(no_head)),
    in_model("attention scaled twice", VALUES,
             blocks(lambda d, b: replace(b, q=times(d.geometry.head_dim**-0.5)(b.q)))),
    in_model("out_proj transposed", VALUES, block(lambda b: replace(b, o=b.o.T))),
    in_model("bias of fc_in dropped", VALUES, dropped("fc_in_bias")),
    in_model("bias of fc_out dropped", VALUES, dropped("fc_out_bias")),
    in_model("bias of a layer norm dropped", VALUES, dropped("ln_bias")),
    in_model("bias of the last norm dropped", VALUES, top_dropped("ln_f_bias")),
    in_model("bias of the head dropped", VALUES, top_dropped("head_bias")),
    in_model("bias of another layer", VALUES, decoder(bias_of_another_layer)),
    in_model("an MLP scaled by 1.05", VALUES,
             block(lambda b: replace(b, fc_out=times(1.05)(b.fc_out)))),
    in_model("an MLP's neurons shuffled on one side", VALUES, block(shuffled)),
    in_model("layer norms counted from one", VALUES,
             blocks(lambda d, b: replace(b, ln_weight=numbers(lambda w: w + 1)(b.ln_weight)))),
    in_model("the last norm left out", VALUES,
             decoder(lambda d: replace(d, ln_f_weight=numbers(torch.ones_like)(d.ln_f_weight)))),
    in_model("layers exchanged", VALUES, layers(lambda b: [b[1], b[0], *b[2:]])),
    in_model("a layer in the place of another", VALUES, layers(lambda b: [b[0], b[0], *b[2:]])),
    in_model("the last layer missing", GEOMETRY, layers(lambda b: b[:-1])),
    in_model("a layer twice", GEOMETRY, layers(lambda b: [b[0], *b])),
    in_model("two embedding rows exchanged", VALUES,
             decoder(lambda d: replace(d, wte=exchanged(d.wte, 70, 71)))),
    in_model("the embedding shifted by one", VALUES,
             decoder(lambda d: replace(d, wte=rolled(d.wte)))),
    in_model("the vocabulary of the head shifted by one", VALUES,
             decoder(lambda d: replace(d, head=rolled(d.head)))),
    in_model("the head tied to the embedding", VALUES,
             decoder(lambda d: replace(d, head=d.wte))),
    in_model("a padded row wins", ("padding", "weights.equal"), padded_row_wins),
    in_model("epsilon 1e-6", GEOMETRY, geometry(lambda d: {"layer_norm_epsilon": 1e-6})),
    in_model("rotary base 500,000", GEOMETRY,
             geometry(lambda d: {"rotary_base": 500000.0}), ANY_BASE),
    in_model("rotary over half its width", GEOMETRY,
             geometry(lambda d: {"rotary_dim": d.geometry.rotary_dim // 2})),
    in_model("half the context", ("context",),
             geometry(lambda d: {"n_positions": d.geometry.n_positions // 2})),
    in_model("weights rounded to bfloat16 on the way", VALUES,
             everywhere(numbers(lambda w: w.bfloat16().float()))),
    in_model("weights quantized twice", VALUES, matrices(row_wise_int8)),
    in_model("weights clipped at two deviations", VALUES, matrices(clipped)),
    in_model("subnormal weights flushed to 0", VALUES, everywhere(numbers(flushed)), FLOATS),
    in_model("white-space tokens lost", TOKENS, tokenizer(no_whitespace)),
    in_model("half of the merges lost", TOKENS,
             tokenizer(lambda t: replace(t, merges=t.merges[: len(t.merges) // 2]))),
    in_model("merges in reverse order", TOKENS,
             tokenizer(lambda t: replace(t, merges=t.merges[::-1]))),
    in_model("two letters exchanged in the vocabulary", TOKENS, tokenizer(letters_exchanged)),
)  # fmt: skip
