"""The order in which writers store a model's tensors, and the layout's name of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import LazyTensor, Zeros
from cgconvert.model.tensor_names import TensorNames

__all__ = ["NamedTensor", "named_tensors"]

PARTS_AFTER_LAYERS = ("ln_f_weight", "ln_f_bias", "head", "head_bias")


class NamedTensor(NamedTuple):
    """A tensor with its name in a layout.

    `part` is the field of Decoder or Layer that contains the tensor, or "zero_bias" for a bias that
    the layout has and CodeGen does not. `layer` is None outside of the layers.
    """

    name: str
    part: str
    layer: int | None
    tensor: LazyTensor


def named_tensors(
    decoder: Decoder,
    names: TensorNames,
    *,
    mp_num: int = 0,
    bias_dtype: torch.dtype | None = None,
) -> Iterator[NamedTensor]:
    """Yield all tensors of a layout in the order in which the model uses them.

    Rows are in the layout's order. `mp_num` is the number of groups if the layout packs q, k and v
    into one matrix, 0 otherwise. `bias_dtype` is the type of zero biases; the default is q's type.
    """
    if names.half_split:
        decoder = decoder.half_split()
    yield NamedTensor(names.model["wte"], "wte", None, decoder.wte)
    for i, layer in enumerate(decoder.layers):
        for part, name in names.layer.items():
            tensor = layer.packed(mp_num) if part == "qkv" else getattr(layer, part)
            yield NamedTensor(name.format(i=i), part, i, tensor)
        for name in names.zero_biases:
            bias = Zeros((decoder.geometry.n_embd,), bias_dtype or layer.q.dtype)
            yield NamedTensor(name.format(i=i), "zero_bias", i, bias)
    for part in PARTS_AFTER_LAYERS:
        yield NamedTensor(names.model[part], part, None, getattr(decoder, part))
