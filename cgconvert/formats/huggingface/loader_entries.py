"""Entries of configurations that make a program load something else than what was checked.

`config.json` and `tokenizer_config.json` may name other weights, other tokenizer files, code,
adapters, a class of another family or another graph. Entries that transformers itself writes are
passed over, and all others that no format has are named.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cgconvert.formats.comparison import as_mapping
from cgconvert.formats.loader_files import Unchecked
from cgconvert.io.strict_json import read_json

__all__ = [
    "CLASSES", "TOKENIZER_CLASSES", "loaded_config_entries", "loaded_tokenizer_entries",
    "unchecked_entries",
]  # fmt: skip

CODE = "transformers and vLLM run code that it names"
TOKENIZER_FILE = "transformers reads this file in place of the tokenizer's own"
NESTED = "transformers and vLLM take it for the configuration of the model"
OTHER_IDS = "transformers computes other ids or texts with it"
LENGTH = "vLLM takes it for the length of the context"

CONFIG_LOADED: Mapping[str, str] = {
    # transformers, modeling_utils.py: from_pretrained; configuration_utils.py: get_config_dict.
    "transformers_weights": "transformers loads this file in place of model.safetensors",
    "configuration_files": "transformers reads one of these files in place of config.json",
    "auto_map": CODE,
    "custom_pipelines": CODE,
    "attn_implementation": "transformers fetches the kernel that it names",
    "_attn_implementation": "transformers fetches the kernel that it names",
    "_attn_implementation_internal": "transformers fetches the kernel that it names",
    "experts_implementation": "transformers fetches the kernel that it names",
    "_experts_implementation": "transformers fetches the kernel that it names",
    "adapter_config": "transformers loads the adapter that it names",
    "base_model_name_or_path": "transformers loads the model that it names",
    "quantization_config": "transformers and vLLM read the weights as quantized",
    "compression_config": "transformers and vLLM read the weights as quantized",
    # transformers, configuration_utils.py: get_text_config.
    "text_config": NESTED,
    "text_encoder": NESTED,
    "decoder": NESTED,
    "generator": NESTED,
    "vision_config": NESTED,
    "audio_config": NESTED,
    "thinker_config": NESTED,
    # transformers, configuration_utils.py: __post_init__ sets every entry as an attribute;
    # heterogeneity and fusion_mapping.py: layers and modules are exchanged.
    "attribute_map": "transformers reads the sizes under the names that it gives",
    "per_layer_config": "transformers builds each layer as it says",
    "fusion_config": "transformers exchanges parts of the model as it says",
    # vLLM, transformers_utils/config.py: maybe_override_with_speculators; config/model.py.
    "speculators_config": "vLLM loads the model that it names",
    "sliding_window": "vLLM lets tokens attend to so many others alone",
    "dual_chunk_attention_config": "vLLM computes attention as it says",
    "head_dim": "vLLM takes it for the size of a head",
    "max_seq_len": LENGTH,
    "max_seq_length": LENGTH,
    "max_sequence_length": LENGTH,
    "max_target_positions": LENGTH,
    "model_max_length": LENGTH,
    "seq_len": LENGTH,
    "seq_length": LENGTH,
    "is_encoder_decoder": "transformers generates as with an encoder",
}  # fmt: skip
"""Entries of config.json that a program obeys where they have a value, and what it does."""

CONFIG_DEFAULTS: Mapping[str, tuple[object, str]] = {
    "is_causal": (True, "vLLM runs it as a model that does not generate"),
    "return_dict": (True, "transformers returns logits in another form"),
    "torchscript": (False, "transformers returns logits in another form"),
}
"""Entries of config.json that a program obeys if they have another value than this."""

OF_PHI = (
    "hidden_act", "intermediate_size", "layer_norm_eps", "num_key_value_heads",
    "partial_rotary_factor", "qk_layernorm", "rope_parameters", "rope_scaling", "rope_theta",
    "rotary_pct",
)  # fmt: skip
"""Entries that no other family of CLASSES has. transformers' CodeGen and GPT-J pass over them, and
vLLM, which has its own GPT-J, reads them of every model (get_total_num_kv_heads, get_rope)."""

TOKENIZER_LOADED: Mapping[str, str] = {
    # transformers, tokenization_utils_base.py: from_pretrained, _from_pretrained.
    "fast_tokenizer_files": TOKENIZER_FILE,
    "tokenizer_file": TOKENIZER_FILE,
    "vocab_file": TOKENIZER_FILE,
    "merges_file": TOKENIZER_FILE,
    "auto_map": CODE,
    "init_inputs": "transformers gives these arguments to the tokenizer's class",
    "tokenizer_object": TOKENIZER_FILE,
    "gguf_file": TOKENIZER_FILE,
    "vocab": "transformers takes it in place of the tokenizer's own vocabulary",
    "merges": "transformers takes it in place of the tokenizer's own merges",
    # transformers, tokenization_utils_tokenizers.py: TokenizersBackend.__init__.
    "post_processor": OTHER_IDS,
    "tokenizer_padding": OTHER_IDS,
    "tokenizer_truncation": OTHER_IDS,
    "_json_padding": OTHER_IDS,
    "_json_truncation": OTHER_IDS,
    "fix_mistral_regex": OTHER_IDS,
    "split_special_tokens": OTHER_IDS,
    "max_len": OTHER_IDS,
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": OTHER_IDS,
    # onnxruntime-extensions, tokenizer_jsconfig.hpp.
    "tiktoken_file": "onnxruntime-genai reads this file in place of tokenizer.json",
    "template_file": "onnxruntime-genai reads this file in place of the chat template",
}
"""Entries of tokenizer_config.json that a program obeys where they have a value."""

TOKENIZER_DEFAULTS: Mapping[str, tuple[object, str]] = {
    "errors": ("replace", OTHER_IDS),  # of the tokenizers that are written in Python
}
"""Entries of tokenizer_config.json that a program obeys if they have another value than this."""

CLASSES: Mapping[str, str] = {
    "codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM", "phi": "PhiForCausalLM",
}  # fmt: skip
"""The class of each model type; vLLM takes it from `architectures` and not from the type."""

TOKENIZER_CLASSES = (
    "CodeGenTokenizer", "CodeGenTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast",
    "PreTrainedTokenizerFast", "TokenizersBackend",
)  # fmt: skip
"""transformers' classes of byte-level BPE; AutoTokenizer takes the class that a file names."""

