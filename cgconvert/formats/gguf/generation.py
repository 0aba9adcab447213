"""Write and read a GGUF's metadata on generation: stop ids, sampling and chat templates.

Keys: gguf-py's constants.py, and src/llama-arch.cpp of llama.cpp. llama.cpp's programs take the
settings of sampling as defaults (common/common.cpp: common_init_sampler_from_model). It reads each
of them as text, so the types of the numbers are gguf-py's.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cgconvert.errors import InputError
from cgconvert.formats.left_out import describe_flags, describe_unheld, left_out_note
from cgconvert.model.chat_templates import DEFAULT
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.generation_config import SAMPLING, GenerationConfig
from cgconvert.model.tokenizer import Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "CHAT_TEMPLATES",
    "ENDING_TEXTS",
    "EXTRA_ROLES",
    "SAMPLING_KEYS",
    "SAMPLING_PREFIX",
    "TEMPLATE_NAME",
    "GenerationMetadata",
    "generation_metadata",
    "read_chat_templates",
    "read_generation_config",
]

SAMPLING_PREFIX = "general.sampling."

SAMPLING_KEYS: Mapping[str, str] = {
    "temperature": f"{SAMPLING_PREFIX}temp",
    "top_k": f"{SAMPLING_PREFIX}top_k",
    "top_p": f"{SAMPLING_PREFIX}top_p",
    "min_p": f"{SAMPLING_PREFIX}min_p",
    "repetition_penalty": f"{SAMPLING_PREFIX}penalty_repeat",
}
"""The keys of settings that llama.cpp has too, by transformers' names."""

PENALTY_RANGE = f"{SAMPLING_PREFIX}penalty_last_n"
"""How many of the last tokens the penalty looks at; -1 for the whole context, as transformers."""

INTEGERS = ("top_k",)

CHAT_TEMPLATE = "tokenizer.chat_template"
CHAT_TEMPLATES = "tokenizer.chat_templates"
"""The list of the names of templates beside the default one."""

TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""A template's name that can be part of a key."""

EXTRA_ROLES: Mapping[str, str] = {
    "sep_token": gguf.Keys.Tokenizer.SEP_ID,
    "mask_token": gguf.Keys.Tokenizer.MASK_ID,
}
"""The keys of tokens with other roles, by the names in a tokenizer's configuration."""

ENDING_TEXTS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
     "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>")
)  # fmt: skip
"""Tokens at which llama.cpp stops whatever the metadata say (src/llama-vocab.cpp: special_eog_ids).
Later releases have more."""

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class GenerationMetadata:
    """The entries of a file.

    Attributes:
        sampling: Settings of sampling, by key.
        ids: The ids of tokens with a role, by key.
        suppressed: Ids that samplers never pick.
        templates: Chat templates by name.
        notes: What has no place in a file.
    """

    sampling: Mapping[str, float | int]
    ids: Mapping[str, int]
    suppressed: tuple[int, ...]
    templates: Mapping[str, str]
    notes: tuple[str, ...]


def generation_metadata(checkpoint: Checkpoint) -> GenerationMetadata:
    """Return the metadata for what a checkpoint says of generation.

    What has no key in a GGUF is left out, with a note.
    """
    tokenizer, settings = checkpoint.tokenizer, checkpoint.generation.sampling
    ids, unnamed = _ids(checkpoint)
    sampling, held = _sampling(settings)
    suppressed = settings.get("suppress_tokens", [])
    templates = {
        name: template
        for name, template in sorted(tokenizer.chat_templates.items())
        if template and TEMPLATE_NAME.fullmatch(name)
    }
    phrases = [
        *describe_unheld(settings, held),
        *(f"eos_token_id {index}" for index in unnamed),
        *(f"{role} ({token})" for role, token in sorted(tokenizer.extra_roles.items())
          if role not in EXTRA_ROLES),
        *describe_flags(tokenizer, "lstrip", "rstrip", "single_word"),
        *(f"the chat template {name!r}" for name, template in tokenizer.chat_templates.items()
          if template and name not in templates),
    ]  # fmt: skip
    return GenerationMetadata(
        sampling,
        ids,
        tuple(sorted({index for index in suppressed if index < tokenizer.size})),
        templates,
        left_out_note("a GGUF file", phrases, "; left out"),
    )


