"""An artefact with fewer rows of the vocabulary than its source fails; it is no error, no crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from tests.support.artefacts import write
from tests.support.tampering import tokenizer

NAMES = ["hf-float16", "hf-phi-float32", "onnx-float32", "onnx-int4", "gguf-F16", "gguf-Q8_0"]
ROWS = {
    "fewer padded rows": (310, 310),
    "rows of tokens lacking": (280, 280),
    "embedding alone": (310, None),
    "head alone": (None, 310),
    "embedding alone, rows of tokens": (280, None),
    "head alone, rows of tokens": (None, 280),
}


def fewer(decoder: Decoder, embedding: int | None, head: int | None) -> Decoder:
    """The first rows of each, and a configuration that agrees with them."""
    rows = [count or decoder.geometry.vocab_size for count in (embedding, head)]
    cut = [np.arange(count) for count in rows]
    return replace(
        decoder,
        geometry=replace(decoder.geometry, vocab_size=min(rows)),
        wte=decoder.wte.rows(cut[0]),
        head=decoder.head.rows(cut[1]),
        head_bias=decoder.head_bias.rows(cut[1]),
    )


def without_last(made: Tokenizer, size: int) -> Tokenizer:
    """A tokenizer that lacks the last white-space runs, as a GGUF of few rows would have it."""
    return replace(made, added=tuple(token for token in made.added if token.id < size))


@pytest.mark.parametrize("fault", ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_fewer_rows_of_the_vocabulary_fail(
    name: str, fault: str, source: Checkpoint, tmp_path: Path
) -> None:
    rows = ROWS[fault]
    assert 280 < tokenizer().size < 310
    wrong = replace(source, decoder=fewer(source.decoder, *rows))
    if "gguf" in name:  # its tokens are written one a row, so there cannot be more
        least = min(count for count in rows if count)
        wrong = replace(wrong, tokenizer=without_last(wrong.tokenizer, least))
    plan = write(name, wrong, tmp_path)
    report = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=2, threads=1)
    checks = {c.name: c for c in report.checks if c.verdict == Verdict.FAIL}
    embedding, head = rows
    detail = checks["weights.tensors"].detail
    assert (f"[{embedding}, 256], not [320, 256]" in detail) == (embedding is not None)
    assert checks["weights.tensors"].value == (embedding is not None) + 2 * (head is not None)
    if head is not None:
        assert "vocabulary" in checks or "runtime" in checks
