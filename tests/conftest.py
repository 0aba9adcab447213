"""Checkpoints that tests share. No runtime is optional: a missing one fails its tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.io.parallel import stop_workers
from cgconvert.io.system.signals import INTERRUPTS
from cgconvert.model import family
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.testing import synthetic
from tests.support import two_users

# Tiny models are slower on several threads, far slower where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; what is printed into a pipe is not wrapped

SMALL = Geometry(
    n_layer=2, n_embd=256, n_head=4, rotary_dim=32, n_positions=128, vocab_size=4096, mp_num=4
)


def cut(size: str) -> Geometry:
    """A published geometry cut to two layers and to a vocabulary for the embedded tokenizer.

    CGCONVERT_TEST_VOCABULARY=51200 makes it whole, for a longer run by hand.
    """
    rows = int(os.environ.get("CGCONVERT_TEST_VOCABULARY", "4096"))
    return replace(family.SIZES[size], n_layer=2, vocab_size=rows)


def first_layers(count: int, positions: int = 512) -> Checkpoint:
    """The embedded model cut to its first `count` layers and `positions`: trained, and quick."""
    whole = read(embedded.NAME)
    geometry = replace(whole.geometry, n_layer=count, n_positions=positions)
    decoder = replace(whole.decoder, geometry=geometry, layers=whole.decoder.layers[:count])
    return replace(
        whole, decoder=decoder, config={**whole.config, "n_layer": count, "n_positions": positions}
    )


LINUX_TESTS = {
    "cli/test_streams.py": "redirects to /dev/full",
    "decoys/test_opened_files.py": "strace is Linux's",
    "faults": "a server forks itself for every command, and sets limits with resource",
    "io/test_folders.py": "opens folders without a path, and makes pipes",
    "io/test_cache.py": "makes pipes, and gives folders rights",
    "io/test_parallel.py": "looks at forked processes in /proc",
    "io/test_signals.py": "sends SIGHUP to itself",
    "sources/test_snapshot.py": "the Hub's cache is made of links",
    "sources/test_unpacked.py": "knows files by the times of their inodes",
    "test_portable.py": "compares Linux's ways with the portable ones",
    "write/test_execute.py": "holds a lock with fcntl",
    "write/test_hashing.py": "writes with pwrite",
    "write/test_writer.py": "hashes with the server of faults",
}
"""Tests that need what only Linux has, and what that is."""

ROOT_TESTS = {
    "io/test_cache_two_users.py": "becomes another user, which only root can",
    "faults/test_two_users.py": "becomes another user, which only root can",
}
"""Tests that need root, and what for."""

LEFT_OUT = {
    **({} if sys.platform == "linux" and hasattr(os, "fork") else LINUX_TESTS),
    **({} if two_users.IS_POSSIBLE else ROOT_TESTS),
}

collect_ignore = list(LEFT_OUT)


def pytest_report_header() -> list[str]:
    """Name the tests that this system leaves out: pytest says nothing of what is not collected."""
    return [f"left out: {path}: {reason}" for path, reason in LEFT_OUT.items()]


@pytest.fixture(params=["sticky", "not sticky"])
def shared_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that root and nobody can write, as /tmp is and without the sticky bit."""
    with two_users.make_shared_folder(sticky=request.param == "sticky") as folder:
        yield folder


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    return embedded.path()


@pytest.fixture(scope="session")
def small_state() -> synthetic.RandomState:
    return synthetic.RandomState(SMALL, seed=1, sharpness=4)


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a cache of its own, for unpacked tarballs, references and hashes."""
    monkeypatch.setenv("CGCONVERT_CACHE", str(tmp_path_factory.mktemp("cache") / "cgconvert"))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Reset signal handlers, which commands and a shell's `&` leave ignored."""
    own: dict[signal.Signals, Callable[..., object] | signal.Handlers] = {
        number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        for number in INTERRUPTS
    }
    for number, handler in own.items():
        signal.signal(number, handler)
    yield
    for number, handler in own.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _processes() -> Iterator[None]:
    """No kept worker outlives a test: workers hold what was patched when they were forked."""
    yield
    stop_workers()


@pytest.fixture
def make_checkpoint(
    tmp_path: Path, small_state: synthetic.RandomState, tokenizer_folder: Path
) -> Callable[..., Path]:
    """Return a function that writes the small random model in a layout and returns its path."""

    def make(
        layout: str = "safetensors",
        state: synthetic.State | None = None,
        geometry: Geometry = SMALL,
        name: str = "codegen-small-mono",
    ) -> Path:
        folder = tmp_path / f"source-{layout}"
        return synthetic.write(
            layout, state or small_state, geometry, folder, name, tokenizer_folder
        )

    return make
