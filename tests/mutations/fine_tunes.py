"""Bugs of what surrounds a fine-tune's weights: tokens, templates and settings of its own.

Each is planted twice. A faulty reader gives the wrong model to the converter and to `verify` alike,
so that only transformers' reading of the source can contradict. A faulty writer writes it from a
source that was read rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from tests.mutations.mutation import FINE_TUNE, MATRICES, Model, Mutation
from tests.support.fine_tunes import CHAT
from tests.support.slow_tokenizers import FIRST_ID, gpt2_fine_tune

__all__ = ["FINE_TUNES", "fine_tune_source"]


def fine_tune_source(folder: Path) -> Checkpoint:
    """A fine-tune whose tokenizer has no runs of white space, with all that a fine-tune may add."""
    pad, eos, user = FIRST_ID, FIRST_ID + 1, FIRST_ID + 2
    path = gpt2_fine_tune(
        folder,
        pad="<pad>",
        eos="<eom>",
        extra_special=["<|user|>"],
        templates={"default": CHAT},
        generation={
            "bos_token_id": eos, "eos_token_id": [eos, user], "pad_token_id": pad,
            "do_sample": True, "temperature": 0.25, "top_p": 0.9, "repetition_penalty": 1.1,
        },
        likely=eos,
    )  # fmt: skip
    return read(str(path))


def in_tokenizer(change: Callable[[Tokenizer], Tokenizer]) -> Model:
    return lambda model: replace(model, tokenizer=change(model.tokenizer))


def end_of_gpt2(model: Checkpoint) -> Checkpoint:
    """Take <|endoftext|> for the end, as if every CodeGen had it."""
    tokenizer = replace(model.tokenizer, eos_token_id=model.tokenizer.bos_token_id)
    return replace(
        model, tokenizer=tokenizer, generation=replace(model.generation, eos_token_ids=())
    )


def lose_one_end(model: Checkpoint) -> Checkpoint:
    return replace(model, generation=replace(model.generation, eos_token_ids=()))


def drop_sampling(model: Checkpoint) -> Checkpoint:
    return replace(model, generation=replace(model.generation, sampling={}))


def change_temperature(model: Checkpoint) -> Checkpoint:
    sampling = {**model.generation.sampling, "temperature": 0.75}
    return replace(model, generation=replace(model.generation, sampling=sampling))


def exchange_added_tokens(t: Tokenizer) -> Tokenizer:
    """The tokenizer of another fine-tune, which added the same tokens in another order."""
    contents = [token.content for token in t.added]
    first, second = contents.index("<pad>"), contents.index("<eom>")
    contents[first], contents[second] = contents[second], contents[first]
    pairs = zip(t.added, contents, strict=True)
    added = tuple(replace(token, content=content) for token, content in pairs)
    return replace(t, added=added, eos_token_id=t.added[first].id, pad_token_id=t.added[second].id)


def make_plain_text(t: Tokenizer) -> Tokenizer:
    added = (replace(k, special=k.special and k.content != "<|user|>") for k in t.added)
    return replace(t, added=tuple(added), extra_special_tokens=())


SPECIAL = ("witness.special_tokens",)
BUGS: dict[str, tuple[tuple[str, ...], Model]] = {
    "GPT-2's end of text for a fine-tune's own": (
        ("witness.special_tokens", "witness.stop_ids", "witness.generation"), end_of_gpt2,
    ),
    "one of two ends lost": (("witness.stop_ids",), lose_one_end),
    "runs of white space added to a fine-tune's tokens": (
        ("witness.tokenizer",), in_tokenizer(Tokenizer.with_whitespace_runs),
    ),
    "the end of text for a pad token": (
        SPECIAL, in_tokenizer(lambda t: replace(t, pad_token_id=t.eos_token_id)),
    ),
    "another fine-tune's tokenizer": (SPECIAL, in_tokenizer(exchange_added_tokens)),
    "a special token made plain text": (SPECIAL, in_tokenizer(make_plain_text)),
    "a merge forgotten": (
        ("witness.tokenizer",), in_tokenizer(lambda t: replace(t, merges=t.merges[1:])),
    ),
    "the chat template dropped": (
        ("witness.chat_template",), in_tokenizer(lambda t: replace(t, chat_templates={})),
    ),
    "the chat template changed": (
        ("witness.chat_template",),
        in_tokenizer(lambda t: replace(t, chat_templates={"default": CHAT.replace("\n", " ")})),
    ),
    "settings of sampling dropped": (("witness.sampling",), drop_sampling),
    "another temperature": (("witness.sampling",), change_temperature),
}  # fmt: skip


def _mutations() -> Iterator[Mutation]:
    for name, (caught_by, change) in BUGS.items():
        common = (MATRICES, frozenset(caught_by))
        yield Mutation(name, "reader", *common, source=change, models=FINE_TUNE)
        yield Mutation(name, "writer", *common, model=change, models=FINE_TUNE)


FINE_TUNES: tuple[Mutation, ...] = tuple(_mutations())
