"""Every conversion of one model, end to end: wall time and peak memory, beside `cp` and optimum.

    python benchmarks/conversion.py --name codegen-350M-mono --repeats 3 \\
        --optimum .venv-optimum/bin/optimum-cli

The model has the family's true shape and random weights: speed and memory do not depend on the
numbers. All commands take turns, repeat by repeat, each in a process of its own; the table has
medians, and the ratio to `cp` of the same checkpoint (with sync) in the same run. This script
itself imports nothing large: a child's peak memory, as the kernel counts it, begins with what its
parent had.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

RESULTS = Path(__file__).parent / "results"


@dataclass
class Job:
    """A command, what it writes, and its measurements: seconds, bytes, bytes."""

    name: str
    command: list[str]
    output: Path | None
    seconds: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    written: int = 0

    def measure(self) -> None:
        """One run in its own process. Peak memory is the kernel's account, mapped pages counted."""
        if self.output is not None:
            _remove(self.output)
        began = time.monotonic()
        child = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        if self.output is not None:  # who verifies writes nothing to wait for
            os.sync()
        self.seconds.append(time.monotonic() - began)
        self.peak.append(usage.ru_maxrss * 1024)
        if os.waitstatus_to_exitcode(status):
            raise click.ClickException(f"{self.name} failed: {said[-2000:]}")
        if self.output is not None:
            self.written = _size(self.output)


@click.command()
@click.option("--name", default="codegen-350M-mono", show_default=True)
@click.option("--layers", type=int, help="Cut the model to so many layers.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--optimum", type=click.Path(exists=True), help="optimum-cli of its environment.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
@click.option("--verify/--no-verify", default=True, show_default=True)
def main(
    name: str,
    layers: int | None,
    repeats: int,
    optimum: str | None,
    work: Path | None,
    verify: bool,
) -> None:
    """Measure all conversions of one member of the family."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        place = Path(folder)
        cuts = ["--layers", str(layers)] if layers else []
        make = [sys.executable, "-m", "cgconvert.synthetic", name, "-o", str(place), *cuts]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        source = place / name
        jobs = _jobs(source, place / "out", optimum)
        for job in jobs * repeats:  # interleaved: the machine's moods are shared by all
            click.echo(job.name, err=True)
            job.measure()
        checks = _verify_jobs(jobs, source) if verify else []
        for job in checks:
            click.echo(job.name, err=True)
            job.measure()
        _write(name, repeats, jobs + checks, _size(source))


def _jobs(source: Path, out: Path, optimum: str | None) -> list[Job]:
    out.mkdir()
    ours = [sys.executable, "-m", "cgconvert"]

    def job(label: str, *arguments: str, suffix: str = "") -> Job:
        target = out / (label.replace(" ", "-") + suffix)
        command = [*ours, arguments[0], str(source), "-o", str(target), *arguments[1:]]
        return Job(f"cgconvert {label}", command, target)

    copy = out / "copy"
    jobs = [
        Job("cp", ["cp", "-r", "--sparse=never", str(source), str(copy)], copy),
        job("to-hf", "to-hf"),
        job("to-hf phi", "to-hf", "--layout", "phi"),
        job("to-onnx", "to-onnx"),
        job("to-onnx fp16", "to-onnx", "--dtype", "float16"),
        job("quantize onnx 8", "quantize", "--bits", "8", "--format", "onnx"),
        job("quantize onnx 4", "quantize", "--bits", "4", "--format", "onnx"),
        job("to-gguf F16", "to-gguf", "--type", "F16", suffix=".gguf"),
        job("to-gguf Q8_0", "to-gguf", "--type", "Q8_0", suffix=".gguf"),
        job("to-gguf Q4_0", "to-gguf", "--type", "Q4_0", suffix=".gguf"),
    ]
    if optimum:
        target = out / "optimum"
        command = [
            optimum, "export", "onnx", "--model", str(source), "--task",
            "text-generation-with-past", str(target),
        ]  # fmt: skip
        jobs.append(Job("optimum-cli export onnx", command, target))
    return jobs


def _verify_jobs(jobs: list[Job], source: Path) -> list[Job]:
    """Once each: the same artefacts that were just written."""
    ours = [sys.executable, "-m", "cgconvert", "verify"]
    return [
        Job(
            f"verify {job.name.removeprefix('cgconvert ')}",
            [*ours, str(job.output), "--reference", str(source)],
            None,
        )
        for job in jobs
        if job.name.startswith("cgconvert")
    ]


def _write(name: str, repeats: int, jobs: list[Job], source_bytes: int) -> None:
    base = statistics.median(jobs[0].seconds)
    machine = {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    rows = [
        {
            "name": job.name,
            "seconds": [round(s, 2) for s in job.seconds],
            "median": round(statistics.median(job.seconds), 2),
            "times_cp": round(statistics.median(job.seconds) / base, 2),
            "peak_bytes": max(job.peak),
            "written_bytes": job.written,
        }
        for job in jobs
    ]
    command = "python " + " ".join(["benchmarks/conversion.py", *_public(sys.argv[1:])])
    result = {"command": command, "model": name, "source_bytes": source_bytes,
              "repeats": repeats, "machine": machine, "rows": rows}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"conversion-{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        f"`{command}`",
        "",
        f"{name}'s shape, {source_bytes / 1e9:.2f} GB `pytorch_model.bin`; "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['architecture']}; "
        f"medians of {repeats} interleaved runs (verify: one run), process start included.",
        "",
        "| | seconds | × cp | peak memory, GB | written, GB |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['median']:.1f} | {row['times_cp']:.1f} "
            f"| {row['peak_bytes'] / 1e9:.2f} | "
            + (f"{row['written_bytes'] / 1e9:.2f} |" if row["written_bytes"] else "– |")
            for row in rows
        ),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"conversion-{name}.md").write_text(text)
    click.echo(text)


def _public(arguments: list[str]) -> list[str]:
    """The command line without this machine's paths."""
    return [Path(a).name if a.startswith("/") else a for a in arguments]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
