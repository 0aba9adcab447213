"""The files that a program opens, as strace sees it and all processes that it starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OpenedFile", "Trace", "traced"]

CALLS = "open,openat,openat2,creat,execve"
CALL = re.compile(
    r"(?:open|openat|openat2|creat|execve)\((?:(?:AT_FDCWD|\d+)(?:<(?P<at>[^>]*)>)?, )?"
    r'"(?P<path>(?:[^"\\]|\\.)*)"(?P<rest>.*)'
)


@dataclass(frozen=True)
class OpenedFile:
    """A file that was opened, or that could not be.

    Attributes:
        path: Its absolute path, as it was asked for.
        is_there: Whether it was opened.
    """

    path: Path
    is_there: bool


@dataclass(frozen=True)
class Trace:
    """What a program did.

    Attributes:
        output: What it printed.
        files: The files that it and its processes opened, without folders that were listed.
    """

    output: str
    files: tuple[OpenedFile, ...]


def traced(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Trace:
    """Run a command to its end under strace, whose log goes to `log`.

    Fails, with what to install, where strace is missing or may not trace.
    """
    strace = shutil.which("strace")
    assert strace, (
        "strace is missing: apt-get install strace (python3 tests/run.py does it as root)"
    )
    options = ["-f", "-qq", "-y", "-s", "4096", "--seccomp-bpf", "-e", f"trace={CALLS}"]
    run = subprocess.run(
        [strace, *options, "-o", log, *command],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    files = (_opened(line) for line in lines)
    return Trace(run.stdout, tuple(file for file in files if file is not None))


def _opened(line: str) -> OpenedFile | None:
    """Read a line of strace's log; None for one that opens no file."""
    match = CALL.search(line)
    if match is None or "O_DIRECTORY" in match["rest"]:
        return None
    escaped = match["path"].encode("ascii", "replace").decode("unicode_escape")
    path = escaped.encode("latin-1").decode("utf-8", "surrogateescape")
    folder = Path(match["at"] or "/")
    return OpenedFile(Path(os.path.normpath(folder / path)), ") = -1" not in match["rest"])
