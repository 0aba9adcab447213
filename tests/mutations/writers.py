"""Bugs of a writer: the model as a faulty converter would write it, in every format that can.

Most were seen in converters of other model families. The real writers write the faulty model, so
the files themselves are in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from cgconvert.model.decoder import (
    Checkpoint,
    Decoder,
    Layer,
    half_split_row_indices,
    qkv_row_indices,
)
from cgconvert.model.tensor import InMemoryTensor, LazyTensor, Zeros
from cgconvert.model.tokenizer import WHITESPACE_RUNS, Tokenizer
from tests.mutations.mutation import GEOMETRY, HF, MATRICES, VALUES, Model, in_model
from tests.support.tampering import change_layer, exchange_rows

__all__ = ["WRITERS"]

Change = Callable[[LazyTensor], LazyTensor]

FLOATS = (*HF, "onnx-float32", "gguf-F16")
ANY_BASE = MATRICES[2:]
"""All but CodeGen's and GPT-J's layout, where transformers fixes the rotary base in code."""


def in_decoder(change: Callable[[Decoder], Decoder]) -> Model:
    return lambda model: replace(model, decoder=change(model.decoder))


def in_layer(change: Callable[[Layer], Layer]) -> Model:
    return in_decoder(change_layer(change))


def in_every_layer(change: Callable[[Decoder, Layer], Layer]) -> Model:
    return in_decoder(lambda d: replace(d, layers=tuple(change(d, b) for b in d.layers)))


def in_geometry(change: Callable[[Decoder], dict[str, Any]]) -> Model:
    return in_decoder(lambda d: replace(d, geometry=replace(d.geometry, **change(d))))


def on_float32(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Apply a function to a tensor's float32 values and convert them back to its type."""
    return lambda tensor: InMemoryTensor(change(tensor.read().float()).to(tensor.dtype.torch_dtype))


def times(factor: float) -> Change:
    return on_float32(lambda values: values * factor)


def in_every_tensor(change: Change) -> Model:
    """Change every matrix and vector."""

    def apply(d: Decoder) -> Decoder:
        model_tensors: dict[str, Any] = {
            name: change(getattr(d, name)) for name in ("wte", "head", "head_bias")
        }
        layers = [
            Layer(**{f.name: change(getattr(layer, f.name)) for f in fields(layer)})
            for layer in d.layers
        ]
        return replace(d, layers=tuple(layers), **model_tensors)

    return in_decoder(apply)


def drop_layer_bias(part: str) -> Model:
    def apply(owner: Layer) -> Layer:
        bias = getattr(owner, part)
        return replace(owner, **{part: Zeros(bias.shape, bias.dtype)})

    return in_layer(apply)


def drop_bias(part: str) -> Model:
    def apply(d: Decoder) -> Decoder:
        bias = getattr(d, part)
        changes: dict[str, Any] = {part: Zeros(bias.shape, bias.dtype)}
        return replace(d, **changes)

    return in_decoder(apply)


def regroup(groups: int) -> Model:
    """Split qkv_proj as if it were packed in another number of groups."""

    def apply(d: Decoder, b: Layer) -> Layer:
        packed = b.packed(4)
        q, k, v = (packed.rows(rows) for rows in qkv_row_indices(d.geometry.n_embd, groups))
        return replace(b, q=q, k=k, v=v)

    return in_every_layer(apply)


def exchange_keys_and_values(d: Decoder, b: Layer) -> Layer:
    """Read the parts of a group as q, k, v; the order is q, v, k."""
    return replace(b, k=b.v, v=b.k)


def half_split_keys(d: Decoder, b: Layer) -> Layer:
    g = d.geometry
    return replace(b, k=b.k.rows(half_split_row_indices(g.n_head, g.head_dim, g.rotary_dim)))


def reverse_heads(d: Decoder, b: Layer) -> Layer:
    g = d.geometry
    index = np.arange(g.n_embd).reshape(g.n_head, g.head_dim)[::-1].reshape(-1)
    return replace(b, q=b.q.rows(index), k=b.k.rows(index), v=b.v.rows(index))