CONFIG_KNOWN = frozenset((
    # CodeGen's, GPT-J's and Phi's own.
    "activation_function", "attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_act",
    "hidden_size", "initializer_range", "intermediate_size", "layer_norm_eps",
    "layer_norm_epsilon", "max_position_embeddings", "n_ctx", "n_embd", "n_head", "n_inner",
    "n_layer", "n_positions", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "partial_rotary_factor", "qk_layernorm", "resid_pdrop", "rope_parameters", "rope_scaling",
    "rope_theta", "rotary", "rotary_dim", "rotary_pct", "scale_attn_weights",
    "tie_word_embeddings", "vocab_size",
    # What transformers writes for every model; none of them changes which files are read.
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "dtype", "eos_token_id", "finetuning_task",
    "gradient_checkpointing", "id2label", "label2id", "model_type", "num_labels",
    "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "problem_type",
    "return_dict", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype",
    "torchscript", "transformers_version", "use_cache",
))  # fmt: skip
"""Entries of config.json that load nothing, and are not reported."""

TOKENIZER_KNOWN = frozenset((
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder",
    "additional_special_tokens", "backend", "chat_template", "clean_up_tokenization_spaces",
    "errors", "extra_special_tokens", "is_local", "local_files_only", "max_length",
    "model_max_length", "model_specific_special_tokens", "name_or_path", "pad_to_multiple_of",
    "pad_token_type_id", "padding_side", "processor_class", "return_token_type_ids",
    "special_tokens_map_file", "stride", "tokenizer_class", "truncation_side",
    "truncation_strategy", "use_fast",
))  # fmt: skip
"""Entries of tokenizer_config.json that are no reason for a word; so are roles such as eos_token,
which are compared with the source's."""

JS_CONFIG = "transformers.js_config"
JS_SUFFIXES: Mapping[str, str] = {
    "fp32": "", "fp16": "_fp16", "int8": "_int8", "uint8": "_uint8", "q8": "_quantized",
    "q4": "_q4", "q4f16": "_q4f16", "bnb4": "_bnb4",
}  # fmt: skip
"""The end of a graph's name by its type (transformers.js, utils/dtypes.js)."""

JS_KNOWN = frozenset(("dtype", "kv_cache_dtype", "use_external_data_format"))


def unchecked_entries(folder: Path, graph: Path | None = None) -> Unchecked:
    """List the entries of a folder's configurations that load or name what was not checked.

    Args:
        folder: The folder of config.json and tokenizer_config.json; either may be absent.
        graph: The graph that the folder is checked with; None for a Hugging Face folder.

    Raises:
        InputError: A file is not valid JSON.
    """
    config, tokenizer = (
        read_json(path) if (path := folder / name).is_file() else {}
        for name in ("config.json", "tokenizer_config.json")
    )
    known = {*CONFIG_KNOWN, *CONFIG_LOADED, *CONFIG_DEFAULTS, *OF_PHI}
    known |= set() if graph is None else {JS_CONFIG}
    loaded = [
        *(f"config.json: {text}" for text in loaded_config_entries(config)),
        *(f"config.json: {text}" for text in _foreign_graph(config, graph)),
        *(f"tokenizer_config.json: {text}" for text in loaded_tokenizer_entries(tokenizer)),
    ]
    known_to_tokenizer = {*TOKENIZER_KNOWN, *TOKENIZER_LOADED, *_roles(tokenizer)}
    unknown = [
        *(f"config.json has {key}" for key in _unknown_keys(config, known)),
        *(
            f"tokenizer_config.json has {key}"
            for key in _unknown_keys(tokenizer, known_to_tokenizer)
        ),
    ]
    return Unchecked(folder, tuple(loaded), (), tuple(unknown))


