"""Call transformers as a witness: it reads the source itself, without cgconvert's readers.

All other checks compare an artefact with what cgconvert read. A source that is read wrongly is
then wrong on both sides, and they pass. So transformers reads the source too, through a private
folder (see view), and says which ids texts have, which tokens are special, which logits the
weights give, and how a text goes on and where it stops. It never runs code that comes with a
checkpoint, and loads nothing from the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgconvert.io.progress import Progress
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import DType
from cgconvert.verification.prompts import tokenizer_texts
from cgconvert.verification.witness.model import MAX_TOKENS, ModelReading, read_model
from cgconvert.verification.witness.opening import NoWitnessError
from cgconvert.verification.witness.settings import read_settings
from cgconvert.verification.witness.tokenizer import (
    TokenizerReading,
    read_stop_ids,
    read_tokenizer,
)

__all__ = ["Witness", "call", "call_once"]


@dataclass(frozen=True)
class Witness:
    """What transformers says of a source, or in `no_tokenizer` and `no_model` why it says nothing.

    Attributes:
        tokenizer: Its reading of the tokenizer.
        stop_ids: The ids at which it stops: the tokenizer's eos and those of the source's
            generation_config.json; none if the tokenizer was not read.
        settings: The source's settings of sampling.
        model: Its reading of the model.
    """

    tokenizer: TokenizerReading | None
    no_tokenizer: str
    stop_ids: tuple[int, ...]
    settings: Mapping[str, Any]
    model: ModelReading | None
    no_model: str


def call(
    source: Checkpoint,
    texts: Sequence[str],
    openings: Sequence[Sequence[int]],
    new_tokens: int,
    weight_dtype: DType | None,
    progress: Progress,
) -> Witness:
    """Have transformers read a source, and return what it read.

    Where it cannot read a part, the result has the reason instead.

    Args:
        source: The checkpoint.
        texts: The texts that its tokenizer encodes and decodes.
        openings: The prompts, in ids, that its model continues.
        new_tokens: How many tokens are generated after each opening; MAX_TOKENS if it is more.
        weight_dtype: The type that weights are rounded to before text is generated; None leaves
            them as stored.
        progress: Gets one step with two advances.
    """
    progress.step("asking transformers about the source", 2)
    tokenizer, no_tokenizer = None, ""
    try:
        tokenizer = read_tokenizer(source, texts)
    except NoWitnessError as error:
        no_tokenizer = str(error)
    progress.advance(1)
    stop_ids = read_stop_ids(source, tokenizer)
    model, no_model = None, ""
    try:
        model = read_model(source, openings, min(new_tokens, MAX_TOKENS), stop_ids, weight_dtype)
    except NoWitnessError as error:
        no_model = str(error)
    progress.advance(1)
    return Witness(tokenizer, no_tokenizer, stop_ids, read_settings(source), model, no_model)


def call_once(
    source: Checkpoint,
    source_sha256: str,
    openings: Sequence[Sequence[int]],
    new_tokens: int,
    weight_dtype: DType | None,
    progress: Progress,
) -> Witness:
    """Call the witness as `call` does, on all tokenizer texts; its last answer is kept.

    So it answers once if several artefacts of one source are verified one after the other.
    """
    question = (source_sha256, tuple(map(tuple, openings)), new_tokens, weight_dtype)
    if _last and _last[0][0] is source and _last[0][1] == question:
        return _last[0][2]
    answer = call(source, tokenizer_texts(), openings, new_tokens, weight_dtype, progress)
    _last[:] = [(source, question, answer)]
    return answer


_last: list[tuple[Checkpoint, object, Witness]] = []
"""The last source, question and answer of `call_once`; empty before the first."""
