"""The computation of a CodeGen layer on whole sequences, with interleaved rotary pairs.

A layer is x + attention(norm(x)) + mlp(norm(x)), as in transformers' modeling_codegen.py.
Calibration uses `layer` for everything: statistics of inputs, sensitivities and quantized layers
come from the same operations. The verifier's reference (verification/reference.py) has its own
code for a layer on purpose, because it judges what was made with this code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import read_float32, warm_up_mkl

__all__ = [
    "Observer",
    "RotaryTables",
    "Weights",
    "attend",
    "attend_with_cache",
    "attention_context",
    "gelu",
    "layer",
    "layer_weights",
    "mlp_activations",
    "norm",
    "norm_layer_input",
    "rotary",
]

Weights: TypeAlias = "Mapping[str, torch.Tensor]"
"""The tensors of a layer, by the names of Layer's fields, in float32 on one device."""

RotaryTables: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""sin and cos of T positions, float32 [T, rotary_dim] each."""

Observer: TypeAlias = "Callable[[str, torch.Tensor, torch.Tensor], None]"
"""A function called for each matrix product of a layer, with the matrix's name (a field of Layer),
the inputs [batch, T, columns of the matrix] and the outputs [batch, T, rows of the matrix]."""


def rotary(geometry: Geometry, length: int, device: torch.device | None = None) -> RotaryTables:
    """Return sin and cos of the rotary angles at the first `length` positions.

    Both are float32 [length, rotary_dim]; the two elements of an interleaved pair have the same
    angle. The angles are float32 products, as in transformers' create_sinusoidal_positions.
    """
    warm_up_mkl()
    exponents = torch.arange(0, geometry.rotary_dim, 2) / geometry.rotary_dim
    frequencies = 1.0 / (geometry.rotary_base**exponents)
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat_interleave(2, dim=1)
    return angles.sin().to(device), angles.cos().to(device)


def layer_weights(decoder: Decoder, number: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Read all tensors of layer `number` as float32 on `device`, by the names of Layer's fields."""
    fields = vars(decoder.layers[number])
    return {part: read_float32(tensor, device) for part, tensor in fields.items()}


def layer(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what one layer adds to the hidden states.

    Args:
        geometry: The sizes of the model.
        weights: The layer's tensors.
        x: Hidden states before the layer, [batch, T, n_embd].
        tables: sin and cos of T positions, from `rotary`.
        observe: Called for the matrix products q, k, v, fc_in, o and fc_out, in this order.

    Returns:
        The output of attention and the output of the MLP without `fc_out_bias`, [batch, T, n_embd]
        each. The caller adds them and the bias to `x`, because the order of the three sums decides
        the last digit.
    """
    normed = norm_layer_input(geometry, weights, x)
    context = attention_context(geometry, weights, normed, tables, observe)
    activations = mlp_activations(weights, normed, observe)
    attention = _multiply("o", weights, context, observe)
    return attention, _multiply("fc_out", weights, activations, observe)


def norm_layer_input(geometry: Geometry, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Normalize the hidden states for the input of q, k, v and fc_in; [batch, T, n_embd] both."""
    return norm(x, weights["ln_weight"], weights["ln_bias"], geometry.layer_norm_epsilon)


def attention_context(
    geometry: Geometry,
    weights: Weights,
    normed: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> torch.Tensor:
    """Compute attention from the normalized hidden states to the input of o, [batch, T, n_embd]."""
    q, k, v = (
        _multiply(part, weights, normed, observe).unflatten(-1, (geometry.n_head, -1))
        for part in "qkv"
    )
    return attend(q, k, v, *tables).flatten(-2)


def mlp_activations(
    weights: Weights, normed: torch.Tensor, observe: Observer | None = None
) -> torch.Tensor:
    """Compute the MLP from the normalized hidden states to fc_out's input, [batch, T, n_inner]."""
    return gelu(_multiply("fc_in", weights, normed, observe) + weights["fc_in_bias"])


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor
) -> torch.Tensor:
    """Compute causal attention of whole sequences, [batch, T, n_head, head_dim].

    q, k and v have the same shape; q and k have interleaved rotary pairs. `sin` and `cos` are the
    tables of T positions from `rotary`.
    """
    q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    context = torch.nn.functional.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], is_causal=True
    )
    return context.transpose(1, 2)


def attend_with_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sin: torch.Tensor,
    cos: torch.Tensor,
    past: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Compute causal attention of new positions of one sequence, [T, n_head, head_dim].

    Args:
        q: The queries, with interleaved rotary pairs, as the keys.
        k: The keys of the new positions.
        v: Their values.
        sin: The table of the new positions, from `rotary`.
        cos: Likewise.
        past: Rotated keys and values of all positions before, or None if there are none.

    Returns:
        The context, and the rotated keys and values of all positions.
    """
    q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    if past is not None:
        k, v = torch.cat((past[0], k)), torch.cat((past[1], v))
    length, total = len(q), len(k)
    visible = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)
    heads_first = [x.transpose(0, 1) for x in (q, k, v)]
    context = torch.nn.functional.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], attn_mask=visible
    )
    return context.transpose(0, 1), (k, v)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Compute layer normalization over the last dimension."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Compute the tanh approximation of GELU, which configurations call gelu_new."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def _multiply(
    part: str, weights: Weights, inputs: torch.Tensor, observe: Observer | None
) -> torch.Tensor:
    """Multiply inputs [batch, T, columns] by the matrix `part` of the layer, and call `observe`."""
    outputs = inputs @ weights[part].t()
    if observe is not None:
        observe(part, inputs, outputs)
    return outputs


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding to x [batch, T, n_head, head_dim], with interleaved pairs.

    As in GPT-J, the first rotary_dim elements become x * cos + rotate_every_two(x) * sin; the
    elements behind them stay.
    """
    rotary_dim = sin.shape[-1]
    rotary_part, unrotated = x[..., :rotary_dim], x[..., rotary_dim:]
    every_two = torch.stack((-rotary_part[..., 1::2], rotary_part[..., ::2]), dim=-1).flatten(-2)
    rotated = rotary_part * cos[:, None] + every_two * sin[:, None]
    return torch.cat((rotated, unrotated), dim=-1)
