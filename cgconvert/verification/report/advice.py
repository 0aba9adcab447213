"""What to do about each failed check, and where docs/verify.md describes the check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ADVICE", "GUIDE", "advice", "anchor", "paragraph"]

GUIDE = "docs/verify.md"
"""The document that has a heading for each check."""

_WEIGHTS = "see which tensors differ; convert again if the file was changed"
_TOKENS = "convert again with the source's tokenizer; a client would read other text"
_RUNTIME = "try another version of the runtime, or another runtime"
_TYPE = "choose a type with more bits, calibrate, or accept it with another threshold"
_READER = "report a bug: cgconvert and transformers read this source differently"

ADVICE: Mapping[str, str] = {
    "reference": "give the model that the artefact was made from as the reference",
    "provenance": "convert again, or get the files again from where they were published",
    "files": "remove what is named, or convert again into an empty folder",
    "source.groups": 'convert again and read the source with mp_num "auto"',
    "weights.geometry": _WEIGHTS,
    "weights.tensors": _WEIGHTS,
    "weights.finite": "look for NaN in the source; no runtime computes anything useful with it",
    "weights.equal": _WEIGHTS,
    "weights.error": _WEIGHTS,
    "weights.adjusted": "quantize again: calibration changes vectors less than this",
    "settings": "convert again; a client would stop or sample differently",
    "tokenizer.files": _TOKENS,
    "runtime": "fix what the message names; the artefact was not run",
    "end_of_text": "convert again; a client would not stop where the model does",
    "context": "convert again; a client would use another length of context",
    "vocabulary": "convert again; the head has not the source's rows",
    "finite": "look at weights.finite first; otherwise " + _RUNTIME,
    "padding": "convert again; a token that does not exist may be generated",
    "runtime.relative_error": _RUNTIME,
    "runtime.nmse": _RUNTIME,
    "runtime.kl_mean": _RUNTIME,
    "runtime.context_end": _RUNTIME,
    "runtime.graph": "report a bug: the graph does not compute what its weights say",
    "logits.nmse": _TYPE,
    "logits.kl_mean": _TYPE,
    "logits.kl_p99": _TYPE,
    "logits.top1": _TYPE,
    "logits.top1_sure": _TYPE,
    "logits.top5": _TYPE,
    "logits.perplexity_ratio": "above its bound: " + _TYPE + "; far below 1: check the reference",
    "calibration.loss": "quantize again; its matrices are not those that were calibrated",
    "generation": _RUNTIME,
    "cache": _RUNTIME,
    "batch": _RUNTIME,
    "tokenizer.ids": _TOKENS,
    "tokenizer.round_trip": _TOKENS,
    "witness.logits": _READER,
    "witness.special_tokens": _READER,
    "witness.chat_template": _READER,
    "witness.sampling": _READER,
    "witness.tokenizer": _READER,
    "witness.stop_ids": _READER,
    "witness.generation": _READER,
}
"""What to do if a check fails, by name of check."""


STORED = ("source.groups", "weights.", "settings", "tokenizer.")
"""Beginnings of the names of checks of what is in the files; what a runtime computes follows."""

COMPUTED = ("runtime.", "logits.", "generation", "cache", "batch", "padding", "finite")
"""Beginnings of the names of checks of what the runtime computes."""


def advice(name: str, failed: Sequence[str] = ()) -> str:
    """Say what to do about a failed check and where it is described, in one line.

    `failed` are the names of all failed checks: what is computed may be wrong only because of what
    is stored.
    """
    see = f"see {paragraph(name)}"
    causes = [cause for cause in failed if cause.startswith(STORED)]
    if name.startswith(COMPUTED) and causes:
        return f"may follow from {causes[0]}, fix that first; {see}"
    return f"{ADVICE[name]}; {see}" if name in ADVICE else see


def paragraph(name: str) -> str:
    """The place in the documents where a check is described: docs/verify.md#weightsequal."""
    return f"{GUIDE}#{anchor(name)}"


def anchor(name: str) -> str:
    """The anchor that GitHub and mkdocs give to the heading of a check; both drop full stops."""
    return name.replace(".", "")
