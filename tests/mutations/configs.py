"""Bugs in the JSON files of a folder: configuration, token ids, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgconvert.model.decoder import Checkpoint
from tests.mutations.mutation import GEOMETRY, HF, ONNX, Files, Mutation, in_files

__all__ = ["CONFIGS"]

CODEGEN, PHI = HF[:2], HF[2:]
"""The types whose configuration has CodeGen's keys, which GPT-J has too, and those of Phi."""
FOLDERS = (*HF, *ONNX)


def edit_json(file: str, change: Callable[[dict[str, Any]], object]) -> Files:
    def change_files(artefact: Path, _: Checkpoint) -> None:
        path = artefact / file
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return change_files


def set_key(file: str, key: str, value: object) -> Files:
    """Set a value in a JSON file; dots in `key` separate the keys of nested objects."""
    *outer, last = key.split(".")

    def change(content: dict[str, Any]) -> None:
        for part in outer:
            content = content[part]
        content[last] = value

    return edit_json(file, change)


def config_mutation(name: str, key: str, value: object, types: tuple[str, ...]) -> Mutation:
    return in_files(name, "config.json", GEOMETRY, set_key("config.json", key, value), types)


def all_of(*changes: Files) -> Files:
    def change_files(artefact: Path, source: Checkpoint) -> None:
        for change in changes:
            change(artefact, source)

    return change_files


def halve_context(artefact: Path, source: Checkpoint) -> None:
    half = source.geometry.n_positions // 2
    keys = ("n_positions", "n_ctx", "max_position_embeddings")
    edit_json("config.json", lambda c: c.update({k: half for k in keys if k in c}))(
        artefact, source
    )


def remove_whitespace_tokens(content: dict[str, Any]) -> None:
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"].strip()]


def make_whitespace_special(content: dict[str, Any]) -> None:
    for token in content["added_tokens"]:
        token["special"] = True


def remove_end_of_text(content: dict[str, Any]) -> None:
    """Drop the end-of-text token, so that its text is encoded as several tokens."""
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["special"]]


def add_prefix_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def genai_mutation(name: str, key: str, value: object, check: str) -> Mutation:
    change = set_key("genai_config.json", key, value)
    return in_files(name, "genai_config.json", (check,), change, ONNX)


EOS_2 = set_key("generation_config.json", "eos_token_id", 2)
TOKENS = ("tokenizer.ids", "tokenizer.files")
FILES = ("tokenizer.files",)
NFKC = {"type": "NFKC"}
TOKENIZER = "tokenizer.json"

CONFIGS = (
    config_mutation("exact GELU", "activation_function", "gelu", CODEGEN),
    config_mutation("exact GELU in Phi", "hidden_act", "gelu", PHI),
    config_mutation("ReLU", "activation_function", "relu", CODEGEN),
    config_mutation("rotary width in the configuration", "rotary_dim", 16, CODEGEN),
    config_mutation("rotary fraction of Phi's default", "partial_rotary_factor", 0.4, PHI),
    config_mutation(
        "rotary base in the configuration", "rope_parameters.rope_theta", 500000.0, PHI
    ),
    config_mutation(
        "rotary scaled linearly",
        "rope_parameters",
        {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
        PHI,
    ),
    config_mutation("twice the heads", "n_head", 8, CODEGEN),
    config_mutation("the head tied in the configuration", "tie_word_embeddings", True, HF),
    in_files(
        "half the context in the configuration", "config.json", ("context",), halve_context, FOLDERS
    ),
    in_files(
        "end of text 2 in the generation configuration",
        "generation_config.json",
        ("end_of_text", "settings"),
        EOS_2,
        FOLDERS,
    ),
    in_files(
        "end of text 2 in both configurations",
        "config.json",
        ("end_of_text", "settings"),
        all_of(EOS_2, set_key("config.json", "eos_token_id", 2)),
        FOLDERS,
    ),
    in_files(
        "end of text 2 in config.json alone",
        "config.json",
        ("settings",),
        set_key("config.json", "eos_token_id", 2),
        FOLDERS,
    ),
    in_files(
        "beginning of text 1",
        "config.json",
        ("settings",),
        set_key("config.json", "bos_token_id", 1),
        FOLDERS,
    ),
    in_files(
        "a penalty on repetition",
        "generation_config.json",
        ("settings",),
        set_key("generation_config.json", "repetition_penalty", 1.3),
        FOLDERS,
    ),
    in_files(
        "merges in reverse order",
        TOKENIZER,
        TOKENS,
        edit_json(TOKENIZER, lambda c: c["model"]["merges"].reverse()),
        FOLDERS,
    ),
    in_files(
        "half of the merges lost",
        TOKENIZER,
        TOKENS,
        edit_json(
            TOKENIZER,
            lambda c: c["model"].update(
                merges=c["model"]["merges"][: len(c["model"]["merges"]) // 2]
            ),
        ),
        FOLDERS,
    ),
    in_files(
        "white-space tokens lost",
        TOKENIZER,
        TOKENS,
        edit_json(TOKENIZER, remove_whitespace_tokens),
        FOLDERS,
    ),
    in_files(
        "white-space tokens special",
        TOKENIZER,
        FILES,
        edit_json(TOKENIZER, make_whitespace_special),
        FOLDERS,
    ),
    in_files(
        "end of text not special",
        TOKENIZER,
        TOKENS,
        edit_json(TOKENIZER, remove_end_of_text),
        FOLDERS,
    ),
    in_files(
        "a space before every text",
        TOKENIZER,
        TOKENS,
        edit_json(TOKENIZER, add_prefix_space),
        FOLDERS,
    ),
    in_files(
        "text normalized to NFKC",
        TOKENIZER,
        TOKENS,
        edit_json(TOKENIZER, lambda c: c.update(normalizer=NFKC)),
        FOLDERS,
    ),
    in_files(
        "spaces cleaned up when decoding",
        "tokenizer_config.json",
        ("tokenizer.files", "tokenizer.round_trip"),
        set_key("tokenizer_config.json", "clean_up_tokenization_spaces", True),
        FOLDERS,
    ),
    in_files(
        "beginning of text added",
        "tokenizer_config.json",
        TOKENS,
        set_key("tokenizer_config.json", "add_bos_token", True),
        FOLDERS,
    ),
    genai_mutation("end of text 2 for genai", "model.eos_token_id", 2, "settings"),
    genai_mutation(
        "another head size for genai", "model.decoder.head_size", 32, "weights.geometry"
    ),
    genai_mutation("another context for genai", "model.context_length", 48, "weights.geometry"),
    genai_mutation(
        "a penalty on repetition for genai", "search.repetition_penalty", 1.3, "settings"
    ),
    genai_mutation(
        "keys and values exchanged for genai",
        "model.decoder.outputs.present_key_names",
        "present.%d.value",
        "settings",
    ),
)
