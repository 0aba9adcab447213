"""What `generate` prints on a terminal, and into a pipe."""

from __future__ import annotations

import sys

import pytest

from cgconvert.cli import generate

TEXT = "def f():\n\treturn '\x1b[2J\u202e'"


@pytest.mark.parametrize(
    ("is_terminal", "printed"), [(True, "def f():\n\treturn '\\x1b[2J\\u202e'"), (False, TEXT)]
)
def test_a_terminal_gets_no_control_characters(
    is_terminal: bool,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model can write sequences that a terminal obeys; a file gets what it wrote."""
    monkeypatch.setattr(generate, "stream_generate", lambda *_, **__: iter([TEXT]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    generate.run("model", "prompt")
    assert capsys.readouterr().out == f"{printed}\n"
