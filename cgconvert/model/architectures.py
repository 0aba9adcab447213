"""Models of other architectures: their names, and the programs that convert them.

A model is known by `model_type` in its config.json (transformers, models/auto/
configuration_auto.py), by `general.architecture` of a GGUF file (llama.cpp, gguf-py/gguf/
constants.py: MODEL_ARCH_NAMES), or by the names of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["by_tensors", "explain_architecture", "explain_config", "explain_gguf", "is_of_family"]

LLAMA_CPP = "llama.cpp's convert_hf_to_gguf.py converts it"
OPTIMUM = "'optimum-cli export onnx' converts it"
BOTH = "llama.cpp's convert_hf_to_gguf.py and 'optimum-cli export onnx' convert it"
DIFFUSION = "diffusers and stable-diffusion.cpp run it"

ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "llama": ("a Llama, as CodeGen2.5 and nsql-llama-2-7B are", BOTH),
    "llama4": ("Llama 4", LLAMA_CPP),
    "mistral": ("Mistral", BOTH),
    "ministral": ("Ministral", LLAMA_CPP),
    "mistral3": ("Mistral 3", LLAMA_CPP),
    "mixtral": ("Mixtral", LLAMA_CPP),
    "qwen": ("Qwen", LLAMA_CPP),
    "qwen2": ("Qwen2", BOTH),
    "qwen2_moe": ("Qwen2-MoE", LLAMA_CPP),
    "qwen3": ("Qwen3", BOTH),
    "qwen3_moe": ("Qwen3-MoE", BOTH),
    "qwen3_next": ("Qwen3-Next", LLAMA_CPP),
    "gemma": ("Gemma", BOTH),
    "gemma2": ("Gemma 2", BOTH),
    "gemma3": ("Gemma 3", BOTH),
    "gemma3_text": ("Gemma 3", BOTH),
    "phi3": ("Phi-3", BOTH),
    "phimoe": ("Phi-3.5-MoE", LLAMA_CPP),
    "phi-msft": ("Phi, in the layout of its first release", LLAMA_CPP),
    "starcoder2": ("StarCoder2", LLAMA_CPP),
    "gpt2": ("GPT-2", BOTH),
    "gpt_bigcode": ("StarCoder (gpt_bigcode)", BOTH),
    "gpt_neo": ("GPT-Neo", OPTIMUM),
    "gpt_neox": ("GPT-NeoX", BOTH),
    "gpt_oss": ("gpt-oss", BOTH),
    "openai-gpt": ("GPT", OPTIMUM),
    "bloom": ("BLOOM", BOTH),
    "opt": ("OPT", OPTIMUM),
    "falcon": ("Falcon", BOTH),
    "mpt": ("MPT", BOTH),
    "stablelm": ("StableLM", BOTH),
    "olmo": ("OLMo", BOTH),
    "olmo2": ("OLMo 2", BOTH),
    "granite": ("Granite", BOTH),
    "cohere": ("Command R", LLAMA_CPP),
    "deepseek_v2": ("DeepSeek-V2", LLAMA_CPP),
    "deepseek_v3": ("DeepSeek-V3", LLAMA_CPP),
    "internlm2": ("InternLM2", BOTH),
    "baichuan": ("Baichuan", LLAMA_CPP),
    "chatglm": ("ChatGLM", LLAMA_CPP),
    "glm4": ("GLM-4", LLAMA_CPP),
    "mamba": ("Mamba", LLAMA_CPP),
    "rwkv": ("RWKV", LLAMA_CPP),
    "smollm3": ("SmolLM3", BOTH),
    "xglm": ("XGLM", OPTIMUM),
    "t5": ("T5 or CodeT5", BOTH),
    "mt5": ("mT5", BOTH),
    "codet5p": ("CodeT5+", "transformers runs it"),
    "bart": ("BART or PLBART", OPTIMUM),
    "plbart": ("PLBART", "transformers runs it"),
    "marian": ("Marian", OPTIMUM),
    "m2m_100": ("M2M100", OPTIMUM),
    "pegasus": ("Pegasus", OPTIMUM),
    "bert": ("BERT", BOTH),
    "roberta": ("RoBERTa or CodeBERT", BOTH),
    "xlm-roberta": ("XLM-RoBERTa", BOTH),
    "distilbert": ("DistilBERT", BOTH),
    "albert": ("ALBERT", OPTIMUM),
    "electra": ("ELECTRA", OPTIMUM),
    "deberta": ("DeBERTa", OPTIMUM),
    "deberta-v2": ("DeBERTa-v2", OPTIMUM),
    "mpnet": ("MPNet", OPTIMUM),
    "modernbert": ("ModernBERT", BOTH),
    "nomic_bert": ("Nomic BERT", BOTH),
    "clip": ("CLIP", OPTIMUM),
    "vit": ("ViT", OPTIMUM),
    "whisper": ("Whisper", "whisper.cpp's convert-h5-to-ggml.py and optimum convert it"),
    "wav2vec2": ("Wav2Vec2", OPTIMUM),
    "llava": ("LLaVA", LLAMA_CPP),
}
"""Title and converter of models that are not of the family, by model_type.

