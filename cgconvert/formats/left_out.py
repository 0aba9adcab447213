"""Name the settings of a source that a format has no place for."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cgconvert.model.generation_config import DEFAULTS
from cgconvert.model.tokenizer import Tokenizer

__all__ = ["describe_flags", "describe_unheld", "left_out_note"]

WITHOUT_EFFECT: Mapping[str, Any] = {
    **{name: value for name, value in DEFAULTS.items() if name != "top_k"},
    "min_new_tokens": 0,
    "min_p": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "token_healing": False,
}
"""The value of each setting with which it changes nothing: transformers' defaults. Its version 4
has 20 as the default of max_length, and old configurations repeat it."""


def describe_unheld(sampling: Mapping[str, Any], held: Collection[str]) -> list[str]:
    """Return a phrase for each setting that has an effect and that the written file does not hold.

    `sampling` are the source's settings by the names of transformers' GenerationConfig, `held` are
    the names of those that the file holds.
    """
    return [
        f"{name} ({reprlib.repr(value)})"
        for name, value in sorted(sampling.items())
        if name not in held and value != WITHOUT_EFFECT.get(name)
    ]


def describe_flags(tokenizer: Tokenizer, *flags: str) -> list[str]:
    """Return a phrase for each added token that has one of these flags of AddedToken set."""
    return [
        f"{flag} of the token {token.content!r}"
        for token in tokenizer.added
        for flag in flags
        if getattr(token, flag)
    ]


def left_out_note(place: str, phrases: Iterable[str], remark: str = "") -> tuple[str, ...]:
    """Return the note that `place` has no place for these, none if there are none.

    `remark` is the end of the line.
    """
    text = ", ".join(phrases)
    return (f"{place} cannot hold {text}{remark}",) if text else ()
