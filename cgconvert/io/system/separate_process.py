"""Processes that share nothing with this one but a connection: forked by a server, or spawned.

On Linux they come from a server process (see fork_server), on other systems each is a new Python.
Their streams lead nowhere. They get no interrupts from the terminal: this process ends them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe
from pkgutil import resolve_name
from typing import Any

from cgconvert.io.system.confinement import close_standard_streams
from cgconvert.io.system.fork_server import MESSAGE_BYTES
from cgconvert.io.system.processes import can_fork, end_with_parent, worker_context
from cgconvert.io.system.signals import ignore_interrupts

__all__ = ["Ending", "SeparateProcess", "prepare_imports", "start_separate"]

SERVE = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from cgconvert.io.system.fork_server import run_server
run_server(int(sys.argv[1]))
"""

END_SECONDS = 30
"""How long the end of a killed process is waited for: a large one takes seconds to free memory."""


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        signal: The name of the signal that ended it, such as SIGSEGV; "" if it ended itself.
        is_over_memory: Whether it was ended because it took more memory than it may take.
        is_known: Whether it is known how it ended; not if the server ended too.
    """

    signal: str = ""
    is_over_memory: bool = False
    is_known: bool = True


class SeparateProcess(ABC):
    """A process that runs one function, with its end of a connection as the argument."""

    connection: Any

    @abstractmethod
    def kill(self) -> Ending:
        """End the process if it runs, and return how it ended, once its memory is free."""

    @abstractmethod
    def wait(self, seconds: float) -> Ending | None:
        """Wait until it has ended by itself; None if it has not by then."""


def start_separate(
    target: str, imports: Sequence[str], max_bytes: int, environment: Mapping[str, str]
) -> SeparateProcess:
    """Start a process that calls a function.

    Args:
        target: Module and function, such as "cgconvert.io.separate_object:serve".
        imports: Modules that the function will need; they are imported once for many processes.
        max_bytes: The memory that the process may take; 0 for no limit. Only Linux keeps to it.
        environment: The environment variables while the modules are imported. A spawned process
            has those of this process, until the function changes them.
    """
    if not can_fork():
        return _SpawnedProcess(target)
    return _ForkedProcess(_SERVER.start(target, imports, max_bytes, environment))


def prepare_imports(imports: Sequence[str], environment: Mapping[str, str]) -> None:
    """Begin to import modules for separate processes to come, while this process does other things.

    Only the server of forked processes can do it.
    """
    if can_fork():
        _SERVER.send({"imports": list(imports)}, (), environment)


class _SpawnedProcess(SeparateProcess):
    def __init__(self, target: str) -> None:
        self.connection, other_end = Pipe()
        self._process: Any = worker_context().Process(  # type: ignore[attr-defined]
            target=_run_spawned, args=(target, other_end), daemon=True
        )
        self._process.start()
        other_end.close()

    def kill(self) -> Ending:
        self.connection.close()
        self._process.kill()
        return self.wait(END_SECONDS) or Ending(is_known=False)

    def wait(self, seconds: float) -> Ending | None:
        self._process.join(seconds)
        code = self._process.exitcode
        return None if code is None else Ending(_signal_name(-code))


def _run_spawned(target: str, connection: Any) -> None:
    """Run in a spawned process."""
    ignore_interrupts()
    end_with_parent()
    close_standard_streams()
    resolve_name(target)(connection)


class _ForkedProcess(SeparateProcess):
    def __init__(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        connection, self._status = sockets
        self.connection = Connection(connection.detach())
        self._ending: Ending | None = None

    def kill(self) -> Ending:
        self.connection.close()
        if self._ending is None:
            with contextlib.suppress(OSError):
                self._status.send(b"kill")
        ending = self.wait(END_SECONDS) or Ending(is_known=False)
        self._status.close()
        return ending

    def wait(self, seconds: float) -> Ending | None:
        if self._ending is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return None
            try:
                raw = self._status.recv(MESSAGE_BYTES)
            except OSError:
                raw = b""
            self._ending = Ending(is_known=False)
            if raw:
                report = json.loads(raw)
                self._ending = Ending(_signal_name(report["signal"]), report["is_over_memory"])
        return self._ending


@dataclass
class _Server:
    """The server process of this process and of its forks, started at first use."""

    owner: int = field(default_factory=os.getpid)
    lock: Any = field(default_factory=threading.Lock)
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None

    def start(
        self, target: str, imports: Sequence[str], max_bytes: int, environment: Mapping[str, str]
    ) -> tuple[socket.socket, socket.socket]:
        """Have it fork; return this process's ends of the connection and of the status."""
        connections = socket.socketpair()
        statuses = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"target": target, "imports": list(imports), "max_bytes": max_bytes}
        self.send(request, (connections[1].fileno(), statuses[1].fileno()), environment)
        connections[1].close()
        statuses[1].close()
        return connections[0], statuses[0]

    def send(
        self, request: dict[str, Any], descriptors: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        """Send a request; the server is started anew if it has ended."""
        message = json.dumps(request).encode()
        with self.lock:
            for is_last in (False, True):
                if self.control is None:
                    self._launch(environment)
                assert self.control is not None
                try:
                    socket.send_fds(self.control, [message], descriptors)
                    return
                except OSError:
                    self.end()
                    if is_last:
                        raise

    def _launch(self, environment: Mapping[str, str]) -> None:
        """Start the server; its streams lead nowhere, and a terminal's signals do not reach it."""
        self.owner = os.getpid()
        self.control, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = json.dumps([os.path.abspath(path) for path in sys.path])
        with other_end:
            self.process = subprocess.Popen(
                [spawn.get_executable(), "-c", SERVE, str(other_end.fileno()), paths],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", env=dict(environment), start_new_session=True,
                pass_fds=(other_end.fileno(),),
            )  # fmt: skip
        atexit.register(self.end)

    def end(self) -> None:
        """End the server, if this process started it, and forget it."""
        control, process = self.control, self.process
        self.control = self.process = None
        if control is not None:
            with contextlib.suppress(OSError):
                if os.getpid() == self.owner:
                    control.shutdown(socket.SHUT_RDWR)
            control.close()
        if process is not None and os.getpid() == self.owner:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        elif process is not None:
            process.returncode = 0  # another process's child


_SERVER = _Server()


def _signal_name(number: int) -> str:
    """The name of a signal; "" for none."""
    if number <= 0:
        return ""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
