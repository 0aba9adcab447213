"""Native libraries in this process: a panic is one line, and what they print goes nowhere."""

from __future__ import annotations

import json
import os

import pytest
import tokenizers

from cgconvert import embedded
from cgconvert.errors import InputError
from cgconvert.io.foreign import foreign_call


def panicking_tokenizer() -> tokenizers.Tokenizer:
    """Make a tokenizer that cuts texts to 2 tokens with an overlap of 5, which panics."""
    document = json.loads((embedded.path() / "tokenizer.json").read_text())
    document["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5
    }  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def test_a_panic_is_an_error_of_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer, text = panicking_tokenizer(), "def hello_world(): return 1"
    with pytest.raises(BaseException, match="must be strictly less") as caught:
        tokenizer.encode(text)
    assert not isinstance(caught.value, Exception)
    assert "panicked" in capfd.readouterr().err
    with (
        pytest.raises(InputError, match=r"^file: cannot be run$"),
        foreign_call("file", "cannot be run"),
    ):
        tokenizer.encode(text)
    assert capfd.readouterr().err == ""


def test_stderr_is_there_again_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with foreign_call("file", "fault"):
        os.write(2, b"lost")
    with pytest.raises(KeyboardInterrupt), foreign_call("file", "fault"):
        raise KeyboardInterrupt
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_a_closed_stderr_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(descriptor: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    with foreign_call("file", "fault"):
        pass
