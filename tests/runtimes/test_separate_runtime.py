"""Runtimes in a process of their own: how they end, what passes, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgconvert.errors import (
    CgconvertError,
    InputError,
    MissingRuntimeError,
    RuntimeEndedError,
    UsageError,
    VerificationError,
)
from cgconvert.io.process_messages import receive, send
from cgconvert.io.system.separate_process import _SERVER
from cgconvert.runtimes.limits import MEMORY_VARIABLE, MOST_SECONDS, SECONDS_VARIABLE, Limits
from cgconvert.runtimes.runtime import Runtime
from cgconvert.runtimes.separate_runtime import open_separately
from tests.support.hostile_runtimes import HostileRuntime

ROOT = Path(__file__).resolve().parents[2]

ENDS: dict[str, tuple[type[CgconvertError], str]] = {
    "crash": (RuntimeEndedError, r"hostile crashed \(SIGSEGV\) when it {} it; write it again"),
    "abort": (RuntimeEndedError, r"hostile crashed \(SIGABRT\) when it {} it"),
    "exit": (RuntimeEndedError, "hostile crashed when it {} it"),
    "kill": (RuntimeEndedError, "hostile was killed when it {} it; .* too little free memory"),
    "memory": (RuntimeEndedError, f"took more than 419 MB of memory .*{MEMORY_VARIABLE}=SIZE"),
    "hang": (RuntimeEndedError, f"no answer in time when it {{}} it.*{SECONDS_VARIABLE}=SECONDS"),
    "raise": (InputError, "hostile failed when it {} it: KeyError: 'first"),
    "no memory": (InputError, f"MemoryError: bad allocation; .* allowed, see {MEMORY_VARIABLE}"),
    "usage": (UsageError, "^device cuda: none$"),
    "missing": (MissingRuntimeError, "^llama-cpp-python is not installed"),
    "input": (InputError, "^broken$"),
    "verification": (VerificationError, "^not finite$"),
}


def children(process: int) -> list[int]:
    """The processes that a process of Linux has started and not yet reaped."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]


def server_children() -> list[int]:
    """The processes of runtimes that this process's server holds."""
    assert _SERVER.process is not None
    return children(_SERVER.process.pid)


