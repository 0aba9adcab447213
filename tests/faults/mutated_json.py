"""Random changes of JSON that keep its structure, so that most of them get past the parser.

An entry gets another value, another name or another place, twice the same name, or vanishes. The
values are those that configurations are known to break with; the names are those that a loader may
look for.
"""

from __future__ import annotations

import json
from typing import Any

from tests.faults.mutated_bytes import NUMBERS, Choose, mutated_bytes, pick

__all__ = ["CHAT_TEMPLATES", "mutated_json"]


class Pairs(list[tuple[str, Any]]):
    """An object: its names and values, in order. A name may stand twice."""


class Raw(str):
    """Text that stands in the JSON as it is."""

    __slots__ = ()


CHAT_TEMPLATES = (
    "{{ messages }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{{ 'x' * 10 ** 10 }}", "{% include '/etc/hostname' %}", "{%", "{{", "{# \x1b[31m #}",
    "{{ cycler.__init__.__globals__.os.popen('touch ran') }}", "{% macro a() %}{{ a() }}"
    "{% endmacro %}{{ a() }}", "\0", "\ud800", "{% raw %}", "<|im_start|>" * 9,
)  # fmt: skip
"""Chat templates: plain, wrong, endless, and ones that would run code."""

TEXTS = (
    "", "x", " ", "\n", "\0", "\x1b[31m", "\u202e", "\u2028", "\ud800", "\udcff", "😀", "é",
    "a" * 300, "a" * 20_000, "a" * 300_000, "..", "../x", "/etc/hostname", "/dev/zero",
    "/proc/self/mem", "source", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx",
    "http://127.0.0.1:9/x", "some/repository", "some/repository--module.Class", "module.Class",
    "os.system", "__class__", "%s%n", "{}", "{0.__class__}", "nan", "inf", "-1", "1e999", "1",
    "true", "auto", "none", "float16", "bfloat16", "float8_e4m3fn", "torch.float32", "int8",
    "flash_attention_2", "gelu_new", "relu", "CodeGenForCausalLM", "LlamaForCausalLM", "codegen",
    "gptj", "phi", "llama", "gpt2", "bert", "CodeGenTokenizer", "CodeGenTokenizerFast",
    "PreTrainedTokenizerFast", "LlamaTokenizer", "BertJapaneseTokenizer", "T5Tokenizer",
    "<|endoftext|>", "<|im_start|>", "Ġ", "Ġdef", "ab", "Split", "ByteLevel", "Metaspace", "NFKC",
    "Sequence", "WordPiece", "Unigram", "(a+)+$", "[", "LORA", "IA3", "all-linear", ".*",
    "CPUExecutionProvider", "cuda", *CHAT_TEMPLATES,
)  # fmt: skip

SMALL = (-1, 2, 3, 4, 10, 64, 1000, 4095, 4096, 4097, 50256, 50257, 1_000_000, 1_000_000_000,
         -(1 << 31), -(1 << 63), 10**30)  # fmt: skip

FLOATS = ("0.0", "-0.0", "0.1", "0.5", "1.0", "4.0", "1e-5", "1e-400", "5e-324", "-1e-5", "1e30",
          "1e308", "1e400", "-1e999", "NaN", "Infinity", "-Infinity", "1e99999999999",
          "9" * 5000, "-" + "9" * 5000, "0." + "0" * 5000 + "1", "01", "0x10", "1_000", "+1",
          ".5", "5.")  # fmt: skip

SHAPES = (
    "{}", "[]", "[[]]", '[""]', "[1]", '{"a": 1}', '{"": {}}', "null", "true", "false",
    "[1, 2, 3]", '["a", "b"]', '[["a", "b"]]', '{"0": "LABEL_0"}', '{"type": "default"}',
    '{"type": "Sequence", "normalizers": []}', '{"rope_type": "linear", "factor": 4.0}',
    '{"__type": "AddedToken", "content": "x", "lstrip": true}', '{"auto": "map"}',
    '[{"name": "default", "template": "{{ messages }}"}]', "[" * 100 + "]" * 100,
    "[" * 3000 + "]" * 3000, '{"a":' * 900 + "1" + "}" * 900, "[" + "0," * 20000 + "0]",
    "{" + ",".join(f'"k{i}":{i}' for i in range(5000)) + "}",
)  # fmt: skip

