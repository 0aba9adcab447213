"""The published models: sizes, names and how many groups their qkv_proj is packed in.

Source: the CodeGen paper (arXiv 2203.13474) and the configurations on the Hub.
"""

from __future__ import annotations

from cgconvert.model.decoder import Geometry

__all__ = [
    "MP_NUM",
    "NAMES",
    "ORGANISATION",
    "SIZES",
    "VARIANTS",
    "geometry",
    "hub_id",
    "is_member",
]

ORGANISATION = "Salesforce"
VARIANTS = ("nl", "multi", "mono")

MP_NUM = {"codegen": 4}
"""Groups in qkv_proj by Hugging Face model_type: one for each logical TPU-v4
core the family was trained on.

The weights do not show the number, so a model type that is not listed needs `mp_num`.
"""

TPU_CORES = {3: 8, 4: 4}
"""Groups in qkv_proj by `tpu_version` of a Jaxformer training configuration
(jaxformer/run/trainer.py)."""

_COMMON = {"n_positions": 2048, "vocab_size": 51200, "mp_num": MP_NUM["codegen"]}

SIZES: dict[str, Geometry] = {
    "350M": Geometry(n_layer=20, n_embd=1024, n_head=16, rotary_dim=32, **_COMMON),
    "2B": Geometry(n_layer=32, n_embd=2560, n_head=32, rotary_dim=64, **_COMMON),
    "6B": Geometry(n_layer=33, n_embd=4096, n_head=16, rotary_dim=64, **_COMMON),
    "16B": Geometry(n_layer=34, n_embd=6144, n_head=24, rotary_dim=64, **_COMMON),
}

NAMES = tuple(f"codegen-{size}-{variant}" for size in SIZES for variant in VARIANTS)


def is_member(name: str) -> bool:
    """Whether this is one of the twelve published names."""
    return name in NAMES


def geometry(name: str) -> Geometry:
    """The published geometry of a member; a checkpoint's own is read from its configuration."""
    return SIZES[name.split("-")[1]]


def hub_id(name: str) -> str:
    """The repository of a member on the Hub."""
    return f"{ORGANISATION}/{name}"
