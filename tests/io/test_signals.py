"""An interrupt waits for the end of what must not be half made, and is not lost."""

from __future__ import annotations

import os
import pkgutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cgconvert.codecs.encoding import F32
from cgconvert.formats.read import read
from cgconvert.io.signals import uninterrupted
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.write import execute as execution
from cgconvert.write.execute import execute
from cgconvert.write.plan import FilePlan, Plan, lay_out


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return read(str(make_checkpoint()))


def test_a_signal_is_handled_at_the_end_of_the_block() -> None:
    calls = []

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        calls.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_to_another_thread_waits_too() -> None:
    calls = []

    def to_itself() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    @uninterrupted()
    def work() -> None:
        thread = threading.Thread(target=to_itself)
        thread.start()
        thread.join()
        calls.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert calls == [1]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("call", ["os.open", "fcntl.flock", "os.fstat", "torch.set_num_threads",
                                  "ProcessPoolExecutor", "shutil.rmtree"])  # fmt: skip
def test_an_interrupt_at_any_call_leaves_nothing_behind(
    call: str,
    tmp_path: Path,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tensors = lay_out([("a", InMemoryTensor(torch.ones(4, 4)), F32)])
    files = (FilePlan("x", b"", tensors),)
    plan = Plan(checkpoint, tmp_path / "new" / "out", True, "x", "F32", files)
    modules = {"s": "cgconvert.io.staging", "P": "cgconvert.io.parallel"}
    module = modules.get(call[0], "cgconvert.io.system.locks")
    target = call if call[0] == "t" else f"{module}.{call}"  # torch is imported late
    monkeypatch.setattr(execution, "SMALL_BYTES", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    original = ProcessPoolExecutor if call[0] == "P" else _named(target)

    def interrupting(*arguments: Any, **options: Any) -> object:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(target, interrupting)
    monkeypatch.setattr(execution, "SMALL_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    torch.set_num_threads(threads)
    assert os.listdir(tmp_path) == ["source-safetensors"]
    assert capfd.readouterr().err == ""


def _named(target: str) -> Callable[..., object]:
    function: Callable[..., object] = pkgutil.resolve_name(target)
    return function