def _ids(checkpoint: Checkpoint) -> tuple[dict[str, int], list[int]]:
    """Return the ids of roles by key, and the ids of ends that have no key.

    llama.cpp stops at eos, eot and eom. The ends that it knows by their text need no key; they get
    those that are left. A file always has an eot: llama.cpp would look for one by text.
    """
    keys, tokenizer = gguf.Keys.Tokenizer, checkpoint.tokenizer
    texts = {token.id: token.content for token in tokenizer.added}
    own, *further = checkpoint.eos_token_ids
    further.sort(key=lambda index: texts.get(index) in ENDING_TEXTS)
    ids = {keys.BOS_ID: tokenizer.bos_token_id, keys.EOS_ID: own, keys.EOT_ID: own}
    ids |= dict(zip((keys.EOT_ID, keys.EOM_ID), further, strict=False))
    ids |= {keys.UNK_ID: tokenizer.unk_token_id, keys.PAD_ID: tokenizer.pad_token_id}
    content_ids = {token.content: token.id for token in tokenizer.added}
    ids |= {
        EXTRA_ROLES[role]: content_ids[token]
        for role, token in sorted(tokenizer.extra_roles.items())
        if role in EXTRA_ROLES
    }
    return ids, [index for index in further[2:] if texts.get(index) not in ENDING_TEXTS]


def _sampling(settings: Mapping[str, Any]) -> tuple[dict[str, float | int], set[str]]:
    """Return the settings by key, and the names of those that are held.

    A temperature of 0 is greedy, which transformers says by do_sample. Where a source samples and
    names no temperature, it is 1, and llama.cpp's own default is another.
    """
    values = {name: settings[name] for name in SAMPLING_KEYS if name in settings}
    if settings.get("do_sample") is False:
        values["temperature"] = 0.0
    elif settings.get("do_sample"):
        values.setdefault("temperature", 1.0)
    values = {name: v for name, v in values.items() if abs(v) <= LARGEST}
    sampling: dict[str, float | int] = {
        SAMPLING_KEYS[name]: value if name in INTEGERS else float(value)
        for name, value in values.items()
    }
    if values.get("repetition_penalty", 1) != 1:
        sampling[PENALTY_RANGE] = -1
    held = {name for name, value in values.items() if settings.get(name) == value}
    return sampling, held | {"do_sample", "suppress_tokens"}


def read_generation_config(
    path: Path, metadata: Mapping[str, Any], tokenizer: Tokenizer, suppressed: Iterable[int]
) -> GenerationConfig:
    """Read where generation stops, and the settings of sampling, by transformers' names.

    `suppressed` are the ids that samplers never pick. Raises InputError for a value that makes no
    sense.
    """
    keys = gguf.Keys.Tokenizer
    ends = [metadata[key] for key in (keys.EOS_ID, keys.EOT_ID, keys.EOM_ID) if key in metadata]
    for key, end in zip((keys.EOS_ID, keys.EOT_ID, keys.EOM_ID), ends, strict=False):
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise InputError(f"{path}: {key} is {reprlib.repr(end)}, not an id")
    sampling: dict[str, Any] = {}
    for name, key in SAMPLING_KEYS.items():
        if key not in metadata:
            continue
        value = metadata[key]
        if isinstance(value, float):
            value = float(str(np.float32(value)))  # the shortest decimal: 0.2, not 0.20000000298
        elif name == "top_k" and isinstance(value, int):
            value = max(value, 0)  # llama.cpp takes all tokens for 0 and less
        expected, is_valid = SAMPLING[name]
        if not is_valid(value):
            raise InputError(f"{path}: {key} is {reprlib.repr(value)}, not {expected}")
        sampling[name] = value
    if "temperature" in sampling:
        sampling["do_sample"] = sampling["temperature"] > 0
        if not sampling["do_sample"]:
            del sampling["temperature"]
    never = [index for index in suppressed if index < tokenizer.size]
    if never:
        sampling["suppress_tokens"] = never
    unread = [
        key
        for key in metadata
        if key.startswith(SAMPLING_PREFIX) and key not in (*SAMPLING_KEYS.values(), PENALTY_RANGE)
    ]
    notes = [f"{path.name}: {key} is left out, as transformers has no such setting"
             for key in unread]  # fmt: skip
    return GenerationConfig(tuple(dict.fromkeys(ends)), sampling, tuple(notes))


def read_chat_templates(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Read the chat templates, by name. Raises InputError for one that is not a text."""
    templates = {}
    for key, value in metadata.items():
        name = key.removeprefix(f"{CHAT_TEMPLATE}.")
        if key == CHAT_TEMPLATE:
            name = DEFAULT
        elif name == key:
            continue
        if not isinstance(value, str):
            raise InputError(f"{path}: {key} is not a text")
        templates[name] = value
    return templates
