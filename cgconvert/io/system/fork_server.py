"""A process that imports libraries once, and forks itself for every separate process.

A process whose threads have computed must not be forked: GCC's OpenMP then waits for threads that
are not there. And importing transformers takes seconds. So a server process imports what is needed,
computes nothing, and forks. It is one per process that opens runtimes, and shared with forks of
that process; it ends when no process has its socket any more, when it has had nothing to do for
IDLE_SECONDS, or with the process that started it.

It is also what watches: it ends a process that takes more memory than it may, and one whose opener
has ended, whatever native code does there. How a process ended it reports to the opener.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from typing import Any

from cgconvert.io.system.confinement import end_with_forking_process
from cgconvert.io.system.memory import private_memory
from cgconvert.io.system.signals import ignore_interrupts

__all__ = ["MESSAGE_BYTES", "run_server"]

MESSAGE_BYTES = 1 << 16
IDLE_SECONDS = 60
WATCH_SECONDS = 0.05
"""How often memory is looked at: in this time a process can take about a quarter of a gigabyte."""


@dataclass
class _Child:
    """A forked process.

    Attributes:
        process: Its id.
        status: The socket to its opener: what arrives there, or its end, asks to kill the process.
        max_bytes: The memory it may take; 0 for any.
        is_over_memory: Whether it took more, and was killed for it.
        is_killed: Whether it was killed, for any reason.
    """

    process: int
    status: socket.socket
    max_bytes: int
    is_over_memory: bool = False
    is_killed: bool = False

    def kill(self) -> None:
        """Kill it; it is not reaped yet, so no other process has its id."""
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)


def run_server(descriptor: int) -> None:
    """Serve the requests that arrive at a socket until its other end is closed; never return."""
    ignore_interrupts()
    server = _Server(socket.socket(fileno=descriptor))
    try:
        server.run()
    finally:
        for child in server.children.values():
            child.kill()
        os._exit(0)


class _Server:
    """The loop of the server, and its processes by their ids."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: dict[int, _Child] = {}
        self.wakeup, writer = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._writer = writer

    def run(self) -> None:
        """Answer requests, report deaths, and watch, until there is nobody to serve."""
        while True:
            ready = self._wait()
            if ready is None:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup, 4096)
            for child in list(self.children.values()):
                if child.status.fileno() in ready:
                    child.kill()
            self._reap()
            self._watch()
            if self.control.fileno() in ready and not self._answer():
                return

    def _wait(self) -> set[int] | None:
        """Wait for something to do; return descriptors with news, None after a long time."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        for child in self.children.values():
            if not child.is_killed:
                poll.register(child.status, select.POLLIN)
        is_watching = any(child.max_bytes for child in self.children.values())
        seconds = WATCH_SECONDS if is_watching else IDLE_SECONDS
        ready = {number for number, _ in poll.poll(seconds * 1000)}
        return None if not ready and not self.children else ready

    def _answer(self) -> bool:
        """Take one request and carry it out; return False if there will be no more."""
        try:
            raw, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 2)
        except OSError:
            return False
        if not raw:
            return False
        request: dict[str, Any] = json.loads(raw)
        if not self.children:  # which have to be watched meanwhile; a fork imports for itself
            _import(request["imports"])
        if len(descriptors) == 2:
            self._fork(request, *descriptors)
        return True

    def _fork(self, request: dict[str, Any], connection: int, status: int) -> None:
        """Fork a process that calls the request's target with its end of a connection."""
        status_socket = socket.socket(fileno=status)
        server = os.getpid()
        gc.freeze()
        process = os.fork()
        if process == 0:
            try:
                end_with_forking_process(server)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                status_socket.close()
                self.control.close()
                os.close(self.wakeup)
                os.close(self._writer)
                for child in self.children.values():
                    child.status.close()
                resolve_name(request["target"])(Connection(connection))
            finally:
                os._exit(0)
        os.close(connection)
        self.children[process] = _Child(process, status_socket, request["max_bytes"])

    def _reap(self) -> None:
        """Report the end of every process that has ended."""
        while self.children:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            child = self.children.pop(process, None)
            if child is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            report = {"signal": max(0, -code), "is_over_memory": child.is_over_memory}
            with contextlib.suppress(OSError):
                child.status.send(json.dumps(report).encode())
            child.status.close()

    def _watch(self) -> None:
        """Kill every process that has taken more memory than it may."""
        for child in self.children.values():
            if child.max_bytes and private_memory(child.process) > child.max_bytes:
                child.is_over_memory = True
                child.kill()


def _import(modules: list[str]) -> None:
    """Import modules; the process that needs one says why it cannot be imported."""
    for module in modules:
        if module not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