NAMES = (
    "", "x", "\0", "\x1b[31m", "\ud800", "é", "a" * 5000, "__class__", "model_type",
    "architectures", "auto_map", "transformers_weights", "fast_tokenizer_files", "tokenizer_class",
    "tokenizer_file", "vocab_file", "merges_file", "added_tokens_decoder", "additional_special_"
    "tokens", "extra_special_tokens", "chat_template", "quantization_config", "torch_dtype",
    "dtype", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "num_labels", "id2label", "label2id", "problem_type", "use_cache", "pruned_heads",
    "text_config", "sub_configs", "use_return_dict", "output_attentions", "tie_word_embeddings",
    "vocab_size", "n_positions", "n_ctx", "n_embd", "n_inner", "n_layer", "n_head", "rotary_dim",
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "partial_rotary_factor", "rope_theta", "rope_scaling",
    "max_position_embeddings", "activation_function", "hidden_act",
    "layer_norm_epsilon", "layer_norm_eps", "eos_token_id", "bos_token_id", "pad_token_id",
    "eos_token", "unk_token", "pad_token", "model_max_length", "add_prefix_space", "add_bos_token",
    "transformers_version", "name_or_path", "_name_or_path", "_commit_hash", "weight_map",
    "metadata", "total_size", "base_model_name_or_path", "peft_type", "target_modules",
    "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "use_dora",
    "fan_in_fan_out", "bias", "custom_ops_library", "session_options", "provider_options",
    "filename", "pipeline", "do_sample", "temperature", "max_length", "max_new_tokens",
    "stop_strings", "forced_bos_token_id", "suppress_tokens", "custom_generate", "cache_"
    "implementation", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation",
    "padding", "added_tokens", "model", "vocab", "merges", "dropout", "byte_fallback",
    "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges", "type",
)  # fmt: skip
"""Names that transformers, tokenizers, peft, onnxruntime-genai or cgconvert look for."""


def mutated_json(raw: bytes, choose: Choose) -> bytes:
    """Change up to three places of a JSON text; now and then bytes of the result too."""
    document = [json.loads(raw, object_pairs_hook=Pairs)]
    for _ in range(choose(1, 3)):
        _change(document, choose)
    encoded = _text(document[0]).encode(errors="surrogatepass")
    return encoded if choose(0, 7) else mutated_bytes(encoded, choose)


def _change(document: list[Any], choose: Choose) -> None:
    """Change one place. Places near the root are as likely as the many in a vocabulary."""
    parent, index = document, 0
    while isinstance(value := _value(parent, index), list) and value and choose(0, 2):
        parent, index = value, choose(0, len(value) - 1)
    value, kind = _value(parent, index), choose(0, 9)
    if kind == 0 and parent is not document:
        del parent[index]
    elif kind == 1 and isinstance(parent, Pairs):
        parent[index] = (pick(choose, NAMES), value)
    elif kind == 2:
        parent.insert(index, parent[choose(0, len(parent) - 1)])
    elif kind == 3:
        _set(parent, index, [value])
    elif kind <= 5 and isinstance(value, Pairs):
        value.insert(choose(0, len(value)), (pick(choose, NAMES), _other_value(None, choose)))
    elif kind == 6:
        _set(parent, index, _value(parent, choose(0, len(parent) - 1)))
    else:
        _set(parent, index, _other_value(value, choose))


def _other_value(value: Any, choose: Choose) -> Any:
    """Return a hostile value, often of the same type as `value`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and choose(0, 2):
        return pick(choose, (-value, value + 1, value * 2, str(value), Raw(f"{value}.0"), value * 8,
                             [value], value - 1, Raw(f"{value}e2")))  # fmt: skip
    if isinstance(value, str) and choose(0, 2):
        text: str = pick(choose, TEXTS)
        return pick(
            choose, (text, value + text, text + value, value.upper(), value[:-1], value * 2)
        )
    return pick(
        choose,
        (Raw(str(pick(choose, NUMBERS))), pick(choose, SMALL), pick(choose, TEXTS),
         Raw(pick(choose, FLOATS)), Raw(pick(choose, SHAPES))),
    )  # fmt: skip


def _value(parent: list[Any], index: int) -> Any:
    return parent[index][1] if isinstance(parent, Pairs) else parent[index]


def _set(parent: list[Any], index: int, value: Any) -> None:
    parent[index] = (parent[index][0], value) if isinstance(parent, Pairs) else value


def _text(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{_string(name)}: {_text(entry)}" for name, entry in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else json.dumps(text)
