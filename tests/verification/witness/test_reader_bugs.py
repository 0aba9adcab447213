"""verify's witness: transformers' own reading of a source catches what cgconvert reads wrongly.

A mistake in a reader is on both sides of every other check: the artefact is made from it, and the
reference too. Here each is planted in the reader itself, so that conversion and `verify` share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert.formats.huggingface import reader
from cgconvert.formats.read import read
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.generation_config import GenerationConfig
from cgconvert.model.tensor_names import TensorNames
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.verify import verify
from tests.support.artefacts import write
from tests.support.fine_tunes import CHAT, FIRST_ID, GEOMETRY, fine_tune
from tests.support.slow_tokenizers import gpt2_fine_tune


def report_on(source: Checkpoint, folder: Path, type_: str = "hf-float16") -> Report:
    plan = write(type_, source, folder)
    return verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=4, threads=1)


def witnesses(report: Report) -> dict[str, Check]:
    return {c.name: c for c in report.checks if c.name.startswith("witness.")}


def failed(report: Report) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.verdict == Verdict.FAIL}


Patch = Callable[[pytest.MonkeyPatch], None]


def change_tokenizer(change: Callable[[Tokenizer], Tokenizer]) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = Tokenizer.load
        monkeypatch.setattr(Tokenizer, "load", lambda *arguments: change(right(*arguments)))

    return patch


def change_decoder(change: Callable[[Decoder], Decoder]) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = TensorNames.decoder
        monkeypatch.setattr(TensorNames, "decoder", lambda *arguments: change(right(*arguments)))

    return patch


def wrong_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family.MP_NUM, "codegen", 2)


def end_of_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take <|endoftext|> for the end of every text, whatever the source's files say."""
    change_tokenizer(lambda t: replace(t, eos_token_id=t.bos_token_id))(monkeypatch)
    monkeypatch.setattr(reader, "read_generation_config", lambda *_: GenerationConfig())


READER_BUGS: dict[str, tuple[Patch, Callable[[Path], Path], str, str]] = {
    "runs of white space over a fine-tune's pad token": (
        change_tokenizer(Tokenizer.with_whitespace_runs),
        lambda folder: gpt2_fine_tune(folder, "<pad>"),
        "witness.tokenizer",
        "transformers reads [220, 220, 220] in the source",
    ),
    "the end of text of GPT-2 for a fine-tune's own": (
        end_of_gpt2,
        lambda folder: fine_tune(
            folder, tokens=["<eom>"], roles={"eos_token": "<eom>"}, likely=FIRST_ID
        ),
        "witness.special_tokens",
        "eos is 3967 '<|endoftext|>', in the source transformers reads 4006 '<eom>'",
    ),
    "the pad token dropped": (
        change_tokenizer(lambda t: replace(t, pad_token_id=t.eos_token_id)),
        lambda folder: gpt2_fine_tune(folder, "<pad>"),
        "witness.special_tokens",
        "pad is 3967 '<|endoftext|>', in the source transformers reads 3968 '<pad>'",
    ),
    "the chat template dropped": (
        change_tokenizer(lambda t: replace(t, chat_templates={})),
        lambda folder: fine_tune(folder, templates={"default": CHAT}),
        "witness.chat_template",
        "the template 'default' of the source is missing",
    ),
    "half of the merges forgotten": (
        change_tokenizer(lambda t: replace(t, merges=t.merges[: len(t.merges) // 2])),
        fine_tune,
        "witness.tokenizer",
        "transformers reads",
    ),
    "qkv_proj read in 2 groups": (wrong_groups, fine_tune, "witness.logits", "the whole model"),
    "the head taken for tied": (
        change_decoder(lambda d: replace(d, head=d.wte)),
        fine_tune,
        "witness.logits",
        "the whole model",
    ),
    "layers read in another order": (
        change_decoder(lambda d: replace(d, layers=d.layers[::-1])),
        lambda folder: fine_tune(folder, geometry=replace(GEOMETRY, n_layer=2)),
        "witness.logits",
        "the whole model",
    ),
}
"""Bugs of a reader: how each is planted, in which source, and the check and words that name it."""


@pytest.mark.parametrize("bug", READER_BUGS)
def test_a_bug_in_the_reader_is_caught_although_the_reference_shares_it(
    bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, make_source, check, words = READER_BUGS[bug]
    patch(monkeypatch)
    source = read(str(make_source(tmp_path / "source")))
    faults = failed(report_on(source, tmp_path))
    assert words in faults[check]
    assert all(name.startswith("witness.") for name in faults)  # no other check can see it
