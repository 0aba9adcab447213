"""Measure every conversion at every size: time, bytes per second and memory, beside `cp` and peers.

    python benchmarks/scale.py codegen-2B-mono --work bench
    python benchmarks/scale.py codegen-16B-mono --layout sparse --only to-gguf --work bench

One call measures one model: it runs all commands in turn, `--repeats` times, and adds the results
to the stored runs. The table has medians over all runs. Each run begins with another command,
because the first command pays for memory that the virtual machine has not used for a while. Every
run has `cp --sparse=never` of the source, with sync, and ratios are to the `cp` of the same run.
The time of start-up (a --dry-run) is subtracted for speeds and for ratios to cp, but not for the
ratio to llama-quantize. Weights are random, or zeros without disk space with `--layout sparse`.

`--peers` adds llama-quantize (llama.cpp's llama_model_quantize from an F16 file to the measured
types) and from_pretrained with save_pretrained of transformers. `--optimum` adds optimum's export.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from measuring import RESULTS, Job, command, machine, remove, size, store, work_folder

CONVERSIONS = (
    ("to-hf",),
    ("to-hf", "--layout", "phi"),
    ("to-gguf", "--type", "F16"),
    ("to-gguf", "--type", "Q8_0"),
    ("to-gguf", "--type", "Q4_0"),
    ("to-gguf", "--type", "Q4_K_M"),
    ("to-onnx", "--dtype", "float16"),
    ("to-onnx",),
    ("to-onnx", "--bits", "8"),
    ("to-onnx", "--bits", "4"),
)

LLAMA = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
LLAMA_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # llama.h, enum llama_ftype
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16)
model.save_pretrained(sys.argv[2])
"""


