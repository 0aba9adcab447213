"""CodeGen's mathematics on whole sequences, operation by operation, in its own rotary form.

One layer is x + attn(ln(x)) + mlp(ln(x)). transformers, modeling_codegen.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses

from cgconvert.model.decoder import Geometry
from cgconvert.model.mkl import warm_up_mkl

__all__ = ["attend", "gelu", "norm", "rotary"]


def rotary(
    geometry: Geometry, length: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """sin and cos of the angles at positions 0 to `length`, [length, rotary_dim], each angle twice.

    The angles are float32 products, as transformers' create_sinusoidal_positions has them.
    """
    warm_up_mkl()
    pair = torch.arange(0, geometry.rotary_dim, 2) / geometry.rotary_dim
    inverse = 1.0 / (geometry.rotary_base**pair)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat_interleave(2, dim=1)
    return angles.sin().to(device), angles.cos().to(device)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor
) -> torch.Tensor:
    """Causal attention of whole sequences: [batch, T, heads, head_dim] in and out.

    Rows of q and k have interleaved rotary pairs; `sin` and `cos` are those of T positions.
    """
    q, k = _turn(q, sin, cos), _turn(k, sin, cos)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    context = F.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], is_causal=True
    )
    return context.transpose(1, 2)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh form: gelu_new in configurations."""
    return F.gelu(x, approximate="tanh")


def _turn(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """GPT-J's rotary position on interleaved pairs: x * cos + rotate_every_two(x) * sin."""
    width = sin.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    rotated = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    return torch.cat((turned * cos[:, None] + rotated * sin[:, None], rest), dim=-1)