@pytest.fixture
def artefact(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "artefact"
    while _opened:
        _opened.pop().close()


_opened: list[Runtime] = []
"""The runtimes that a test has opened; the fixture closes them."""


def opened(artefact: Path, text: str, device: str = "cpu") -> Runtime:
    artefact.write_text(text)
    runtime = open_separately(HostileRuntime, artefact, device, 1)
    assert runtime is not None
    _opened.append(runtime)
    return runtime


@pytest.mark.parametrize("moment", ["load", "feed"])
@pytest.mark.parametrize("action", ENDS)
def test_whatever_ends_a_runtime_is_one_line(
    action: str, moment: str, artefact: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if action == "memory":
        monkeypatch.setenv(MEMORY_VARIABLE, "400MB")
    if action == "hang":
        monkeypatch.setenv(SECONDS_VARIABLE, "1.5")
    kind, message = ENDS[action]
    verb = {"load": "loaded", "feed": "ran"}[moment]
    with pytest.raises(CgconvertError, match=message.format(verb)) as caught:
        opened(artefact, f"{moment}:{action}").feed([1])
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    if not str(caught.value).startswith(("device", "llama", "broken", "not finite")):
        assert str(caught.value).startswith(f"{artefact}: hostile ")
    assert capfd.readouterr() == ("", "")


def test_a_runtime_that_ended_says_so_again_and_can_be_closed(artefact: Path) -> None:
    runtime = opened(artefact, "feed:crash")
    for _ in range(2):
        with pytest.raises(RuntimeEndedError):
            runtime.feed([1])
    runtime.close()
    runtime.close()
    assert server_children() == []


def test_what_a_library_prints_goes_nowhere(
    artefact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = opened(artefact, "feed:speak")
    assert runtime.feed([1, 2]).tolist() == [[0, 1, 2, 3]] * 2
    runtime.close()
    assert capfd.readouterr() == ("", "")


def test_everything_of_a_runtime_passes(artefact: Path) -> None:
    runtime = opened(artefact, "feed:nothing")
    assert (runtime.name, runtime.version, runtime.device) == ("hostile", "1", "cpu")
    assert (runtime.n_positions, runtime.tokenizer_size) == (16, 4)
    assert (runtime.eos_token_ids, runtime.stopping_ids) == ((3,), frozenset({3}))
    assert (runtime.takes_batches, runtime.activations) == (False, "float32")
    assert runtime.feed([]).shape == (0, 4)
    numpy_ids: Any = [np.int64(1)]
    assert runtime.feed_last(numpy_ids).tolist() == [0, 1, 2, 3]
    assert runtime.tokenize("text") == [1, 2]
    assert runtime.detokenize([1, 2]) == "\ud801\ud802"
    with pytest.raises(UsageError, match="one sequence at a time"):
        runtime.batch([[1]])
    with pytest.raises(UsageError, match="17 tokens are more than the model's context of 16"):
        runtime.check_length(17)
    runtime.reset()
    runtime.close()


@pytest.mark.parametrize(("device", "sockets"), [("cpu", []), ("cuda", ["AF_UNIX"])])
def test_a_runtime_has_no_sockets(device: str, sockets: list[str], artefact: Path) -> None:
    with pytest.raises(InputError) as caught:
        opened(artefact, "load:sockets", device)
    assert str(caught.value) == f"opened {sockets}"


def test_a_runtime_has_no_home(artefact: Path) -> None:
    with pytest.raises(InputError) as caught:
        opened(artefact, "load:home")
    assert str(caught.value) == "no home"


def test_closing_ends_the_process_at_once(artefact: Path) -> None:
    runtimes = [opened(artefact, "feed:nothing") for _ in range(3)]
    assert len(server_children()) == 3
    for number, runtime in enumerate(runtimes, 1):
        runtime.close()
        assert len(server_children()) == 3 - number


def test_a_server_that_was_killed_is_started_anew(artefact: Path) -> None:
    runtime = opened(artefact, "feed:nothing")
    assert _SERVER.process is not None
    process, runtimes = _SERVER.process, server_children()
    process.kill()
    process.wait()
    with pytest.raises(RuntimeEndedError, match="crashed when it ran it"):
        runtime.feed([1])
    runtime.close()
    wait_for_end(runtimes)
    runtime = opened(artefact, "feed:nothing")
    assert _SERVER.process.pid != process.pid
    runtime.close()


SCRIPT = """
import sys, time
from pathlib import Path
from cgconvert.io.system import separate_process
from cgconvert.runtimes.runtime import Runtime
from cgconvert.runtimes.separate_runtime import open_separately
from tests.support.hostile_runtimes import HostileRuntime

runtime = open_separately(HostileRuntime, Path(sys.argv[1]), "cpu", 1)
print(separate_process._SERVER.process.pid, flush=True)
runtime.feed([1])
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(processes: list[int], seconds: float = 20) -> None:
    """Wait until processes have ended; fail if one has not by then."""
    end = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def hanging(artefact: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process whose runtime hangs, and the ids of its server and of the runtime's process."""
    artefact.write_text("feed:hang")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(artefact)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        server = int(process.stdout.readline())
        yield process, [server, *children(server)]
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_runtime_ends_with_the_process_that_opened_it(
    number: signal.Signals, hanging: tuple[subprocess.Popen[str], list[int]]
) -> None:
    process, others = hanging
    assert len(others) == 2
    process.send_signal(number)
    process.wait(20)
    wait_for_end(others)


def test_a_runtime_ends_with_its_server(
    hanging: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, others = hanging
    os.kill(others[0], signal.SIGKILL)
    assert process.wait(20) == 1
    assert process.stderr is not None
    assert "RuntimeEndedError" in process.stderr.read()
    wait_for_end(others)


# Limits


def test_limits_follow_the_artefact_and_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(5_000_000))
    limits = Limits.of(tmp_path)
    assert limits.artefact_bytes == 5_000_000
    assert limits.max_bytes >= 512 << 20
    assert limits.opening_seconds == pytest.approx(120.5)
    assert limits.seconds(100) == pytest.approx(125)


@pytest.mark.parametrize(
    ("text", "size"), [("12GB", 12 << 30), ("800m", 800 << 20), ("1073741824", 1 << 30)]
)
def test_memory_is_set_by_a_variable(
    text: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    assert Limits.of(tmp_path).max_bytes == size


@pytest.mark.parametrize("text", ["lots", "-1", "0", "1.5GB", "9" * 30, "GB", "\u0664GB"])
def test_memory_that_is_no_size_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    with pytest.raises(UsageError, match=f"{MEMORY_VARIABLE} is .*give a size, such as 12GB"):
        Limits.of(tmp_path)


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf", "9" * 30])
def test_a_time_that_is_no_number_of_seconds_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, text)
    with pytest.raises(UsageError, match=f"{SECONDS_VARIABLE} is .*give seconds, such as 600"):
        Limits.of(tmp_path)


# Messages


class Pipe:
    """A connection whose messages wait in a list."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send_bytes(self, data: bytes) -> None:
        self.messages.append(bytes(data))

    def recv_bytes(self, limit: int | None = None) -> bytes:
        return self.messages.pop(0)

    def recv_bytes_into(self, memory: memoryview) -> int:
        data = self.messages.pop(0)
        memory[: len(data)] = data
        return len(data)


def test_a_message_holds_values_and_arrays() -> None:
    pipe, array = Pipe(), np.arange(6, dtype=np.float32).reshape(2, 3)
    empty = np.empty((0, 3), dtype=np.float32)
    value = {"a": [1, None, "\ud800", True, 0.5], "array": [array, {"b": empty}], "c": (1, 2)}
    send(pipe, value)
    received = receive(pipe, 1 << 20)
    assert received["a"] == value["a"]
    assert received["c"] == [1, 2]
    np.testing.assert_array_equal(received["array"][0], array)
    assert received["array"][1]["b"].shape == (0, 3)
    with pytest.raises(TypeError):
        send(pipe, object())


@pytest.mark.parametrize(
    "messages",
    [
        [b'[{"array": 0}, [["object", [1]]]]', b"12345678"],
        [b'[{"array": 0}, [["float32", [-1]]]]', b""],
        [b'[{"array": 0}, [["float32", [1000000000000]]]]', b""],
        [b'[{"array": 0}, [["float32", [2]]]]', b"1234"],
        [b"\x80\x04."],
    ],
    ids=["type", "negative", "large", "short", "pickle"],
)
def test_a_message_that_was_not_sent_so_is_refused(messages: list[bytes]) -> None:
    pipe = Pipe()
    pipe.messages = messages
    with pytest.raises(ValueError, match=r"array|decode|xpecting"):
        receive(pipe, 1 << 20)


def test_a_file_of_terabytes_gives_no_time_that_a_pipe_cannot_wait(tmp_path: Path) -> None:
    (tmp_path / "extra").touch()
    os.truncate(tmp_path / "extra", 1 << 43)
    limits = Limits.of(tmp_path)
    assert limits.opening_seconds <= MOST_SECONDS
    assert limits.seconds(tokens=1000) == MOST_SECONDS