@click.command()
@click.argument("name")
@click.option(
    "--layout", default="streamed", show_default=True, help="As in cgconvert.testing.synthetic."
)
@click.option("--only", multiple=True, help="Only conversions that begin with this. Repeatable.")
@click.option("--copy/--no-copy", default=True, help="Whether to run cp, which needs disk space.")
@click.option("--peers", is_flag=True, help="Also measure llama-quantize and transformers.")
@click.option("--optimum", type=click.Path(exists=True), help="Path of optimum-cli.")
@click.option("--repeats", default=1, show_default=True, help="Number of runs of all commands.")
@click.option("--threads", default=4, show_default=True, help="Threads of llama-quantize.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(
    name: str,
    layout: str,
    only: tuple[str, ...],
    copy: bool,
    peers: bool,
    optimum: str | None,
    repeats: int,
    threads: int,
    work: Path | None,
) -> None:
    """Measure the conversions of one member of the family."""
    with work_folder(work) as folder:
        make = [sys.executable, "-m", "cgconvert.testing.synthetic", name, "--layout", layout]
        subprocess.run([*make, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL)
        source = next(folder.iterdir())
        out = folder / "out"
        plain = Job("cp", ["cp", "-r", "--sparse=never", str(source), str(out)], out)
        jobs = [*([plain] if copy else []), *_ours(source, out, only)]
        if peers:
            jobs += [_transformers(source, out), *_llama(source, folder, only, threads)]
        if optimum:
            jobs.append(_optimum(optimum, source, out))
        label = f"{name}, {layout}"
        for _ in range(repeats):
            first = len(_runs(label)) * 2 % len(jobs)
            _measure([*jobs[first:], *jobs[:first]])
            _add(label, jobs, size(source), threads if peers else None)


def _measure(jobs: Iterable[Job]) -> None:
    """Run each job once, and remove its output."""
    for job in jobs:
        click.echo(job.name, err=True)
        job.measure()
        click.echo(f"  {job.seconds[-1]:.2f} s", err=True)
        if job.output:
            remove(job.output)


def _ours(source: Path, out: Path, only: tuple[str, ...]) -> Iterator[Job]:
    """Our conversions. The cache is in the output, so an unpacked tarball counts as written."""
    from cgconvert import embedded

    start = ["env", f"CGCONVERT_CACHE={out / 'cache'}", sys.executable, "-m", "cgconvert"]
    for number, (kind, *options) in enumerate(_selected(only)):
        target = out / ("m.gguf" if kind == "to-gguf" else "m")
        arguments = [*start, kind, str(source), "-o", str(target), *options]
        arguments += ["--tokenizer", str(embedded.path())]
        if number == 0:
            yield Job("start", [*arguments, "--dry-run"], None)
        yield Job(" ".join(["cgconvert", kind, *options]), arguments, out)


def _selected(only: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words for words in CONVERSIONS if not only or " ".join(words).startswith(only)]


def _transformers(source: Path, out: Path) -> Job:
    arguments = [sys.executable, "-c", TRANSFORMERS, str(source), str(out)]
    return Job("transformers load and save", arguments, out)


def _optimum(optimum: str, source: Path, out: Path) -> Job:
    arguments = [
        optimum, "export", "onnx", "--model", str(source), "--task", "text-generation-with-past",
        str(out),
    ]  # fmt: skip
    return Job("optimum-cli export onnx", arguments, out)


def _llama(source: Path, folder: Path, only: tuple[str, ...], threads: int) -> Iterator[Job]:
    """llama-quantize to each type, from an F16 file whose time is not measured."""
    kinds = [
        words[-1] for words in _selected(only) if words[0] == "to-gguf" and words[-1] in LLAMA_TYPES
    ]
    if not kinds:
        return
    wide, target = folder / "wide.gguf", folder / "narrow.gguf"
    make = [sys.executable, "-m", "cgconvert", "to-gguf", str(source), "-o", str(wide)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    for kind in kinds:
        arguments = [str(wide), str(target), str(LLAMA_TYPES[kind]), str(threads)]
        yield Job(f"llama-quantize {kind}", [sys.executable, "-c", LLAMA, *arguments], target)


def _runs(label: str) -> list[dict[str, Any]]:
    """The stored runs of a model."""
    file = RESULTS / "scale.json"
    models = json.loads(file.read_text())["models"] if file.is_file() else {}
    runs: list[dict[str, Any]] = models.get(label, {}).get("runs", [])
    return runs


def _add(label: str, jobs: list[Job], source_bytes: int, threads: int | None) -> None:
    """Store a run of all jobs, and write the table again."""
    file = RESULTS / "scale.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"models": {}}
    model = result["models"].setdefault(label, {"source_bytes": source_bytes, "runs": []})
    model["runs"].append({
        "command": command(),
        "llama_threads": threads,
        "jobs": {
            job.name: {"seconds": round(job.seconds[-1], 2), "peak_bytes": job.peak[-1],
                       "written_bytes": job.written}
            for job in jobs
        },
    })  # fmt: skip
    result["machine"] = machine()
    store("scale", result, list(_table(result)))


def _table(result: dict[str, Any]) -> Iterator[str]:
    shape = result["machine"]
    runs = [len(model["runs"]) for model in result["models"].values()]
    yield (
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; medians of "
        f"{min(runs)} to {max(runs)} runs, commands in turn in each. Seconds include process start "
        "and sync, and so does × llama (llama-quantize to the same type in the same run); GB/s "
        "(of source) and × cp (of the source, in the same run) exclude the start. Memory is that "
        "of all processes of a command together."
    )
    yield ""
    yield (
        "Targets: `to-hf` of 5 GB or more in at most 1.3 × cp, Q4_K_M in at most 0.5 × llama. "
        "Where the disk is faster than that, `to-hf` waits for the SHA-256 of the source: one "
        "thread's work, at about 1 GB/s with all cores busy."
    )
    yield ""
    yield "| source | | seconds | GB/s | × cp | × llama | peak memory, GB | written, GB |"
    yield "|---|---|---|---|---|---|---|---|"
    for label, model in result["models"].items():
        names = dict.fromkeys(name for run in model["runs"] for name in run["jobs"])
        for name in names:
            runs_of = [run["jobs"] for run in model["runs"] if name in run["jobs"]]
            yield _row(label, name, runs_of, model["source_bytes"])
    yield ""
    commands = [run["command"] for model in result["models"].values() for run in model["runs"]]
    yield from (f"`{line}`  " for line in dict.fromkeys(commands))


def _row(label: str, name: str, runs: list[dict[str, Any]], source_bytes: int) -> str:
    """The table's line of a command, from its runs."""
    seconds = statistics.median(jobs[name]["seconds"] for jobs in runs)
    ours = name.startswith("cgconvert")
    own = [jobs[name]["seconds"] - (jobs["start"]["seconds"] if ours else 0) for jobs in runs]
    times = [s / jobs["cp"]["seconds"] for s, jobs in zip(own, runs, strict=True) if "cp" in jobs]
    peer = f"llama-quantize {name.removeprefix('cgconvert to-gguf --type ')}"
    to_peer = [
        jobs[name]["seconds"] / jobs[peer]["seconds"] for jobs in runs if peer in jobs and ours
    ]
    cells = [
        f"{label}, {source_bytes / 1e9:.1f} GB",
        name,
        f"{seconds:.1f}",
        f"{source_bytes / statistics.median(own) / 1e9:.2f}" if name != "start" else "–",
        f"{statistics.median(times):.2f}" if times and name != "start" else "–",
        f"{statistics.median(to_peer):.2f}" if to_peer else "–",
        f"{max(jobs[name]['peak_bytes'] for jobs in runs) / 1e9:.2f}",
        f"{runs[-1][name]['written_bytes'] / 1e9:.2f}" if name != "start" else "–",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
