"""Every conversion at every size: time, bytes a second and memory, beside `cp` and the peers.

    python benchmarks/scale.py codegen-2B-mono --work bench
    python benchmarks/scale.py codegen-16B-mono --layout sparse --only to-gguf --work bench

A call measures one model, `--repeats` times all commands in turn, beginning with another one each
time, and adds what it found to the runs that are kept: the table has medians over all of them.
(Memory that a virtual machine has not used for a while has to be given to it first: who comes first
pays for all.) `cp --sparse=never` of the source, with sync, is in every run, and ratios are to that
of the same run. Start-up (a --dry-run) is taken off before a speed or a ratio to cp is made; the
ratio to llama-quantize has it in it. Weights are random, or with `--layout sparse` zeros that take
no disk.

`--peers` adds llama-quantize (llama.cpp's llama_model_quantize of an F16 file, to the types that
are measured) and transformers' from_pretrained and save_pretrained; `--optimum` optimum's export.
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
from measuring import RESULTS, Job, command, keep, machine, remove, size, workplace

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
@click.option("--only", multiple=True, help="Conversions that begin so. Repeatable.")
@click.option("--copy/--no-copy", default=True, help="Without cp where the disk is too small.")
@click.option("--peers", is_flag=True, help="llama-quantize and transformers beside it.")
@click.option("--optimum", type=click.Path(exists=True), help="optimum-cli of its environment.")
@click.option("--repeats", default=1, show_default=True, help="Runs, all commands in each.")
@click.option("--threads", default=4, show_default=True, help="llama-quantize's.")
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
    with workplace(work) as place:
        make = [sys.executable, "-m", "cgconvert.testing.synthetic", name, "--layout", layout]
        subprocess.run([*make, "-o", str(place)], check=True, stdout=subprocess.DEVNULL)
        source = next(place.iterdir())
        out = place / "out"
        plain = Job("cp", ["cp", "-r", "--sparse=never", str(source), str(out)], out)
        jobs = [*([plain] if copy else []), *_ours(source, out, only)]
        if peers:
            jobs += [_transformers(source, out), *_llama(source, place, only, threads)]
        if optimum:
            jobs.append(_optimum(optimum, source, out))
        label = f"{name}, {layout}"
        for _ in range(repeats):
            first = len(_runs(label)) * 2 % len(jobs)
            _measure([*jobs[first:], *jobs[:first]])
            _add(label, jobs, size(source), threads if peers else None)


def _measure(jobs: Iterable[Job]) -> None:
    for job in jobs:
        click.echo(job.name, err=True)
        job.measure()
        click.echo(f"  {job.seconds[-1]:.2f} s", err=True)
        if job.output:
            remove(job.output)


def _ours(source: Path, out: Path, only: tuple[str, ...]) -> Iterator[Job]:
    """What a tarball is unpacked to counts as written, every time."""
    from cgconvert import embedded

    start = ["env", f"CGCONVERT_CACHE={out / 'cache'}", sys.executable, "-m", "cgconvert"]
    for number, (kind, *options) in enumerate(_chosen(only)):
        target = out / ("m.gguf" if kind == "to-gguf" else "m")
        given = [*start, kind, str(source), "-o", str(target), *options]
        given += ["--tokenizer", str(embedded.path())]
        if number == 0:
            yield Job("start", [*given, "--dry-run"], None)
        yield Job(" ".join(["cgconvert", kind, *options]), given, out)


def _chosen(only: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [one for one in CONVERSIONS if not only or " ".join(one).startswith(only)]


def _transformers(source: Path, out: Path) -> Job:
    given = [sys.executable, "-c", TRANSFORMERS, str(source), str(out)]
    return Job("transformers load and save", given, out)


def _optimum(optimum: str, source: Path, out: Path) -> Job:
    given = [
        optimum, "export", "onnx", "--model", str(source), "--task", "text-generation-with-past",
        str(out),
    ]  # fmt: skip
    return Job("optimum-cli export onnx", given, out)


def _llama(source: Path, place: Path, only: tuple[str, ...], threads: int) -> Iterator[Job]:
    """Of an F16 file that is made first, and not counted."""
    kinds = [one[-1] for one in _chosen(only) if one[0] == "to-gguf" and one[-1] in LLAMA_TYPES]
    if not kinds:
        return
    wide, target = place / "wide.gguf", place / "narrow.gguf"
    make = [sys.executable, "-m", "cgconvert", "to-gguf", str(source), "-o", str(wide)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    for kind in kinds:
        given = [str(wide), str(target), str(LLAMA_TYPES[kind]), str(threads)]
        yield Job(f"llama-quantize {kind}", [sys.executable, "-c", LLAMA, *given], target)


def _runs(label: str) -> list[dict[str, Any]]:
    """What is kept of a model."""
    file = RESULTS / "scale.json"
    models = json.loads(file.read_text())["models"] if file.is_file() else {}
    runs: list[dict[str, Any]] = models.get(label, {}).get("runs", [])
    return runs


def _add(label: str, jobs: list[Job], source_bytes: int, threads: int | None) -> None:
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
    keep("scale", result, list(_table(result)))


def _table(result: dict[str, Any]) -> Iterator[str]:
    shape = result["machine"]
    runs = [len(model["runs"]) for model in result["models"].values()]
    yield (
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; medians of "
        f"{min(runs)} to {max(runs)} runs, commands in turn in each. Seconds have process start "
        "and sync in them, and so has × llama (llama-quantize to the same type in the same run); "
        "GB/s (of source) and × cp (of the source, in the same run) are without start. Memory is "
        "that of all processes of a command together."
    )
    yield ""
    yield (
        "Wanted: `to-hf` of 5 GB or more in at most 1.3 × cp, Q4_K_M in at most 0.5 × llama. Where "
        "the disk is faster than that, `to-hf` waits for the SHA-256 of the source: one thread's "
        "work, at about 1 GB/s with all cores busy."
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
    yield from (f"`{one}`  " for one in dict.fromkeys(commands))


def _row(label: str, name: str, runs: list[dict[str, Any]], source_bytes: int) -> str:
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
