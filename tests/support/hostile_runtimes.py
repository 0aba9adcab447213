"""Runtimes that end, hang, take memory, open sockets or write, as native code of a library may."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from cgconvert.errors import InputError, MissingRuntimeError, UsageError, VerificationError
from cgconvert.io.admitted import AdmittedFiles, admitting
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.runtimes.runtime import Runtime

__all__ = ["ACTIONS", "CrashingLlama", "HangingLlama", "HostileRuntime"]


def crash() -> None:
    ctypes.string_at(0)


def take_memory() -> None:
    blocks = []
    while True:
        blocks.append(np.ones(1 << 20))


def wait_for_ever() -> None:
    while True:
        time.sleep(0.01)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def speak() -> None:
    os.write(1, b"out\n")
    os.write(2, b"err\n")
    print("more", file=sys.stderr, flush=True)


def open_sockets() -> None:
    opened = []
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        with contextlib.suppress(OSError):
            opened.append(socket.socket(family, socket.SOCK_STREAM).family.name)
    raise InputError(f"opened {opened}")


def write_into_home() -> None:
    try:
        (Path.home() / ".cache").mkdir()
    except OSError:
        raise InputError("no home") from None
    raise InputError(f"{Path.home()} is a home")


ACTIONS: Mapping[str, Callable[[], None]] = {
    "crash": crash,
    "abort": os.abort,
    "exit": lambda: os._exit(7),
    "kill": kill_itself,
    "memory": take_memory,
    "hang": wait_for_ever,
    "raise": fail(KeyError("first\nsecond")),
    "no memory": fail(MemoryError("bad allocation")),
    "usage": fail(UsageError("device cuda: none")),
    "missing": fail(MissingRuntimeError("llama-cpp-python", "llamacpp")),
    "input": fail(InputError("broken")),
    "verification": fail(VerificationError("not finite")),
    "speak": speak,
    "sockets": open_sockets,
    "home": write_into_home,
    "nothing": lambda: None,
}
"""What happens when the file opened has this text, by "load" or "feed", a colon, and the action."""


class HostileRuntime(Runtime):
    """Does what the text of its file says, when it is opened or when it is fed."""

    name, package, version = "hostile", "numpy", "1"
    n_positions, tokenizer_size, eos_token_ids = 16, 4, (3,)

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.moment, _, action = path.read_text("utf-8").partition(":")
        self.act = ACTIONS[action]
        if self.moment == "load":
            self.act()

    @classmethod
    def admit(cls, path: Path) -> AdmittedFiles:
        with admitting(path, path.parent) as files:
            files.path = files.link(path.name)
        return files

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        return cls(path, device)

    def reset(self) -> None:
        pass

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        if self.moment == "feed":
            self.act()
        return np.tile(np.arange(4, dtype=np.float32), (len(ids), 1))

    def tokenize(self, text: str) -> list[int]:
        return [1, 2]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(0xD800 + index) for index in ids)


class CrashingLlama(LlamaCppRuntime):
    """llama.cpp that crashes at the second token that is computed alone."""

    steps = 0

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        if len(ids) == 1:
            self.steps += 1
        if self.steps == 2:
            crash()
        return super().feed_last(ids)


class HangingLlama(LlamaCppRuntime):
    """llama.cpp that does not come back from computing."""

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        wait_for_ever()
        return super().feed_last(ids)
