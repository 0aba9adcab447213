"""Write genai_config.json, the settings with which onnxruntime-genai runs the graph in a folder.

Its keys are those of the library's documentation, "Configuration reference" (src/config.h). A key
that it does not know is an error, so settings of generation without one are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cgconvert.formats.left_out import describe_flags, describe_unheld, left_out_note
from cgconvert.model.chat_templates import DEFAULT
from cgconvert.model.decoder import Checkpoint, Geometry

__all__ = ["genai_config", "genai_ids", "genai_notes", "search_settings", "template_fault"]

TOP_K = 50
"""How many tokens transformers samples from if no file says so. In genai 1 means greedy, even with
do_sample, and 0 means all."""

OLD_MAX_LENGTH = 20
"""The default of transformers 4, which old configurations repeat. It is not the model's."""

MAX_CHARACTERS, MAX_TAGS, MAX_TAG_CHARACTERS = 1 << 16, 1000, 1 << 12
"""The longest template, the most tags and the longest tag that genai may get, texts in quotes not
counted. Its parser takes time that grows with the square of the tags (1,000: 3 s, 4,000: 40 s) and
of what is in one (4,000 characters: 2 s, 16,000: 15 s), and ends the process by a stack overflow in
a name of 32,000 characters. The longest known templates have some 20,000, in 400 tags."""

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_TAG = re.compile(
    rf"(?P<comment>\{{#.*?(?:#\}}|\Z))|\{{[{{%](?:{_QUOTED}|.)*?(?:[%}}]\}}|\Z)", re.DOTALL
)
"""A comment, or a tag with the quoted texts in it; either may have no end."""


def genai_config(
    geometry: Geometry,
    ids: Mapping[str, int | list[int]],
    search: Mapping[str, Any],
    graph: str,
    target: str = "cpu",
) -> dict[str, Any]:
    """Create the configuration for the graph at `graph`, a path relative to the folder.

    `ids` are those of bos, eos and pad, `search` is the result of `search_settings`. Past and
    present keys and values share one buffer of `context_length` positions, so that a step copies
    nothing.
    """
    g = geometry
    providers: list[dict[str, Any]] = [{"cuda": {}}] if target == "cuda" else []
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
        "filename": graph,
        "head_size": g.head_dim,
        "hidden_size": g.n_embd,
        "num_attention_heads": g.n_head,
        "num_hidden_layers": g.n_layer,
        "num_key_value_heads": g.n_head,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            **ids,
            "context_length": g.n_positions,
            "vocab_size": g.vocab_size,
            "decoder": decoder,
        },
        "search": dict(search),
    }


def genai_ids(checkpoint: Checkpoint) -> dict[str, int | list[int]]:
    """Return the ids of roles; eos is a list if generation stops at several."""
    tokenizer, (own, *further) = checkpoint.tokenizer, checkpoint.eos_token_ids
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [own, *further] if further else own,
        "pad_token_id": tokenizer.pad_token_id,
    }


def search_settings(
    sampling: Mapping[str, Any], geometry: Geometry, target: str = "cpu"
) -> dict[str, Any]:
    """Return the section "search" for settings by the names of transformers' GenerationConfig.

    Where they say nothing, the search is greedy. Numbers that have no effect beyond the vocabulary
    or the context end there.
    """
    context, rows = geometry.n_positions, geometry.vocab_size
    samples = bool(sampling.get("do_sample"))
    beams = 1 if samples else sampling.get("num_beams", 1)  # genai does not combine them
    max_length = sampling.get("max_length", OLD_MAX_LENGTH)
    search = {
        "do_sample": samples,
        "max_length": context if max_length == OLD_MAX_LENGTH else min(max_length, context),
        "min_length": min(sampling.get("min_length", 0), context),
        "num_beams": beams,
        "num_return_sequences": min(sampling.get("num_return_sequences", 1), beams),
        "past_present_share_buffer": True,
        "repetition_penalty": float(sampling.get("repetition_penalty", 1.0)),
        "temperature": float(sampling.get("temperature", 1.0)),
        "top_k": min(sampling.get("top_k", TOP_K if samples else 1), rows),
        "top_p": float(sampling.get("top_p", 1.0)),
    }
    if beams > 1:
        search["length_penalty"] = float(sampling.get("length_penalty", 1.0))
        search["early_stopping"] = sampling.get("early_stopping", False) is True
    if sampling.get("no_repeat_ngram_size") and target == "cpu":  # genai has it there alone
        search["no_repeat_ngram_size"] = min(sampling["no_repeat_ngram_size"], context)
    return dict(sorted(search.items()))


def genai_notes(checkpoint: Checkpoint, search: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what genai cannot hold of a checkpoint, a line each; the other clients have it."""
    settings = checkpoint.generation.sampling
    held = {*search, "length_penalty", "early_stopping"}
    for name in ("num_beams", "num_return_sequences"):
        if settings.get(name, 1) != search[name]:
            held.discard(name)
    if search["num_beams"] > 1 and settings.get("early_stopping") == "never":
        held.discard("early_stopping")
    notes = left_out_note(
        "genai_config.json", describe_unheld(settings, held), "; kept in generation_config.json"
    )
    flags = describe_flags(checkpoint.tokenizer, "lstrip", "single_word")
    notes += left_out_note("onnxruntime-genai's tokenizer", flags, "; kept for other clients")
    fault = template_fault(checkpoint.tokenizer.chat_templates.get(DEFAULT, ""))
    if fault:
        notes += (f"onnxruntime-genai cannot read the chat template: it has {fault}",)
    return notes


def template_fault(template: str) -> str:
    """Return what of a chat template is too much for genai, an empty text if nothing is."""
    if len(template) > MAX_CHARACTERS:
        return f"{len(template):,} characters, more than {MAX_CHARACTERS:,}"
    tags = list(_TAG.finditer(template))
    if len(tags) > MAX_TAGS:
        return f"{len(tags):,} tags, more than {MAX_TAGS:,}"
    lengths = [
        len(tag[0] if tag["comment"] else re.sub(_QUOTED, "", tag[0], flags=re.DOTALL))
        for tag in tags
    ]
    longest = max(lengths, default=0)
    if longest > MAX_TAG_CHARACTERS:
        return f"a tag of {longest:,} characters, more than {MAX_TAG_CHARACTERS:,}"
    return ""
