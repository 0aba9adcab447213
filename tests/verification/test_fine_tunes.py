"""A fine-tune with its own ends, template and sampling: right artefacts pass, faulty ones fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.generation_config import GenerationConfig
from cgconvert.verification.report.text import as_table
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.plan import Plan
from tests.support import artefacts
from tests.support.fine_tunes import CHAT, FIRST_ID, fine_tune

TYPES = ("hf-float16", "hf-phi-float16", "onnx-float32", "onnx-int8", "gguf-F16", "gguf-Q8_0")


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = fine_tune(
        tmp_path_factory.mktemp("fine-tune") / "source",
        tokens=("<eom>", "<a>", "<b>", "<c>", "<pad>"),
        roles={"eos_token": "<eom>", "pad_token": "<pad>"},
        extra_special=("<a>",),
        templates={"default": CHAT, "tool_use": f"tools{CHAT}", "two words": CHAT},
        generation={
            "eos_token_id": [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2, FIRST_ID + 3],
            "do_sample": True,
            "temperature": 0.2,
            "repetition_penalty": 1.1,
            "max_new_tokens": 64,
        },
    )
    return read(str(folder))


def failed_checks(plan: Plan, source: Checkpoint) -> set[str]:
    report = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=4, threads=1)
    assert report.passed == (not any(c.verdict == Verdict.FAIL for c in report.checks))
    return {check.name for check in report.checks if check.verdict == Verdict.FAIL}


@pytest.mark.parametrize("type_", TYPES)
def test_a_right_artefact_passes(type_: str, fine_tuned: Checkpoint, tmp_path: Path) -> None:
    plan = artefacts.write(type_, fine_tuned, tmp_path)
    report = verify(plan.output, plan.format, plan.type, fine_tuned, "cpu", new_tokens=4, threads=1)
    assert report.passed, as_table(report)


def test_an_end_that_a_gguf_cannot_name_is_no_false_alarm(tmp_path: Path) -> None:
    """The source stops at once at its fourth end; the file, whose note says so, goes on."""
    ends = [FIRST_ID + n for n in range(4)]
    folder = fine_tune(
        tmp_path / "source",
        tokens=("<eom>", "<a>", "<b>", "<c>"),
        roles={"eos_token": "<eom>"},
        generation={"eos_token_id": ends},
        likely=ends[-1],
    )
    source = read(str(folder))
    plan = artefacts.write("gguf-F16", source, tmp_path)
    assert f"eos_token_id {ends[-1]}" in "".join(plan.notes)
    assert failed_checks(plan, source) == set()


def with_old_end(source: Checkpoint) -> Checkpoint:
    """The reader's old mistake: <|endoftext|> ends whatever the tokenizer says."""
    tokenizer = source.tokenizer
    changed = replace(tokenizer, eos_token_id=tokenizer.bos_token_id)
    return replace(source, tokenizer=changed, generation=GenerationConfig())


def with_one_end(source: Checkpoint) -> Checkpoint:
    return replace(source, generation=replace(source.generation, eos_token_ids=()))


def without_templates(source: Checkpoint) -> Checkpoint:
    return replace(source, tokenizer=replace(source.tokenizer, chat_templates={}))


def without_sampling(source: Checkpoint) -> Checkpoint:
    return replace(source, generation=replace(source.generation, sampling={}))


def with_end_as_padding(source: Checkpoint) -> Checkpoint:
    tokenizer = source.tokenizer
    return replace(source, tokenizer=replace(tokenizer, pad_token_id=tokenizer.eos_token_id))


def with_plain_token(source: Checkpoint) -> Checkpoint:
    """A special token that became text."""
    added = tuple(
        replace(token, special=False) if token.content == "<a>" else token
        for token in source.tokenizer.added
    )
    return replace(source, tokenizer=replace(source.tokenizer, added=added))


@pytest.mark.parametrize("type_", ["hf-float16", "onnx-float32", "gguf-F16"])
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (with_old_end, {"settings", "end_of_text"}),
        (with_one_end, {"settings", "end_of_text"}),
        (without_templates, {"settings", "tokenizer.files"}),
        (without_sampling, {"settings"}),
        (with_end_as_padding, {"settings", "tokenizer.files"}),
        (with_plain_token, {"tokenizer.files"}),
    ],
)
def test_a_mistake_is_named(
    type_: str, mistake: Callable[[Checkpoint], Checkpoint], named: set[str],
    fine_tuned: Checkpoint, tmp_path: Path,
) -> None:  # fmt: skip
    plan = artefacts.write(type_, mistake(fine_tuned), tmp_path)
    assert failed_checks(plan, fine_tuned) & named
