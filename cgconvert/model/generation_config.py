"""The settings of generation that come with a checkpoint: where it stops, and how it samples.

They are those of generation_config.json. Without that file transformers takes what config.json says
at its top level (GenerationConfig.from_model_config), and so does this reader. Settings for one
task, under task_specific_params, are for pipelines and not read.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, first_few
from cgconvert.io.strict_json import read_json
from cgconvert.model.tokenizer import Tokenizer

__all__ = [
    "DEFAULTS",
    "GENERATION_CONFIG",
    "SAMPLING",
    "GenerationConfig",
    "generation_files",
    "ids_of",
    "read_generation_config",
]

GENERATION_CONFIG = "generation_config.json"
"""The name of the file."""

OLD_BOS, OLD_EOS = 1, 2
"""Ids in CodeGen's old configurations. They are ordinary tokens of its vocabulary."""


@dataclass(frozen=True)
class GenerationConfig:
    """What a checkpoint says of generation.

    Attributes:
        eos_token_ids: The ids at which generation stops, beside that of the tokenizer's own eos
            token, which may be among them.
        sampling: Settings of sampling, of beams and of lengths, by the names of transformers'
            GenerationConfig.
        notes: What the user should know of the file, a line each.
    """

    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)


def _is_number(least: float, most: float = math.inf) -> Callable[[object], bool]:
    """Return a test for finite numbers from `least` to `most`; a bool is no number."""

    def test(value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and least <= value <= most  # type: ignore

    return test


def _is_count(least: int) -> Callable[[object], bool]:
    """Return a test for whole numbers from `least` on that a 32-bit integer can hold."""

    def test(value: object) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and least <= value < 1 << 31  # type: ignore[operator]

    return test


def _is_list_of(test: Callable[[object], bool]) -> Callable[[object], bool]:
    """Return a test for lists of one item or more that all pass `test`."""
    return lambda value: isinstance(value, list) and bool(value) and all(map(test, value))


def _is_text(value: object) -> bool:
    """Whether the value is a text that is not empty and has no lone surrogates."""
    if not isinstance(value, str) or not value:
        return False
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_sequence_bias(value: object) -> bool:
    """Whether the value is a list of [ids, bias], as GenerationConfig has it in JSON."""
    return _is_list_of(
        lambda entry: (
            isinstance(entry, list)
            and len(entry) == 2
            and _IDS(entry[0])
            and _is_number(-math.inf)(entry[1])
        )
    )(value)


def _is_decay(value: object) -> bool:
    """Whether the value is [start index, factor]."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and _ID(value[0]) and _is_number(0)(value[1])  # type: ignore[index]


_FRACTION, _ID = _is_number(0, 1), _is_count(0)
_IDS = _is_list_of(_ID)

SAMPLING: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "max_length": ("a whole number of 1 or more", _is_count(1)),
    "max_new_tokens": ("a whole number of 1 or more", _is_count(1)),
    "min_length": ("a whole number of 0 or more", _is_count(0)),
    "min_new_tokens": ("a whole number of 0 or more", _is_count(0)),
    "max_time": ("a number of 0 or more", _is_number(0)),
    "early_stopping": ('true, false or "never"', lambda v: _is_bool(v) or v == "never"),
    "stop_strings": (
        "a text or a list of texts",
        lambda v: _is_text(v) or _is_list_of(_is_text)(v),
    ),
    "do_sample": ("true or false", _is_bool),
    "num_beams": ("a whole number of 1 or more", _is_count(1)),
    "num_beam_groups": ("a whole number of 1 or more", _is_count(1)),
    "num_return_sequences": ("a whole number of 1 or more", _is_count(1)),
    "temperature": ("a number of 0 or more", _is_number(0)),
    "top_k": ("a whole number of 0 or more", _is_count(0)),
    "top_p": ("a number from 0 to 1", _FRACTION),
    "top_h": ("a number from 0 to 1", _FRACTION),
    "min_p": ("a number from 0 to 1", _FRACTION),
    "typical_p": ("a number from 0 to 1", _FRACTION),
    "epsilon_cutoff": ("a number from 0 to 1", _FRACTION),
    "eta_cutoff": ("a number from 0 to 1", _FRACTION),
    "penalty_alpha": ("a number from 0 to 1", _FRACTION),
    "repetition_penalty": ("a number above 0", _is_number(math.ulp(0.0))),
    "encoder_repetition_penalty": ("a number above 0", _is_number(math.ulp(0.0))),
    "diversity_penalty": ("a number of 0 or more", _is_number(0)),
    "length_penalty": ("a number", _is_number(-math.inf)),
    "guidance_scale": ("a number of 0 or more", _is_number(0)),
    "no_repeat_ngram_size": ("a whole number of 0 or more", _is_count(0)),
    "encoder_no_repeat_ngram_size": ("a whole number of 0 or more", _is_count(0)),
    "bad_words_ids": ("a list of lists of ids", _is_list_of(_IDS)),
    "force_words_ids": (
        "a list of lists of ids",
        lambda v: _is_list_of(_IDS)(v) or _is_list_of(_is_list_of(_IDS))(v),
    ),
    "suppress_tokens": ("a list of ids", lambda v: v == [] or _IDS(v)),
    "begin_suppress_tokens": ("a list of ids", lambda v: v == [] or _IDS(v)),
    "forced_bos_token_id": ("an id", _ID),
    "forced_eos_token_id": ("an id or a list of ids", lambda v: _ID(v) or _IDS(v)),
    "sequence_bias": ("a list of pairs, ids and a number", _is_sequence_bias),
    "exponential_decay_length_penalty": ("a pair, an index and a factor", _is_decay),
    "renormalize_logits": ("true or false", _is_bool),
    "remove_invalid_values": ("true or false", _is_bool),
    "token_healing": ("true or false", _is_bool),
}
"""The settings that change what is generated: what each has to be, in words and as a test."""

DEFAULTS: Mapping[str, Any] = {
    "max_length": 20, "min_length": 0, "early_stopping": False, "do_sample": False,
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "diversity_penalty": 0.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "remove_invalid_values": False,
    "renormalize_logits": False,
}  # fmt: skip
"""transformers 4's defaults (configuration_utils.py: _get_generation_defaults). In config.json they
say nothing: max_length 20 would end every text."""

WITHOUT_EFFECT = frozenset(
    ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache",
     "transformers_version", "_from_model_config", "_commit_hash")
)  # fmt: skip
"""Entries of generation_config.json that are not settings of generation, or that come from the
tokenizer."""


def read_generation_config(
    folder: Path, config: Mapping[str, Any], config_path: Path, tokenizer: Tokenizer
) -> GenerationConfig:
    """Read generation_config.json, or the same settings in config.json if there is none.

    Args:
        folder: The folder of the checkpoint.
        config: The contents of its config.json.
        config_path: The path of config.json, for errors.
        tokenizer: Its tokenizer.

    Raises:
        InputError: A file is broken, or a value makes no sense.
    """
    path = folder / GENERATION_CONFIG
    if path.is_file():
        entries, notes = read_json(path), []
        unknown = [] if entries.get("_from_model_config") else _unknown(entries)
        if unknown and not entries.keys() & (SAMPLING.keys() | WITHOUT_EFFECT):
            # It may be a file of another kind, of which a note quotes nothing.
            notes.append(f"{path.name}: is left out: it has no known setting of sampling")
        elif unknown:
            verb = "is" if len(unknown) == 1 else "are"
            keys = first_few(unknown, 3, separator=", ")
            notes.append(f"{path.name}: {keys} {verb} left out: not a known setting of sampling")
    else:
        path, notes = config_path, []
        entries = {key: value for key, value in config.items() if not _is_default(key, value)}
    sampling = {}
    for key, (expected, is_valid) in SAMPLING.items():
        value = entries.get(key)
        if value is None:
            continue
        if not is_valid(value):
            raise InputError(f"{path}: {key} is {reprlib.repr(value)}, not {expected}")
        sampling[key] = value
    _check_together(sampling, path)
    eos_token_ids, eos_notes = _stopping_ids(entries, path, tokenizer)
    return GenerationConfig(eos_token_ids, sampling, (*notes, *eos_notes))


def generation_files(
    folder: Path, config: Mapping[str, Any], generation: GenerationConfig, tokenizer: Tokenizer
) -> tuple[Path, ...]:
    """Return generation_config.json if the folder has it, and it matters.

    It does if it says more than the tokenizer, or if config.json, which is read without it, does. A
    file that says nothing more is no part of what a checkpoint is made of.
    """
    path = folder / GENERATION_CONFIG
    eos_token_ids = set(generation.eos_token_ids) - {tokenizer.eos_token_id}
    says_more = bool(eos_token_ids or generation.sampling or generation.notes)
    matters = says_more or _says_more(config, tokenizer)
    return (path,) if matters and path.is_file() else ()


def _says_more(config: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether a config.json has settings, or another end than the tokenizer's and the old one."""
    if config.get("eos_token_id") not in (None, OLD_EOS, tokenizer.eos_token_id):
        return True
    return any(
        config.get(key) is not None and not _is_default(key, config[key]) for key in SAMPLING
    )


def _unknown(entries: Mapping[str, Any]) -> list[str]:
    """Return the quoted keys of entries that say something and are not known here."""
    keys = sorted(entries.keys() - SAMPLING.keys() - WITHOUT_EFFECT)
    return [reprlib.repr(key) for key in keys if entries[key]]


def _check_together(sampling: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for settings that transformers refuses together.

    Source: GenerationConfig.validate.
    """
    sequences, beams = sampling.get("num_return_sequences", 1), sampling.get("num_beams", 1)
    if sequences > beams and (beams > 1 or not sampling.get("do_sample")):
        raise InputError(
            f"{path}: num_return_sequences is {sequences}, which needs as many num_beams, or "
            "do_sample without beams"
        )
    suppressed = set(sampling.get("suppress_tokens", ()))
    for key in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = sampling.get(key, [])
        forced_ids = set(forced) if isinstance(forced, list) else {forced}
        if forced_ids and forced_ids <= suppressed:
            raise InputError(f"{path}: {key} is in suppress_tokens too, so that no token is left")


def _is_default(key: str, value: object) -> bool:
    """Whether a setting has transformers 4's default, which older config.json files spell out."""
    return (
        key in DEFAULTS
        and value == DEFAULTS[key]
        and isinstance(value, bool) == isinstance(DEFAULTS[key], bool)
    )


def _stopping_ids(
    entries: Mapping[str, Any], path: Path, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], list[str]]:
    """Return the ids under eos_token_id, and notes about them.

    The 2 of CodeGen's old configurations is left out. It is known by their bos_token_id, 1, or by
    standing alone; it is kept if it is a special token of the tokenizer.
    """
    value = entries.get("eos_token_id")
    if value is None:
        return (), []
    ids = ids_of(value, f"{path}: eos_token_id", least=-1)  # some configurations say -1 for none
    special = {token.id for token in tokenizer.added if token.special}
    is_old = entries.get("bos_token_id") == OLD_BOS or len(ids) == 1
    notes = []
    if OLD_EOS in ids and OLD_EOS not in special and is_old:
        if entries.get("bos_token_id") != OLD_BOS or len(ids) > 1:
            notes.append(
                f"{path.name}: eos_token_id {OLD_EOS} is left out: it is an ordinary token, and "
                "only old configurations of CodeGen name it"
            )
        ids = tuple(index for index in ids if index != OLD_EOS)
    return tuple(index for index in ids if index >= 0), notes


def ids_of(value: object, where: str, *, least: int = 0) -> tuple[int, ...]:
    """Return an id or a list of ids as a tuple, each once.

    Raises InputError, which begins with `where`, if the value is anything else.
    """
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(map(_is_count(least), ids)):
        raise InputError(f"{where} is {reprlib.repr(value)}, not an id or a list of ids")
    return tuple(dict.fromkeys(ids))
