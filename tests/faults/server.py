"""Runs cgconvert commands in forked processes, which saves each the two seconds of imports.

The server imports everything once and forks for each command, so a crash, an endless loop or
excessive memory fails one case and not the whole run. `python -m tests.faults.server` reads one
JSON request a line and answers with one JSON line; `Server` is the client.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cgconvert.cli.main import cli, main
from cgconvert.io import commit, staging
from cgconvert.io.separate_object import prepare
from cgconvert.runtimes import RUNTIMES, runtime_class
from cgconvert.runtimes.separate_runtime import runtime_imports
from cgconvert.write import execute as execution
from cgconvert.write import writer as write

ROOT = Path(__file__).resolve().parents[2]
WARM = (
    "cgconvert.cli.conversions", "cgconvert.cli.generate", "cgconvert.cli.inspect",
    "cgconvert.cli.run", "cgconvert.cli.verify", "cgconvert.formats.onnx.writer",
    "cgconvert.formats.gguf.writer", "cgconvert.formats.huggingface.writer",
    "cgconvert.formats.onnx.checks",
    "cgconvert.formats.gguf.checks", "cgconvert.formats.huggingface.checks",
    "cgconvert.formats.onnx.checks", "cgconvert.formats.gguf.checks",
    "cgconvert.formats.huggingface.checks", "cgconvert.formats.huggingface.reader",
    "cgconvert.formats.jaxformer", "llama_cpp", "onnxruntime",
    "onnxruntime_genai", "transformers.models.codegen.modeling_codegen",
    "transformers.models.phi.modeling_phi", "transformers.models.gpt2.tokenization_gpt2",
)  # fmt: skip
SEPARATE = [
    module
    for format_, names in RUNTIMES.items()
    for name in names
    for module in runtime_imports(runtime_class(format_, name))
]
"""What processes of runtimes import."""

SAFETY_BYTES = 6 << 30
"""Address space that a command may add, so that a decompression bomb cannot stop the machine."""

END = "end\n"
"""The line that ends the server; it stands in place of a request."""

WALL_SECONDS = 120
"""When a command is killed. Ten times what a busy machine needs: tests bound the CPU's time."""

CONNECTED = 71
"""Exit code of a command that tried to connect to another machine."""

DUMP_SECONDS = WALL_SECONDS - 10
"""When a command that hangs prints where it is."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    `code` is the exit code, negative for a signal. `seconds` is CPU time, `wall` elapsed time.
    `grown` is the peak memory in bytes minus the memory at the start.
    """

    code: int
    out: str
    err: str
    seconds: float
    grown: int
    wall: float


class Server:
    def __init__(self) -> None:
        self.cache = tempfile.TemporaryDirectory()
        # A session of its own, so that an interruption of the tests ends it as well.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                              "HF_HUB_OFFLINE": "1", "CGCONVERT_CACHE": self.cache.name},
        )  # fmt: skip

    def run(self, *arguments: str, cwd: Path, **options: Any) -> Outcome:
        """Run a command in the folder `cwd` and wait for its end.

        Options:
            limit: Seconds after which it is killed (WALL_SECONDS).
            kill: A signal and the seconds after the start at which it is sent.
            group: Whether all processes of the command get the signal.
            die: Number of the change to the file system before which the command kills itself.
            file_bytes: The largest file it may write (RLIMIT_FSIZE).
            journal: Bytes between two entries of its journal.
            processes: Number of worker processes.
            env: Environment variables to set; one whose value is None is removed.
            stdin: The file that is its standard input; there is nothing in it otherwise.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"arguments": arguments, "cwd": str(cwd), **options}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the server. A closed pipe would not do: a forked process may hold the other end."""
        self.process.communicate(END)
        self.cache.cleanup()


def serve() -> None:
    """Answer requests from stdin until END."""
    for name in WARM:
        importlib.import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        if line == END:
            return
        answers.write(json.dumps(_forked(json.loads(line))) + "\n")
        answers.flush()


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    prepare(SEPARATE)  # the server of runtimes is started here, for all commands
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        ready, starting = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ready)
            os.setpgid(0, 0)
            _command(request, out.fileno(), err.fileno(), starting)
        os.close(starting)
        os.read(ready, 1)  # to its end: on a busy machine the child may not have run at all yet
        os.close(ready)
        began = time.monotonic()
        status, usage = _waited(child, request)
        wall = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
            "seconds": usage.ru_utime + usage.ru_stime,
            "grown": usage.ru_maxrss * 1024 - before,
            "wall": wall,
        }


def _waited(child: int, request: dict[str, Any]) -> tuple[int, resource.struct_rusage]:
    number, after = request.get("kill", (signal.SIGKILL, request.get("limit", WALL_SECONDS)))
    deadline = time.monotonic() + after
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() >= deadline:
            (os.killpg if request.get("group") else os.kill)(child, number)
            deadline, number = time.monotonic() + 30, signal.SIGKILL
        time.sleep(0.0005)


def _die_before(number: int) -> None:
    """Kill this process before its rename, removal or sync with this number, counted from 0."""
    calls = itertools.count()

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for owner, name in (
        (Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "hardlink_to"),
        (shutil, "rmtree"), (staging, "sync"), (commit, "exchange"), (commit, "rename_new"),
        (commit, "sync"),
    ):  # fmt: skip
        setattr(owner, name, killing(getattr(owner, name)))


def _refuse_connections(event: str, arguments: tuple[Any, ...]) -> None:
    """End a command that looks up a name or connects to anything but a socket of this machine."""
    if event == "socket.getaddrinfo" or (
        event in ("socket.connect", "socket.sendto") and not isinstance(arguments[1], str | bytes)
    ):
        os.write(2, f"a command without a download opened a socket: {event}\n".encode())
        os._exit(CONNECTED)


def _report_start(starting: int) -> None:
    """Close the pipe `starting` once cgconvert handles signals; before that, Python would."""
    begin = cli.main

    def reporting(*arguments: Any, **options: Any) -> Any:
        os.close(starting)
        return begin(*arguments, **options)

    cli.main = reporting  # type: ignore[method-assign]


def _command(request: dict[str, Any], out: int, err: int, starting: int) -> None:
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background: ignored
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(request.get("stdin", os.devnull), os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0)
        os.chdir(request["cwd"])
        for name, value in request.get("env", {}).items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
        sys.addaudithook(_refuse_connections)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SAFETY_BYTES, size + SAFETY_BYTES))
        if "file_bytes" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
        if "journal" in request:
            write.JOURNAL_BYTES = request["journal"]
        if "processes" in request:
            torch.set_num_threads(request["processes"])
            execution.SMALL_BYTES = 0
        if "die" in request:
            _die_before(request["die"])
        faulthandler.dump_traceback_later(DUMP_SECONDS, file=err)
        sys.argv = ["cgconvert", *request["arguments"]]
        _report_start(starting)
        main(request["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
