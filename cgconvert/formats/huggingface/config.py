"""config.json for transformers, by model type: created from a Geometry or read into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.model import family
from cgconvert.model.architectures import explain_config
from cgconvert.model.decoder import Checkpoint, Geometry

__all__ = [
    "codegen_config",
    "from_codegen",
    "from_gptj",
    "from_phi",
    "generation_config",
    "geometry",
    "gptj_config",
    "integer",
    "phi_config",
    "token_ids",
]

TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""transformers' names of one function (activations.py: NewGELUActivation, FastGELUActivation,
GELUTanh)."""

# Training settings that a source may contain: CodeGen's name, Phi's name, default value.
_TRAINING = (
    ("resid_pdrop", "resid_pdrop", 0.0),
    ("embd_pdrop", "embd_pdrop", 0.0),
    ("attn_pdrop", "attention_dropout", 0.0),
    ("initializer_range", "initializer_range", 0.02),
)


def codegen_config(g: Geometry, source: Mapping[str, Any]) -> dict[str, Any]:
    """Create the fields of transformers' CodeGenConfig on which the model depends.

    `source` is the source's configuration, from which only training settings are kept.
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


def gptj_config(g: Geometry, source: Mapping[str, Any]) -> dict[str, Any]:
    """Create the fields of transformers' GPTJConfig, which has CodeGen's names but for n_ctx.

    `source` is as in `codegen_config`.
    """
    config = codegen_config(g, source) | {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
    }
    del config["n_ctx"]
    return config


def phi_config(g: Geometry, source: Mapping[str, Any]) -> dict[str, Any]:
    """Create the fields of transformers' PhiConfig on which the model depends.

    The rotary settings are written twice, because transformers 5 reads rope_parameters, and
    transformers 4 and mlx-lm the top level. Without the fraction mlx-lm silently rotates 0.4 of
    each head. `source` is as in `codegen_config`.
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


def token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """Create the ids of config.json. The eos id is a list if generation stops at several."""
    stopping = checkpoint.eos_token_ids
    return {
        "bos_token_id": checkpoint.tokenizer.bos_token_id,
        "eos_token_id": stopping[0] if len(stopping) == 1 else list(stopping),
    }


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Create generation_config.json: ids, and the source's settings of sampling."""
    pad = {"pad_token_id": checkpoint.tokenizer.pad_token_id}
    return token_ids(checkpoint) | pad | dict(checkpoint.generation.sampling)


def _rotary_fraction(g: Geometry) -> float:
    """Return rotary_dim / head_dim, raised until int(head_dim * fraction) gives rotary_dim."""
    fraction = g.rotary_dim / g.head_dim
    while int(g.head_dim * fraction) < g.rotary_dim:
        fraction = math.nextafter(fraction, 2.0)
    return fraction


