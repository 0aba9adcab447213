"""An interruption waits for the end of what must not be half done, and is not lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cgconvert.codecs.plain import F32
from cgconvert.formats.read import read
from cgconvert.io.uninterrupted import uninterrupted
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tensor import InMemory
from cgconvert.write import crew as crews
from cgconvert.write.execute import execute
from cgconvert.write.plan import FilePlan, Plan, lay_out


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def test_a_signal_is_answered_at_the_end() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_to_another_thread_too() -> None:
    done = []

    def to_itself() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    @uninterrupted()
    def work() -> None:
        thread = threading.Thread(target=to_itself)
        thread.start()
        thread.join()
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("call", ["os.open", "fcntl.flock", "os.fstat", "torch.set_num_threads",
                                  "ProcessPoolExecutor", "shutil.rmtree"])  # fmt: skip
def test_nothing_is_left_whenever_it_comes(
    call: str,
    tmp_path: Path,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    items = lay_out([("a", InMemory(torch.ones(4, 4)), F32)])
    files = (FilePlan("x", b"", items),)
    plan = Plan(checkpoint, tmp_path / "new" / "out", True, "x", "F32", files)
    module = "cgconvert." + ("write.crew" if call[0] in "tP" else "io.staging")
    monkeypatch.setattr(crews, "SMALL_BYTES", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    original = crews.ProcessPoolExecutor if call[0] == "P" else _named(module, call)

    def interrupting(*arguments: object, **how: object) -> object:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        return original(*arguments, **how)

    monkeypatch.setattr(f"{module}.{call}", interrupting)
    monkeypatch.setattr(crews, "SMALL_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    torch.set_num_threads(threads)
    assert os.listdir(tmp_path) == ["source-safetensors"]
    assert capfd.readouterr().err == ""


def _named(module: str, call: str) -> Callable[..., object]:
    import importlib

    owner, name = call.split(".")
    found: Callable[..., object] = getattr(getattr(importlib.import_module(module), owner), name)
    return found
