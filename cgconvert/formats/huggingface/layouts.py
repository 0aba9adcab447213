"""The layouts of a Hugging Face folder: the same model for three classes of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cgconvert.formats.huggingface.config import codegen_config, gptj_config, phi_config
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI, TensorNames

__all__ = ["LAYOUTS", "ROTARY_BASE", "Layout"]

GROUPS = 4
"""The mp_num that transformers hard-codes (modeling_codegen.py: CodeGenAttention.forward)."""

ROTARY_BASE = 10000.0
"""The rotary base that transformers hard-codes for CodeGen and GPT-J
(create_sinusoidal_positions)."""


@dataclass(frozen=True)
class Layout:
    """How a folder stores the model.

    Attributes:
        names: The names of the tensors.
        config: Creates config.json from the geometry and the source's configuration.
        folder: Name of the default output folder.
        card: What the model card says about the weights.
        own_model: The title of the model that is published in this layout, see `family.Model`.
        own_card: What the card of such a model says instead.
        groups: Number of groups in qkv_proj; 0 if q, k and v are stored apart.
        has_rotary_base: Whether config.json contains the rotary base. If not, it is `ROTARY_BASE`.
    """

    names: TensorNames
    config: Callable[[Geometry, Mapping[str, Any]], dict[str, Any]]
    folder: str
    card: str
    own_model: str = ""
    own_card: str = ""
    groups: int = 0
    has_rotary_base: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "codegen": Layout(
        CODEGEN,
        codegen_config,
        "hf",
        "The weights are laid out for `CodeGenForCausalLM`: `qkv_proj` is packed in 4 groups of q, "
        "v, k, and rotary pairs are interleaved. The logits are those of the original.",
        "CodeGen",
        "The weights are CodeGen's own, for `CodeGenForCausalLM`: `qkv_proj` is packed in 4 groups "
        "of q, v, k, and rotary pairs are interleaved.",
        groups=GROUPS,
    ),
    "gptj": Layout(
        GPTJ,
        gptj_config,
        "hf-gptj",
        "The weights are laid out for `GPTJForCausalLM`, whose mathematics is CodeGen's: q, k and "
        "v are split, and rotary pairs are interleaved. The logits are those of the original; "
        "engines that serve GPT-J can serve it.",
        "GPT-J",
        "The weights are GPT-J's own, for `GPTJForCausalLM`: q, k and v are split, and rotary "
        "pairs are interleaved.",
    ),
    "phi": Layout(
        PHI,
        phi_config,
        "hf-phi",
        "The weights are laid out for `PhiForCausalLM`, whose mathematics is CodeGen's: q, k and v "
        "are split, each head's rotary rows are in half-split order, and the biases that Phi has "
        "and CodeGen has not are zero. The logits are those of the original; engines that serve "
        "Phi can serve it.",
        has_rotary_base=True,
    ),
}
"""The layouts by the value of the option `layout`."""