def zero_first_head(d: Decoder) -> Decoder:
    def zero(values: torch.Tensor) -> torch.Tensor:
        values[: d.geometry.head_dim] = 0
        return values

    return change_layer(lambda b: replace(b, v=on_float32(zero)(b.v)))(d)


def use_bias_of_first_layer(d: Decoder) -> Decoder:
    return change_layer(lambda b: replace(b, fc_in_bias=d.layers[0].fc_in_bias))(d)


def shuffle_neurons(b: Layer) -> Layer:
    """Permute the MLP's neurons in fc_in but not in fc_out."""
    index = np.roll(np.arange(b.fc_in.shape[0]), 7)
    return replace(b, fc_in=b.fc_in.rows(index), fc_in_bias=b.fc_in_bias.rows(index))


def reorder_layers(order: Callable[[list[Layer]], list[Layer]]) -> Model:
    def apply(d: Decoder) -> Decoder:
        kept = tuple(order(list(d.layers)))
        return replace(d, geometry=replace(d.geometry, n_layer=len(kept)), layers=kept)

    return in_decoder(apply)


def shift_rows(tensor: LazyTensor) -> LazyTensor:
    return tensor.rows(np.roll(np.arange(tensor.shape[0]), 1))


def round_rows_to_int8(values: torch.Tensor) -> torch.Tensor:
    step = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / step).round() * step


def clip(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-2 * values.std(), 2 * values.std())


def flush_subnormals(values: torch.Tensor) -> torch.Tensor:
    """Set subnormal float16 values to 0, as hardware without them does."""
    return values.masked_fill(values.abs() < torch.finfo(torch.float16).tiny, 0)


