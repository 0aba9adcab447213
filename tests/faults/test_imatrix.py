"""Every broken imatrix is refused in one line that names the file and the fault."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.formats.gguf.imatrix import encoded, read_imatrix
from tests.faults.cases_imatrix import IMATRICES
from tests.faults.small_model import small_decoder, small_imatrix
from tests.support.imatrices import legacy


@pytest.mark.parametrize("name", IMATRICES)
def test_a_broken_imatrix_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = IMATRICES[name]
    path = tmp_path / "source"
    path.write_bytes(make(small_imatrix()))
    with pytest.raises(InputError) as raised:
        read_imatrix(path, small_decoder())
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert re.search(message, text), text


def test_the_imatrix_is_valid_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "source"
    for write in (encoded, legacy):
        path.write_bytes(write(small_imatrix()))
        assert len(read_imatrix(path, small_decoder()).inputs) == 7


def test_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for a writer
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(InputError, match="cannot be read as an imatrix"):
            read_imatrix(path, small_decoder())
