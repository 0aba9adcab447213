"""config.json for transformers, as CodeGen and as Phi: derived from the geometry, not copied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cgconvert.model.decoder import Geometry

__all__ = ["codegen_config", "phi_config"]

# Training settings a source may carry, by CodeGen's name and Phi's, with CodeGen's own values.
_TRAINING = (
    ("resid_pdrop", "resid_pdrop", 0.0),
    ("embd_pdrop", "embd_pdrop", 0.0),
    ("attn_pdrop", "attention_dropout", 0.0),
    ("initializer_range", "initializer_range", 0.02),
)


def codegen_config(g: Geometry, source: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of transformers' CodeGenConfig that the model depends on.

    `source` is the configuration it came with; of that only training settings are kept.
    """
    return {
        "architectures": ["CodeGenForCausalLM"],
        "model_type": "codegen",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": g.layer_norm_epsilon,
        "n_ctx": g.n_positions,
        "n_embd": g.n_embd,
        "n_head": g.n_head,
        "n_inner": g.n_inner,
        "n_layer": g.n_layer,
        "n_positions": g.n_positions,
        "rotary_dim": g.rotary_dim,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": g.vocab_size,
    } | {name: value for (name, _, _), value in zip(_TRAINING, _training(source), strict=True)}


def phi_config(g: Geometry, source: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of transformers' PhiConfig that the model depends on.

    Rotary settings stand twice: transformers 5 reads rope_parameters, transformers 4 and mlx-lm
    the top level, and mlx-lm takes 0.4 of the head in silence where the fraction is not there.
    """
    fraction = _rotary_fraction(g)
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "hidden_size": g.n_embd,
        "intermediate_size": g.n_inner,
        "layer_norm_eps": g.layer_norm_epsilon,
        "max_position_embeddings": g.n_positions,
        "num_attention_heads": g.n_head,
        "num_hidden_layers": g.n_layer,
        "num_key_value_heads": g.n_head,
        "partial_rotary_factor": fraction,
        "qk_layernorm": False,
        "rope_parameters": {
            "partial_rotary_factor": fraction,
            "rope_theta": g.rotary_base,
            "rope_type": "default",
        },
        "rope_theta": g.rotary_base,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": g.vocab_size,
    } | {name: value for (_, name, _), value in zip(_TRAINING, _training(source), strict=True)}


def _rotary_fraction(g: Geometry) -> float:
    """rotary_dim / head_dim, such that readers' int(head_dim * fraction) gives rotary_dim."""
    fraction = g.rotary_dim / g.head_dim
    while int(g.head_dim * fraction) < g.rotary_dim:
        fraction = math.nextafter(fraction, 2.0)
    return fraction


def _training(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The source's training settings, in the order of `_TRAINING`, whichever name they have."""
    found = (config.get(ours, config.get(phi)) for ours, phi, _ in _TRAINING)
    return tuple(
        value if isinstance(value, float) and 0 <= value < 1 else default
        for value, (_, _, default) in zip(found, _TRAINING, strict=True)
    )
