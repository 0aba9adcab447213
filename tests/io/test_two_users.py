"""Another user prepares names beside an output: none of them is used, followed or waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.two_users import NOBODY, ROOT, User, call_as_nobody, run_as


def test_root_and_nobody_share_a_folder_and_nothing_else(shared_folder: Path) -> None:
    call_as_nobody((shared_folder / "theirs").write_text, "text")
    assert (shared_folder / "theirs").stat().st_uid == NOBODY
    (shared_folder / "own").write_text("text")
    with pytest.raises(PermissionError):
        call_as_nobody((shared_folder / "own").write_text, "changed")
    users: dict[User, int] = {"root": ROOT, "nobody": NOBODY}
    for name, number in users.items():
        output = f"{name}.gguf"
        ending = run_as(name, "to-gguf", "codegen-tiny-mono", "-o", output, cwd=shared_folder)
        assert ending.returncode == 0, ending.stderr
        assert (shared_folder / output).stat().st_uid == number
