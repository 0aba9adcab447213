"""Folders and files that are no CodeGen: small models of other architectures, and no models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import transformers
from onnx import TensorProto, helper

__all__ = ["MODELS", "write_gguf", "write_graph", "write_model"]

_LLAMA = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
_GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
_BERT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip

MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _LLAMA),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", _LLAMA | {"num_local_experts": 2}),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _LLAMA | {"head_dim": 8}),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", _LLAMA | {"head_dim": 8}),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", _LLAMA | {"pad_token_id": 0}),
    "StarCoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _LLAMA),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "StarCoder": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _GPT2),
    "GPT-Neo": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {"vocab_size": 32, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
         "attention_types": [[["global", "local"], 1]]},
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _LLAMA),
    "BLOOM": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    ),
    "OPT": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 32, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    ),
    "Falcon": (
        "FalconForCausalLM", "FalconConfig",
        {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "MPT": (
        "MptForCausalLM", "MptConfig",
        {"vocab_size": 32, "d_model": 16, "n_layers": 1, "n_heads": 2},
    ),
    "T5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    ),
    "BERT": ("BertForMaskedLM", "BertConfig", _BERT),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", _BERT),
}  # fmt: skip
"""Name of a model in errors: its class and configuration in transformers, and small sizes."""


def write_model(name: str, folder: Path, **config: Any) -> Path:
    """Save a small model of `MODELS` with random weights as transformers does."""
    model_class, config_class, sizes = MODELS[name]
    settings = getattr(transformers, config_class)(**sizes)
    model = getattr(transformers, model_class)(settings)
    model.save_pretrained(folder)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def write_gguf(path: Path, architecture: str) -> Path:
    """Write a GGUF file of another architecture, with one tensor."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("another model")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((32, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_graph(path: Path) -> Path:
    """Write an ONNX graph that is no decoder, as a classifier of images is."""
    images = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])
    node = helper.make_node("Relu", ["pixel_values"], ["scores"])
    graph = helper.make_graph([node], "classifier", [images], [scores])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph), path)
    return path


Writer = Callable[[Path], Path]