def _training(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the training settings in the order of `_TRAINING`; the source may use either name."""
    values = (config.get(codegen, config.get(phi)) for codegen, phi, _ in _TRAINING)
    return tuple(
        value if isinstance(value, float) and 0 <= value < 1 else default
        for value, (_, _, default) in zip(values, _TRAINING, strict=True)
    )


def from_codegen(config: Mapping[str, Any], config_path: Path, mp_num: int | None) -> Geometry:
    """Read the geometry in the configuration of a CodeGen, a CodeGen2 or a MOSS.

    `mp_num` is the number of groups in qkv_proj, which cannot be seen in the weights. If it is
    None, `family.groups` tells it. Raises InputError if it is not known or a value is wrong.
    """
    if explanation := explain_config(config):
        raise InputError(f"{config_path}: {explanation}")
    if mp_num is None:
        mp_num = family.groups(config)
    if mp_num is None:
        types = ", ".join(sorted({*family.MP_NUM, "gptj", "phi"}))
        model_type = config.get("model_type")
        type_ = f"model_type {str(model_type)[:80]!r}" if model_type else "no model_type"
        type_ += f", which is none of {types}" if model_type else f", such as {types}"
        reason = (
            "brings its own modelling code, so the number of groups in qkv_proj is not known; "
            "give it"
            if isinstance(model_type, str) and model_type in family.MP_NUM
            else f"has {type_}; if it is a CodeGen all the same, give its number of groups in "
            "qkv_proj"
        )
        raise InputError(
            f"{config_path}: {reason} with `mp_num` (CodeGen 4, CodeGen2 1B and 3.7B 8), or "
            '`mp_num="auto"` to measure it'
        )
    return _decoder_geometry(
        config, config_path, mp_num, rotary_dim=integer(config, config_path, "rotary_dim")
    )


def from_gptj(config: Mapping[str, Any], config_path: Path, mp_num: int | None = None) -> Geometry:
    """Read the geometry in a GPTJForCausalLM configuration, which has CodeGen's names.

    A rotary_dim of null means the whole head (transformers before 4.25, modeling_gptj.py:
    GPTJAttention.forward). Raises InputError if `mp_num` is given or a value is wrong.
    """
    _expect_no_groups("GPT-J", config_path, mp_num)
    whole_head = None
    if config.get("rotary_dim", 0) is None:
        heads = integer(config, config_path, "n_head", "num_attention_heads")
        whole_head = integer(config, config_path, "n_embd", "hidden_size") // heads
    return _decoder_geometry(
        config,
        config_path,
        mp_num=0,
        rotary_dim=integer(config, config_path, "rotary_dim", default=whole_head),
    )


def _expect_no_groups(model: str, config_path: Path, mp_num: int | None) -> None:
    """Raise InputError if the user gave a number of groups for a model that has none."""
    if mp_num is not None:
        raise InputError(
            f"{config_path}: {model} stores q, k and v apart and has no groups; leave out `mp_num`"
        )


def _decoder_geometry(
    config: Mapping[str, Any], config_path: Path, mp_num: int, *, rotary_dim: int
) -> Geometry:
    """Read what the configurations of GPT-J, CodeGen and MOSS say by the same names."""
    if config.get("activation_function") not in TANH_GELU:
        _expect(config, config_path, "activation_function", "gelu_new")
    return geometry(
        config_path,
        n_layer=integer(config, config_path, "n_layer", "num_hidden_layers"),
        n_embd=integer(config, config_path, "n_embd", "hidden_size"),
        n_head=integer(config, config_path, "n_head", "num_attention_heads"),
        rotary_dim=rotary_dim,
        n_positions=integer(config, config_path, "n_positions", "n_ctx", "max_position_embeddings"),
        vocab_size=integer(config, config_path, "vocab_size"),
        n_inner=integer(config, config_path, "n_inner", default=0),
        layer_norm_epsilon=_positive_number(
            config, config_path, "layer_norm_epsilon", default=1e-5
        ),
        mp_num=mp_num,
    )


def from_phi(config: Mapping[str, Any], config_path: Path, mp_num: int | None = None) -> Geometry:
    """Read the geometry in a PhiForCausalLM configuration that `to-hf --layout phi` wrote.

    Raises InputError if `mp_num` is given or a value is wrong.
    """
    _expect_no_groups("Phi", config_path, mp_num)
    _expect(config, config_path, "hidden_act", "gelu_new")
    _expect(config, config_path, "qk_layernorm", False)
    heads = integer(config, config_path, "num_attention_heads")
    if integer(config, config_path, "num_key_value_heads", default=heads) != heads:
        raise InputError(
            f"{config_path}: num_key_value_heads differs; CodeGen has one for each head"
        )
    width = integer(config, config_path, "hidden_size")
    rope_parameters = config.get("rope_parameters")
    rope = {**config, **(rope_parameters if isinstance(rope_parameters, dict) else {})}
    fraction = _positive_number(rope, config_path, "partial_rotary_factor")
    return geometry(
        config_path,
        n_layer=integer(config, config_path, "num_hidden_layers"),
        n_embd=width,
        n_head=heads,
        rotary_dim=round(fraction * (width // max(heads, 1))),
        n_positions=integer(config, config_path, "max_position_embeddings"),
        vocab_size=integer(config, config_path, "vocab_size"),
        n_inner=integer(config, config_path, "intermediate_size"),
        layer_norm_epsilon=_positive_number(config, config_path, "layer_norm_eps"),
        rotary_base=_positive_number(rope, config_path, "rope_theta", default=10000.0),
        mp_num=0,
    )


def geometry(config_path: Path, **sizes: Any) -> Geometry:
    """Create a Geometry. Raises InputError that names the file if the sizes do not fit together."""
    try:
        return Geometry(**sizes)
    except InputError as error:  # a Geometry does not know the file
        raise InputError(f"{config_path}: {str(error).removeprefix('config: ')}") from None


def integer(
    config: Mapping[str, Any], config_path: Path, *keys: str, default: int | None = None
) -> int:
    """Return the positive integer under the first of `keys` that `config` has, else `default`.

    Raises InputError if the value is anything else, or if there is neither a value nor a default.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise InputError(f"{config_path}: {key} is {value!r}, not a positive whole number")
        return value
    if default is None:
        raise InputError(f"{config_path}: {keys[0]} is missing")
    return default


def _positive_number(
    config: Mapping[str, Any], config_path: Path, key: str, *, default: float | None = None
) -> float:
    """Return the positive number under `key`, else `default`. Raises InputError."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InputError(f"{config_path}: {key} is {value!r}, not a positive number")
    return float(value)


def _expect(config: Mapping[str, Any], config_path: Path, key: str, expected: Any) -> None:
    """Raise InputError if an entry is present and differs from the value of all the family."""
    value = config.get(key, expected)
    if value != expected:
        raise InputError(f"{config_path}: {key} is {value!r}; CodeGen and GPT-J have {expected!r}")
