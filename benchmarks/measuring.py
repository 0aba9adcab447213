"""Shared by the benchmarks: time and memory of a command, the machine's shape, stored tables.

Nothing large is imported here, because the kernel's count of a child's peak memory starts with the
memory of its parent.
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

__all__ = ["Job", "as_rows", "command", "machine", "size", "store", "work_folder"]

RESULTS = Path(__file__).parent / "results"


@dataclass
class Job:
    """A command, the path that it writes, its measurements and its output on stderr.

    `seconds` and `peak` (bytes) have one entry for each run, `written` is in bytes. Peak memory is
    that of all its processes together, with shared pages counted once and mapped files included:
    the kernel's Pss, read 20 times a second, or less often if reading would use more than a
    hundredth of a core. It is at least the kernel's own maximum of a single process.
    """

    name: str
    command: list[str]
    output: Path | None
    seconds: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    written: int = 0
    stderr: str = ""

    def measure(self) -> None:
        """Run the command once, and append its time and peak memory."""
        if self.output is not None:
            remove(self.output)
        os.sync()  # so that earlier writes do not slow this command down
        began = time.monotonic()
        child = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        memory = _MemoryWatch(child.pid)
        self.stderr = child.stderr.read()
        memory.end()
        _, status, usage = os.wait4(child.pid, 0)
        if self.output is not None:  # a command without output has nothing to sync
            os.sync()
        self.seconds.append(time.monotonic() - began)
        self.peak.append(max(usage.ru_maxrss * 1024, memory.peak))
        if os.waitstatus_to_exitcode(status):
            raise click.ClickException(f"{self.name} failed: {self.stderr[-2000:]}")
        if self.output is not None:
            self.written = size(self.output)


class _MemoryWatch(threading.Thread):
    """Records the peak memory of a process and its descendants until `end`."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self._ended = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        pause = 0.05
        while not self._ended.wait(pause):
            began = time.thread_time()
            self.peak = max(self.peak, sum(map(_memory, _process_tree(self.pid))))
            pause = max(0.05, 100 * (time.thread_time() - began))  # at most 1 % of a core

    def end(self) -> None:
        self._ended.set()
        self.join()


def _process_tree(pid: int) -> list[int]:
    """The ids of a process and its descendants, empty once it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(process for child in children for process in _process_tree(child))]


def _memory(pid: int) -> int:
    """Memory of one process in bytes, shared pages divided by their users (Pss)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line[:4] == "Pss:")


def machine(*packages: str) -> dict[str, Any]:
    """Cores, memory and versions, on which figures depend, but no name of the machine."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", *packages)},
    }


def as_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Median seconds, their ratio to the first job's, peak memory and bytes written of each job."""
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
    """The command line of this process, with the folders of absolute paths removed."""
    script, *arguments = sys.argv
    public = [Path(a).name if a.startswith("/") else a for a in arguments]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *public])


def store(name: str, result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write results/<name>.json and results/<name>.md, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    click.echo(text)


def size(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder in `parent`, which is created if needed and stays."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
