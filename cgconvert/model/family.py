"""The published checkpoints: their names, their sizes, and the number of groups in qkv_proj.

Source: the CodeGen paper (arXiv 2203.13474) and the configurations on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgconvert.model.decoder import Geometry

__all__ = [
    "MP_NUM",
    "NAMES",
    "ORGANISATION",
    "SIZES",
    "VARIANTS",
    "geometry",
    "groups",
    "hub_id",
    "is_published_checkpoint",
]

ORGANISATION = "Salesforce"
"""The checkpoints' organisation on the Hub."""

VARIANTS = ("nl", "multi", "mono")
"""Names of the training data: natural language, several programming languages, Python."""

MP_NUM = {"codegen": 4, "moss": 4}
"""Number of groups in a packed qkv_proj, by Hugging Face model_type.

There is one group for each logical TPU-v4 core that the family was trained on. MOSS was initialised
from CodeGen-16B (OpenMOSS/MOSS, models/modeling_moss.py: MossAttention.forward). The weights do not
show the number, so for any other model type the user has to give `mp_num`.
"""

TPU_CORES = {3: 8, 4: 4}
"""Number of groups in a packed qkv_proj, by `tpu_version` of a Jaxformer training configuration
(jaxformer/run/trainer.py)."""

_COMMON = {"n_positions": 2048, "vocab_size": 51200, "mp_num": MP_NUM["codegen"]}

SIZES: dict[str, Geometry] = {
    "350M": Geometry(n_layer=20, n_embd=1024, n_head=16, rotary_dim=32, **_COMMON),
    "2B": Geometry(n_layer=32, n_embd=2560, n_head=32, rotary_dim=64, **_COMMON),
    "6B": Geometry(n_layer=33, n_embd=4096, n_head=16, rotary_dim=64, **_COMMON),
    "16B": Geometry(n_layer=34, n_embd=6144, n_head=24, rotary_dim=64, **_COMMON),
}

NAMES = tuple(f"codegen-{size}-{variant}" for size in SIZES for variant in VARIANTS)
"""The names of the twelve published checkpoints."""


def groups(config: Mapping[str, Any]) -> int | None:
    """The number of groups in qkv_proj that a config.json shows, or None if it does not.

    A configuration with modelling code of its own (`auto_map`) may mean any number. All of MOSS's
    have it.
    """
    model_type = config.get("model_type")
    has_own_code = "auto_map" in config and model_type != "moss"
    return None if has_own_code or not isinstance(model_type, str) else MP_NUM.get(model_type)


def is_published_checkpoint(name: str) -> bool:
    """Whether this is the name of one of the twelve published CodeGen checkpoints."""
    return name in NAMES


def geometry(name: str) -> Geometry:
    """The geometry of a published checkpoint, by its name (a name with one of SIZES in it)."""
    return SIZES[name.split("-")[1]]


def hub_id(name: str) -> str:
    """The Hub id, organisation/name, of a published checkpoint."""
    return f"{ORGANISATION}/{name}"
