"""From a configuration file to a Geometry, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Geometry
from cgconvert.model.family import MP_NUM, TPU_CORES

__all__ = [
    "from_codegen",
    "from_jaxformer",
    "from_phi",
    "geometry",
    "integer",
    "is_jaxformer",
    "read_json",
]


def is_jaxformer(config: Mapping[str, Any]) -> bool:
    return "model_layers" in config


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
            what = "brings its own modelling code" if remote else f"has model_type {kind!r}"
            raise InputError(
                f"{where}: {what}, so the number of groups in qkv_proj is not known; "
                "give it with --mp-num (CodeGen 4, CodeGen2 1B and 3.7B 8)"
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


def from_jaxformer(config: Mapping[str, Any], where: Path, mp_num: int | None) -> Geometry:
    """Geometry of a Jaxformer training configuration (config/*.json of salesforce/jaxformer)."""
    if mp_num is None:
        version = config.get("tpu_version")
        if not isinstance(version, int) or version not in TPU_CORES:
            raise InputError(
                f"{where}: tpu_version is {version!r}, which does not tell the number of groups "
                "in qkv_proj; give it with --mp-num"
            )
        mp_num = TPU_CORES[version]
    return geometry(
        where,
        n_layer=integer(config, where, "model_layers"),
        n_embd=integer(config, where, "model_dim"),
        n_head=integer(config, where, "model_heads"),
        rotary_dim=integer(config, where, "model_pe_rotary_dims"),
        n_positions=integer(config, where, "model_seq_len"),
        vocab_size=integer(config, where, "model_vocab_size"),
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


def _expect(config: Mapping[str, Any], where: Path, key: str, wanted: Any) -> None:
    value = config.get(key, wanted)
    if value != wanted:
        raise InputError(f"{where}: {key} is {value!r}; CodeGen has {wanted!r}")