def in_every_matrix(change: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    apply = on_float32(change)
    return in_every_tensor(lambda tensor: apply(tensor) if len(tensor.shape) == 2 else tensor)


def raise_padded_rows(model: Checkpoint) -> Checkpoint:
    def up(values: torch.Tensor) -> torch.Tensor:
        values[model.tokenizer.size :] = 50
        return values

    d = model.decoder
    return replace(model, decoder=replace(d, head_bias=on_float32(up)(d.head_bias)))


def in_tokenizer(change: Callable[[Tokenizer], Tokenizer]) -> Model:
    return lambda model: replace(model, tokenizer=change(model.tokenizer))


def remove_whitespace_tokens(t: Tokenizer) -> Tokenizer:
    kept = [token for token in t.added if token.content not in WHITESPACE_RUNS]
    return Tokenizer.from_parts(t.vocabulary, t.merges, kept)


def exchange_letters(t: Tokenizer) -> Tokenizer:
    vocabulary = dict(t.vocabulary)
    vocabulary["e"], vocabulary["r"] = vocabulary["r"], vocabulary["e"]
    return Tokenizer.from_parts(vocabulary, t.merges, t.added)


TOKENS = ("tokenizer.ids", "tokenizer.files")

WRITERS = (
    in_model("rotary pairs in halves", VALUES, in_decoder(Decoder.half_split)),
    in_model("rotary pairs in halves, of the keys only", VALUES, in_every_layer(half_split_keys)),
    in_model("values and keys exchanged", VALUES, in_every_layer(exchange_keys_and_values)),
    in_model("queries and keys exchanged", VALUES, in_layer(lambda b: replace(b, q=b.k, k=b.q))),
    in_model("qkv_proj taken for 1 group", VALUES, regroup(1)),
    in_model("qkv_proj taken for 2 groups", VALUES, regroup(2)),
    in_model("qkv_proj taken for 8 groups", VALUES, regroup(8)),
    in_model("heads in reverse order", VALUES, in_every_layer(reverse_heads)),
    in_model("one head zeroed", VALUES, in_decoder(zero_first_head)),
    in_model(
        "attention scaled twice",
        VALUES,
        in_every_layer(lambda d, b: replace(b, q=times(d.geometry.head_dim**-0.5)(b.q))),
    ),
    in_model("out_proj transposed", VALUES, in_layer(lambda b: replace(b, o=b.o.T))),
    in_model("bias of fc_in dropped", VALUES, drop_layer_bias("fc_in_bias")),
    in_model("bias of fc_out dropped", VALUES, drop_layer_bias("fc_out_bias")),
    in_model("bias of a layer norm dropped", VALUES, drop_layer_bias("ln_bias")),
    in_model("bias of the last norm dropped", VALUES, drop_bias("ln_f_bias")),
    in_model("bias of the head dropped", VALUES, drop_bias("head_bias")),
    in_model("bias of another layer", VALUES, in_decoder(use_bias_of_first_layer)),
    in_model(
        "an MLP scaled by 1.05",
        VALUES,
        in_layer(lambda b: replace(b, fc_out=times(1.05)(b.fc_out))),
    ),
    in_model("an MLP's neurons shuffled on one side", VALUES, in_layer(shuffle_neurons)),
    in_model(
        "layer norms counted from one",
        VALUES,
        in_every_layer(lambda d, b: replace(b, ln_weight=on_float32(lambda w: w + 1)(b.ln_weight))),
    ),
    in_model(
        "the last norm left out",
        VALUES,
        in_decoder(lambda d: replace(d, ln_f_weight=on_float32(torch.ones_like)(d.ln_f_weight))),
    ),
    in_model("layers exchanged", VALUES, reorder_layers(lambda b: [b[1], b[0], *b[2:]])),
    in_model(
        "a layer in the place of another", VALUES, reorder_layers(lambda b: [b[0], b[0], *b[2:]])
    ),
    in_model("the last layer missing", GEOMETRY, reorder_layers(lambda b: b[:-1])),
    in_model("a layer twice", GEOMETRY, reorder_layers(lambda b: [b[0], *b])),
    in_model(
        "two embedding rows exchanged",
        VALUES,
        in_decoder(lambda d: replace(d, wte=exchange_rows(d.wte, 70, 71))),
    ),
    in_model(
        "the embedding shifted by one",
        VALUES,
        in_decoder(lambda d: replace(d, wte=shift_rows(d.wte))),
    ),
    in_model(
        "the vocabulary of the head shifted by one",
        VALUES,
        in_decoder(lambda d: replace(d, head=shift_rows(d.head))),
    ),
    in_model(
        "the head tied to the embedding", VALUES, in_decoder(lambda d: replace(d, head=d.wte))
    ),
    in_model("a padded row wins", ("padding", "weights.equal"), raise_padded_rows),
    in_model("epsilon 1e-6", GEOMETRY, in_geometry(lambda d: {"layer_norm_epsilon": 1e-6})),
    in_model(
        "rotary base 500,000", GEOMETRY, in_geometry(lambda d: {"rotary_base": 500000.0}), ANY_BASE
    ),
    in_model(
        "rotary over half its width",
        GEOMETRY,
        in_geometry(lambda d: {"rotary_dim": d.geometry.rotary_dim // 2}),
    ),
    in_model(
        "half the context",
        ("context",),
        in_geometry(lambda d: {"n_positions": d.geometry.n_positions // 2}),
    ),
    in_model(
        "weights rounded to bfloat16 on the way",
        VALUES,
        in_every_tensor(on_float32(lambda w: w.bfloat16().float())),
    ),
    in_model("weights quantized twice", VALUES, in_every_matrix(round_rows_to_int8)),
    in_model("weights clipped at two deviations", VALUES, in_every_matrix(clip)),
    in_model(
        "subnormal weights flushed to 0",
        VALUES,
        in_every_tensor(on_float32(flush_subnormals)),
        FLOATS,
    ),
    in_model("white-space tokens lost", TOKENS, in_tokenizer(remove_whitespace_tokens)),
    in_model(
        "half of the merges lost",
        TOKENS,
        in_tokenizer(lambda t: replace(t, merges=t.merges[: len(t.merges) // 2])),
    ),
    in_model(
        "merges in reverse order", TOKENS, in_tokenizer(lambda t: replace(t, merges=t.merges[::-1]))
    ),
    in_model("two letters exchanged in the vocabulary", TOKENS, in_tokenizer(exchange_letters)),
)
