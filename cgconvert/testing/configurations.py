"""config.json as each model of the family was published with it, for a geometry of any size."""

from __future__ import annotations

from typing import Any

import torch

from cgconvert.model.decoder import Geometry

__all__ = ["codegen2_config", "codegen_config", "gptj_config", "moss_config"]


def codegen_config(g: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as the release has it, with its wrong bos 1 and eos 2."""
    return {
        "activation_function": "gelu_new",
        "architectures": ["CodeGenForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "layer_norm_epsilon": g.layer_norm_epsilon,
        "model_type": "codegen",
        "n_ctx": g.n_positions,
        "n_embd": g.n_embd,
        "n_head": g.n_head,
        "n_inner": None if g.n_inner == 4 * g.n_embd else g.n_inner,
        "n_layer": g.n_layer,
        "n_positions": g.n_positions,
        "rotary_dim": g.rotary_dim,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": g.vocab_size,
    }


def gptj_config(g: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as EleutherAI/gpt-j-6b has it."""
    return codegen_config(g, dtype) | {
        "architectures": ["GPTJForCausalLM"],
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "model_type": "gptj",
        "rotary": True,
        "scale_attn_weights": True,
        "tokenizer_class": "GPT2Tokenizer",
    }


def codegen2_config(g: Geometry, dtype: torch.dtype, name: str = "codegen2-1B") -> dict[str, Any]:
    """config.json as Salesforce/codegen2-1B has it: with code of its own.

    Those of 8 groups have an entry head_dim.
    """
    return codegen_config(g, dtype) | {
        "_name_or_path": f"checkpoints/{name}/",
        "auto_map": {
            "AutoConfig": "configuration_codegen.CodeGenConfig",
            "AutoModel": "modeling_codegen.CodeGenModel",
            "AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM",
        },
        **({"head_dim": g.head_dim} if g.mp_num == 8 else {}),
        "tokenizer_class": "GPT2Tokenizer",
    }


def moss_config(g: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """Return config.json as fnlp/moss-moon-003-base has it, with the sizes of the geometry `g`."""
    return codegen_config(g, dtype) | {
        "architectures": ["MossForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_moss.MossConfig",
            "AutoModel": "modeling_moss.MossModel",
            "AutoModelForCausalLM": "modeling_moss.MossForCausalLM",
        },
        "bos_token_id": 106028,
        "eos_token_id": 106068,
        "groupsize": 128,
        "model_type": "moss",
        "wbits": 32,
    }
