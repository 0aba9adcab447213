"""The small model as transformers saves it, and a folder that waits for other weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cgconvert.formats.read import read
from cgconvert.testing import synthetic
from tests.conftest import SMALL
from tests.support.state_dicts import (
    NAME,
    State,
    gguf_bytes,
)


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    small_state: synthetic.RandomState,
    tokenizer_folder: Path,
) -> Path:
    """The model as transformers saves it."""
    folder = tmp_path_factory.mktemp("plain")
    return synthetic.write("safetensors", small_state, SMALL, folder, NAME, tokenizer_folder)


@pytest.fixture(scope="module")
def state(plain: Path) -> State:
    return load_file(plain / "model.safetensors")


@pytest.fixture(scope="module")
def plain_bytes(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_bytes(read(str(plain)), tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    """A folder with the configuration and tokenizer of the model, without weights."""
    folder = tmp_path / "source" / NAME
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder
