"""Names that Windows gives no file are told from those that it does."""

from __future__ import annotations

from pathlib import PureWindowsPath

import pytest

from cgconvert.io.file_names import is_possible_on_windows


@pytest.mark.parametrize(
    "name",
    [r"C:\models\out", r"out\m.gguf", "../out", r"..\a.b\c", "console", "com10", "a.con",
     r"\\server\share\out"],
)  # fmt: skip
def test_names_of_files(name: str) -> None:
    assert is_possible_on_windows(PureWindowsPath(name))


@pytest.mark.parametrize(
    "name",
    ["CON", "nul.gguf", r"out\com1\m.gguf", "out:b", r"C:\out\a:b", "what?", "a|b", "out.", "out ",
     "a\tb", "Lpt9.txt"],
)  # fmt: skip
def test_names_of_devices_and_forbidden_signs(name: str) -> None:
    assert not is_possible_on_windows(PureWindowsPath(name))
