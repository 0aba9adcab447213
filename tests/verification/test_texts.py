"""Texts of the user's own: how they are read and cut, and that logits are compared on them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.onnx import writer as onnx
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts import corpus
from cgconvert.texts.text import STDLIB, Text, read_text
from cgconvert.verification.prompts import PROMPTS, windows
from cgconvert.verification.verify import verify
from cgconvert.write.execute import execute
from tests.support.tampering import tokenizer


def test_a_text_is_read_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("a\r\nb ü".encode())
    text = read_text(str(path))
    assert text == Text(str(path), ("a\r\nb ü",), hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_word_stdlib_is_the_evaluation_part_and_no_other() -> None:
    text = read_text(STDLIB)
    assert text.sha256 == corpus.digest("evaluation")
    assert text.documents == tuple(corpus.text("evaluation"))
    assert corpus.text("training", 3000)[0][:500] not in "".join(text.documents)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"abc\xff", "not UTF-8: byte 3")],
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"mine.txt: .*{message}") as caught:
        read_text(str(path))
    assert "\n" not in str(caught.value)


def test_windows_are_the_beginning_of_the_text_in_order() -> None:
    made, text = tokenizer(), "x = self.select(1)\n" * 300
    ids = made.encode(text)
    for tokens in (2, 95, 96, 97, 98, 1000):
        cut = windows(Text("mine", (text,), ""), made, tokens, 96)
        joined = [token for window in cut for token in window]
        left_out = 1 if tokens % 96 == 1 else 0
        assert joined == ids[: tokens - left_out]
        assert [len(window) for window in cut[:-1]] == [96] * (len(cut) - 1)
    assert {len(w) for w in windows(Text("mine", (text,), ""), made, 1024, 2048)} == {512}
    with pytest.raises(InputError, match="mine: too short to measure on"):
        windows(Text("mine", ("x",), ""), made, 100, 96)


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
def test_logits_are_compared_on_the_texts_beside_the_prompts(
    runtime: str, source: Checkpoint, tmp_path: Path
) -> None:
    plan = onnx.plan(source, tmp_path / "out")
    execute(plan)
    text = Text("mine", ("for x in range(10):\n    print(x)\n" * 30,), "ab" * 32)
    report = verify(
        plan.output, plan.format, plan.type, source, "cpu", new_tokens=2, threads=1,
        texts=[text], text_tokens=193, runtime=runtime,
    )  # fmt: skip
    assert report.passed
    assert report.runtime["name"] == runtime
    assert report.prompts["texts"] == (
        {"name": "mine", "sha256": "ab" * 32, "sequences": 2, "tokens": 192},
    )
    assert report.prompts["lengths"][len(PROMPTS) :] == (96, 96)
    assert report.prompts["tokens"] == len(report.series["logits.kl"])
    assert report.prompts["tokens"] == sum(report.prompts["lengths"])


def test_a_runtime_of_another_format_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    plan = onnx.plan(source, tmp_path / "out")
    execute(plan)
    with pytest.raises(UsageError, match=r"does not run onnx; use onnxruntime or onnxruntime-gen"):
        verify(plan.output, plan.format, plan.type, source, "cpu", runtime="llama.cpp")
