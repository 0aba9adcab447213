"""What the benchmarks share: a command's time and memory, the machine's shape, the kept table.

Nothing large is imported here: a child's peak memory, as the kernel counts it, begins with what its
parent had.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

__all__ = ["Job", "as_rows", "command", "keep", "machine", "size", "workplace"]

RESULTS = Path(__file__).parent / "results"


@dataclass
class Job:
    """A command, what it writes, its measurements (seconds, bytes, bytes) and last words.

    Peak memory is that of its processes together, shared pages counted once and mapped files
    included (the kernel's Pss, looked at 20 times a second, less often where that would take over
    a hundredth of a core), and no less than the kernel's own account of the largest.
    """

    name: str
    command: list[str]
    output: Path | None
    seconds: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    written: int = 0
    said: str = ""

    def measure(self) -> None:
        """One run in its own process."""
        if self.output is not None:
            remove(self.output)
        os.sync()  # what others wrote and removed is not this command's
        began = time.monotonic()
        child = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        watched = _Watched(child.pid)
        self.said = child.stderr.read()
        watched.end()
        _, status, usage = os.wait4(child.pid, 0)
        if self.output is not None:  # who verifies writes nothing to wait for
            os.sync()
        self.seconds.append(time.monotonic() - began)
        self.peak.append(max(usage.ru_maxrss * 1024, watched.peak))
        if os.waitstatus_to_exitcode(status):
            raise click.ClickException(f"{self.name} failed: {self.said[-2000:]}")
        if self.output is not None:
            self.written = size(self.output)


class _Watched(threading.Thread):
    """Memory of a process and all it has begun, until `end`."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self._ended = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        pause = 0.05
        while not self._ended.wait(pause):
            began = time.thread_time()
            self.peak = max(self.peak, sum(map(_memory, _family(self.pid))))
            pause = max(0.05, 100 * (time.thread_time() - began))  # what is measured has the cores

    def end(self) -> None:
        self._ended.set()
        self.join()


def _family(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(child))]


def _memory(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line[:4] == "Pss:")


def machine(*packages: str) -> dict[str, Any]:
    """Cores, memory and versions: what a figure depends on, and nothing that names a machine."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", *packages)},
    }


def as_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Medians, their ratio to the first job's, peak memory and what was written."""
    base = statistics.median(jobs[0].seconds)
    return [
        {
            "name": job.name,
            "seconds": [round(s, 2) for s in job.seconds],
            "median": round(statistics.median(job.seconds), 2),
            "times_first": round(statistics.median(job.seconds) / base, 2),
            "peak_bytes": max(job.peak),
            "written_bytes": job.written,
        }
        for job in jobs
    ]


def command() -> str:
    """The command line, without paths of this machine."""
    script, *arguments = sys.argv
    public = [Path(a).name if a.startswith("/") else a for a in arguments]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *public])


def keep(name: str, result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write results/<name>.json and .md, and show the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    click.echo(text)


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@contextmanager
def workplace(parent: Path | None) -> Iterator[Path]:
    """A folder to write in, gone afterwards; the parent is made, and stays."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
