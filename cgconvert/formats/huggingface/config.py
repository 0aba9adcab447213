"""config.json for transformers, as CodeGen or as Phi: written from a Geometry, read into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.model.decoder import Geometry
from cgconvert.model.family import MP_NUM

__all__ = ["codegen_config", "from_codegen", "from_phi", "geometry", "integer", "phi_config"]

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
    values = (config.get(ours, config.get(phi)) for ours, phi, _ in _TRAINING)
    return tuple(
        value if isinstance(value, float) and 0 <= value < 1 else default
        for value, (_, _, default) in zip(values, _TRAINING, strict=True)
    )


def from_codegen(config: Mapping[str, Any], where: Path, mp_num: int | None) -> Geometry:
    """Geometry of a CodeGenForCausalLM configuration.

    `mp_num` overrides the table; without it a model_type that the table does not know, and
    configurations that bring code of their own (CodeGen2's), are refused: the number of groups
    cannot be told from the weights.
    """
    kind = config.get("model_type")
    remote = "auto_map" in config
    if mp_num is None:
        if remote or not isinstance(kind, str) or kind not in MP_NUM:
            reason = "brings its own modelling code" if remote else f"has model_type {kind!r}"
            raise InputError(
                f"{where}: {reason}, so the number of groups in qkv_proj is not known; "
                "give it with `mp_num` (CodeGen 4, CodeGen2 1B and 3.7B 8)"
            )
        mp_num = MP_NUM[kind]
    _expect(config, where, "activation_function", "gelu_new")
    _expect(config, where, "tie_word_embeddings", False)
    return geometry(
        where,
        n_layer=integer(config, where, "n_layer", "num_hidden_layers"),
        n_embd=integer(config, where, "n_embd", "hidden_size"),
        n_head=integer(config, where, "n_head", "num_attention_heads"),
        rotary_dim=integer(config, where, "rotary_dim"),
        n_positions=integer(config, where, "n_positions", "n_ctx", "max_position_embeddings"),
        vocab_size=integer(config, where, "vocab_size"),
        n_inner=integer(config, where, "n_inner", default=0),
        layer_norm_epsilon=_number(config, where, "layer_norm_epsilon", default=1e-5),
        mp_num=mp_num,
    )


def from_phi(config: Mapping[str, Any], where: Path) -> Geometry:
    """Geometry of a PhiForCausalLM configuration that `to-hf --layout phi` wrote."""
    _expect(config, where, "hidden_act", "gelu_new")
    _expect(config, where, "tie_word_embeddings", False)
    _expect(config, where, "qk_layernorm", False)
    heads = integer(config, where, "num_attention_heads")
    if integer(config, where, "num_key_value_heads", default=heads) != heads:
        raise InputError(f"{where}: num_key_value_heads differs; CodeGen has one for each head")
    width = integer(config, where, "hidden_size")
    rope = config.get("rope_parameters")
    rope = {**config, **(rope if isinstance(rope, dict) else {})}
    fraction = _number(rope, where, "partial_rotary_factor")
    return geometry(
        where,
        n_layer=integer(config, where, "num_hidden_layers"),
        n_embd=width,
        n_head=heads,
        rotary_dim=round(fraction * (width // max(heads, 1))),
        n_positions=integer(config, where, "max_position_embeddings"),
        vocab_size=integer(config, where, "vocab_size"),
        n_inner=integer(config, where, "intermediate_size"),
        layer_norm_epsilon=_number(config, where, "layer_norm_eps"),
        rotary_base=_number(rope, where, "rope_theta", default=10000.0),
        mp_num=0,
    )


def geometry(where: Path, **sizes: Any) -> Geometry:
    """A Geometry whose faults are those of the file `where`. Raises InputError."""
    try:
        return Geometry(**sizes)
    except InputError as error:  # it does not know the file
        raise InputError(f"{where}: {str(error).removeprefix('config: ')}") from None


def integer(config: Mapping[str, Any], where: Path, *keys: str, default: int | None = None) -> int:
    """The positive whole number under the first of `keys` that is there. Raises InputError."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise InputError(f"{where}: {key} is {value!r}, not a positive whole number")
        return value
    if default is None:
        raise InputError(f"{where}: {keys[0]} is missing")
    return default


def _number(
    config: Mapping[str, Any], where: Path, key: str, *, default: float | None = None
) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InputError(f"{where}: {key} is {value!r}, not a positive number")
    return float(value)


def _expect(config: Mapping[str, Any], where: Path, key: str, expected: Any) -> None:
    value = config.get(key, expected)
    if value != expected:
        raise InputError(f"{where}: {key} is {value!r}; CodeGen has {expected!r}")
