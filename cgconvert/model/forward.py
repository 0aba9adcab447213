"""The mathematics of a CodeGen layer on whole sequences, in CodeGen's own rotary form.

A layer is x + attention(norm(x)) + mlp(norm(x)), as in transformers' modeling_codegen.py. `layer`
is what calibration computes: statistics of inputs, sensitivities and quantized layers come from the
same operations. The verifier's reference (verify/reference.py) keeps a layer of its own on purpose:
it judges what was made with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses

from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import read_float32, warm_up_mkl

__all__ = [
    "Observer",
    "RotaryTables",
    "Weights",
    "attend",
    "attention_context",
    "gelu",
    "layer",
    "layer_weights",
    "mlp_activations",
    "norm",
    "norm_layer_input",
    "rotary",
]

Weights = Mapping[str, torch.Tensor]
"""A layer's tensors by the names of Layer's fields, float32 on one device."""

RotaryTables = tuple[torch.Tensor, torch.Tensor]
"""sin and cos of T positions, float32 [T, rotary_dim] each."""

Observer = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Called for each matrix of a layer with its part, its inputs [batch, T, columns] and its outputs
[batch, T, rows]."""


def rotary(geometry: Geometry, length: int, device: torch.device | None = None) -> RotaryTables:
    """sin and cos of the angles at positions 0 to `length`, [length, rotary_dim], each angle twice.

    The angles are float32 products, as transformers' create_sinusoidal_positions has them.
    """
    warm_up_mkl()
    pair = torch.arange(0, geometry.rotary_dim, 2) / geometry.rotary_dim
    inverse = 1.0 / (geometry.rotary_base**pair)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat_interleave(2, dim=1)
    return angles.sin().to(device), angles.cos().to(device)


def layer_weights(decoder: Decoder, number: int, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of one layer in float32 on `device`, by the names of Layer's fields."""
    fields = vars(decoder.layers[number])
    return {part: read_float32(tensor, device) for part, tensor in fields.items()}


def layer(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what one layer adds to its input; `observe` sees each matrix product.

    Args:
        geometry: The model's.
        weights: The layer's tensors.
        x: Hidden states before the layer, [batch, T, n_embd].
        tables: `rotary` of T positions.
        observe: Called for q, k, v, fc_in, o and fc_out, in this order.

    Returns:
        The outputs of attention and of the MLP without `fc_out_bias`, [batch, T, n_embd] each.
        The caller adds them: the order of three sums decides the last digit.
    """
    normed = norm_layer_input(geometry, weights, x)
    context = attention_context(geometry, weights, normed, tables, observe)
    activations = mlp_activations(weights, normed, observe)
    attention = _multiply("o", weights, context, observe)
    return attention, _multiply("fc_out", weights, activations, observe)


def norm_layer_input(geometry: Geometry, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The normed hidden states, [batch, T, n_embd]: the input of q, k, v and fc_in."""
    return norm(x, weights["ln_weight"], weights["ln_bias"], geometry.layer_norm_epsilon)


def attention_context(
    geometry: Geometry,
    weights: Weights,
    normed: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> torch.Tensor:
    """Attention up to the input of o: [batch, T, n_embd] in and out."""
    q, k, v = (
        _multiply(part, weights, normed, observe).unflatten(-1, (geometry.n_head, -1))
        for part in "qkv"
    )
    return attend(q, k, v, *tables).flatten(-2)


def mlp_activations(
    weights: Weights, normed: torch.Tensor, observe: Observer | None = None
) -> torch.Tensor:
    """The MLP up to the input of fc_out: [batch, T, n_embd] to [batch, T, n_inner]."""
    return gelu(_multiply("fc_in", weights, normed, observe) + weights["fc_in_bias"])


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor
) -> torch.Tensor:
    """Causal attention of whole sequences: [batch, T, heads, head_dim] in and out.

    q and k have interleaved rotary pairs; `sin` and `cos` are those of T positions.
    """
    q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    context = F.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], is_causal=True
    )
    return context.transpose(1, 2)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Layer normalization over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form, which configurations call gelu_new."""
    return F.gelu(x, approximate="tanh")


def _multiply(
    part: str, weights: Weights, inputs: torch.Tensor, observe: Observer | None
) -> torch.Tensor:
    outputs = inputs @ weights[part].t()
    if observe is not None:
        observe(part, inputs, outputs)
    return outputs


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """GPT-J's rotary position on interleaved pairs: x * cos + rotate_every_two(x) * sin."""
    width = sin.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    rotated = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    return torch.cat((turned * cos[:, None] + rotated * sin[:, None], rest), dim=-1)