llama.cpp's converter lists its models in convert_hf_to_gguf.py (ModelBase.register), optimum-onnx
in optimum/exporters/onnx/model_configs.py.
"""

GGUF_ARCHITECTURES: Mapping[str, str] = {
    "llama": "Llama or Mistral", "gpt2": "GPT-2", "gptneox": "GPT-NeoX", "gptj": "GPT-J",
    "starcoder": "StarCoder", "codeshell": "CodeShell", "qwen2moe": "Qwen2-MoE",
    "qwen3moe": "Qwen3-MoE", "qwen3next": "Qwen3-Next", "gpt-oss": "gpt-oss",
    "deepseek2": "DeepSeek-V2 or V3", "command-r": "Command R", "t5": "T5", "t5encoder": "T5",
    "roberta": "RoBERTa", "bert": "BERT", "nomic-bert": "Nomic BERT", "clip": "CLIP",
    "modern-bert": "ModernBERT", "sd1": "Stable Diffusion", "sdxl": "Stable Diffusion XL",
    "flux": "FLUX", "whisper": "Whisper",
}  # fmt: skip
"""Titles by the name of an architecture in GGUF, where that is not a model_type."""

DIFFUSERS = frozenset({"sd1", "sdxl", "sd3", "flux", "wan", "aura"})
"""Architectures that generate images or videos, which llama.cpp does not run."""

NOT_GENERATED = frozenset({"clip", "whisper"})

TENSORS: Mapping[str, tuple[str, str]] = {
    r"(.+\.)?h\.\d+\.attn\.c_attn\..+": ("GPT-2 or StarCoder (gpt_bigcode)", BOTH),
    r"(.+\.)?h\.\d+\.attn\.attention\.q_proj\..+": ("GPT-Neo", OPTIMUM),
    r"(.+\.)?gpt_neox\.layers\.\d+\..+|(.+\.)?embed_in\.weight": ("GPT-NeoX", BOTH),
    r"(.+\.)?decoder\.layers\.\d+\.self_attn\.k_proj\..+": ("OPT or an encoder-decoder", OPTIMUM),
    r"(.+\.)?word_embeddings_layernorm\.weight": ("BLOOM", BOTH),
    r"(.+\.)?h\.\d+\.self_attention\.query_key_value\..+": ("BLOOM or Falcon", BOTH),
    r"(.+\.)?blocks\.\d+\.attn\.Wqkv\..+": ("MPT", BOTH),
    r"(.+\.)?layers\.\d+\.self_attn\.dense\..+": ("Phi", ""),
    r"(.+\.)?layers\.\d+\.self_attn\.qkv_proj\..+": ("Phi-3", BOTH),
    r"(.+\.)?layers\.\d+\.self_attn\.q_proj\..+": ("Llama or a relative", LLAMA_CPP),
    r"(.+\.)?layers\.\d+\.attention\.wq\..+": ("Llama, as Meta stores it", ""),
    r"(.+\.)?(encoder|decoder)\.block\.\d+\.layer\..+": ("T5 or CodeT5", BOTH),
    r"(.+\.)?encoder\.layer\.\d+\.attention\..+": ("BERT or RoBERTa", BOTH),
    r"(.+\.)?language_model\.(encoder|transformer)\.layers\..+": ("a model of Megatron", ""),
    r"(.+\.)?(down_blocks|up_blocks|mid_block)\..+": ("a diffusion model", DIFFUSION),
    r"(.+\.)?layers\.\d+\.mixer\.(A_log|in_proj\.weight)": ("Mamba", LLAMA_CPP),
    r"(.+\.)?h\.\d+\.attn\.qkv_proj\..+": ("CodeGen", ""),
    r"(.+\.)?h\.\d+\.attn\.q_proj\..+": ("GPT-J", ""),
}
"""Names of tensors by which a model is known, its title and converter; the first that fits."""

_FAMILY = re.compile(
    r"(.+\.)?(h\.\d+\.attn\.(qkv_proj|q_proj)|layers\.\d+\.self_attn\.dense)\..+", re.DOTALL
)
_FIRST_NAMES = 4096
"""The most names of tensors that are looked at; a model of 100 layers has fewer."""


def is_of_family(names: Iterable[str]) -> bool:
    """Whether a tensor has a name that only CodeGen, GPT-J and Phi have."""
    return any(_FAMILY.fullmatch(name[-200:]) for name in names)


def by_tensors(names: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the model that has tensors of these names, its converter, and such a name.

    None if no model is known by them.
    """
    names = sorted(names)[:_FIRST_NAMES]
    for pattern, (model, advice) in TENSORS.items():
        compiled = re.compile(pattern)
        name = next(filter(compiled.fullmatch, names), None)
        if name is not None:
            return model, advice, name
    return None


def explain_architecture(title: str, evidence: str, advice: str = "") -> str:
    """Say that a source is a model of another architecture; the phrase follows "PATH: ".

    Args:
        title: The name of the model.
        evidence: What shows it, such as "model_type 'llama'".
        advice: Which program converts or runs it.
    """
    text = f"is {title} ({evidence}), no model of CodeGen's family (CodeGen2, GPT-J, MOSS, Phi)"
    return f"{text}; {advice}" if advice else text


def explain_config(config: Mapping[str, Any]) -> str:
    """Say which other model a config.json describes, as `explain_architecture` does.

    Returns "" if its model_type is of the family, not known, or not there.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        title, advice = ARCHITECTURES[model_type]
        return explain_architecture(title, f"model_type {model_type!r}", advice)
    if "_diffusers_version" in config:
        return explain_architecture("a part of a diffusers pipeline", "_diffusers_version")
    return ""


def explain_gguf(architecture: str) -> str:
    """Say which other model a GGUF file of this architecture holds, as `explain_architecture`."""
    title = GGUF_ARCHITECTURES.get(architecture)
    if title is None:
        title = ARCHITECTURES.get(architecture, ("another model",))[0]
    evidence = f"general.architecture {architecture[:60]!r}"
    if architecture in DIFFUSERS:
        return explain_architecture(title, evidence, DIFFUSION)
    if architecture in NOT_GENERATED:
        return explain_architecture(title, evidence)
    return explain_architecture(title, evidence, "llama.cpp runs it as it is")
