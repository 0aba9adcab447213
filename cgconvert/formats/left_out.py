"""Name the settings of a source that a format has no place for."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

__all__ = ["describe_unheld", "left_out_note"]

WITHOUT_EFFECT: Mapping[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "min_new_tokens": 0,
    "early_stopping": False,
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
}
"""The value of each setting with which it changes nothing: transformers' defaults. Its version 4
has 20 as the default of max_length, and old configurations repeat it."""


def describe_unheld(sampling: Mapping[str, Any], held: Collection[str]) -> list[str]:
    """Return a phrase for each setting that has an effect and whose name is not in `held`.

    `sampling` are settings by the names of transformers' GenerationConfig.
    """
    return [
        f"{name} ({reprlib.repr(value)})"
        for name, value in sorted(sampling.items())
        if name not in held and value != WITHOUT_EFFECT.get(name)
    ]


def left_out_note(place: str, phrases: Iterable[str], remark: str = "") -> tuple[str, ...]:
    """Return the note that `place` has no place for these, none if there are none.

    `remark` is the end of the line.
    """
    text = ", ".join(phrases)
    return (f"{place} cannot hold {text}{remark}",) if text else ()