def loaded_config_entries(config: Mapping[str, Any]) -> list[str]:
    """Describe the entries of a config.json that load something, or name another class."""
    return [
        *_loaded(config, CONFIG_LOADED),
        *_not_default(config, CONFIG_DEFAULTS),
        *_of_phi(config),
        *_foreign_classes(config),
    ]


def loaded_tokenizer_entries(tokenizer: Mapping[str, Any]) -> list[str]:
    """Describe the entries of a tokenizer_config.json that name files, code or a foreign class."""
    return [
        *_loaded(tokenizer, TOKENIZER_LOADED),
        *_not_default(tokenizer, TOKENIZER_DEFAULTS),
        *_new_roles(tokenizer),
        *_foreign_tokenizer(tokenizer),
    ]


def _loaded(entries: Mapping[str, Any], table: Mapping[str, str]) -> Iterator[str]:
    """Yield a phrase for each entry of the table that has a value: its key, value and effect."""
    for key, effect in table.items():
        if entries.get(key):
            yield f"{key} is {reprlib.repr(entries[key])} ({effect})"


def _not_default(
    entries: Mapping[str, Any], table: Mapping[str, tuple[object, str]]
) -> Iterator[str]:
    """Yield a phrase for each entry whose value is not the one at which nothing changes."""
    for key, (default, effect) in table.items():
        if entries.get(key) not in (None, default):
            yield f"{key} is {reprlib.repr(entries[key])} ({effect})"


def _of_phi(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a phrase for each entry of Phi's in the configuration of another model."""
    model_type = str(config.get("model_type"))
    if model_type in CLASSES and model_type != "phi":
        for key in OF_PHI:
            if config.get(key) is not None:
                value = reprlib.repr(config[key])
                yield f"{key} is {value} (vLLM computes with it, and {model_type} has none)"


def _new_roles(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a phrase for tokens that get a role in a place that nothing compares.

    transformers writes the roles that a model has of its own there a second time.
    """
    key = "model_specific_special_tokens"
    roles = tokenizer.get(key) or {}
    if not isinstance(roles, dict) or any(tokenizer.get(role) != roles[role] for role in roles):
        yield f"{key} is {reprlib.repr(roles)} (transformers makes special tokens of them)"


def _foreign_classes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a phrase if config.json names classes of another model or tokenizer."""
    expected = CLASSES.get(str(config.get("model_type")))
    classes = config.get("architectures") or [expected]
    if expected and classes != [expected]:
        yield f"architectures is {reprlib.repr(classes)} (vLLM runs that class, not {expected})"
    yield from _foreign_tokenizer(config)


def _foreign_tokenizer(entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield a phrase if a configuration names a tokenizer's class of another family."""
    name = entries.get("tokenizer_class")
    if name is not None and name not in TOKENIZER_CLASSES:
        yield (
            f"tokenizer_class is {reprlib.repr(name)} (transformers opens the tokenizer with that "
            "class, and from that class's files)"
        )


def _foreign_graph(config: Mapping[str, Any], graph: Path | None) -> Iterator[str]:
    """Yield a phrase if transformers.js would take another graph than the one that is checked."""
    if graph is None or not config.get(JS_CONFIG):
        return
    entries = as_mapping(config[JS_CONFIG])
    dtype = entries.get("dtype")
    suffix = JS_SUFFIXES.get(dtype) if isinstance(dtype, str) else None
    if "dtype" in entries and (suffix is None or not _ends_in(graph.stem, suffix)):
        yield (
            f"{JS_CONFIG} has the dtype {reprlib.repr(dtype)} (transformers.js takes another "
            f"graph than {graph.name})"
        )
    for key in _unknown_keys(entries, JS_KNOWN):
        yield f"{JS_CONFIG} has {key} (transformers.js obeys it)"


def _ends_in(stem: str, suffix: str) -> bool:
    """Whether a graph's name has the suffix of one type and of no longer one."""
    longest = max((end for end in JS_SUFFIXES.values() if stem.endswith(end)), key=len)
    return longest == suffix


def _roles(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that name a token for a role, which are compared with the source's."""
    added = as_mapping(tokenizer.get("added_tokens_decoder")).values()
    contents = [as_mapping(token).get("content") for token in added]
    for key, value in tokenizer.items():
        if key.endswith("_token") or (isinstance(value, str) and value in contents):
            yield key


def _unknown_keys(entries: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """Yield the keys that are not among the known ones, as text for a message."""
    return (reprlib.repr(key) for key in entries if key not in known)
