"""Every conversion of one model, end to end: wall time and peak memory, beside `cp` and optimum.

    python benchmarks/conversion.py --name codegen-350M-mono --repeats 3 \\
        --optimum .venv-optimum/bin/optimum-cli

The model has the family's true shape and random weights: speed and memory do not depend on the
numbers. All commands take turns, repeat by repeat, each in a process of its own; the table has
medians, and the ratio to `cp` of the same checkpoint (with sync) in the same run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
from measuring import Job, as_rows, command, keep, machine, size


@click.command()
@click.option("--name", default="codegen-350M-mono", show_default=True)
@click.option("--layers", type=int, help="Cut the model to so many layers.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--optimum", type=click.Path(exists=True), help="optimum-cli of its environment.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(
    name: str,
    layers: int | None,
    repeats: int,
    optimum: str | None,
    work: Path | None,
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
        _write(name, repeats, jobs, size(source))


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


def _write(name: str, repeats: int, jobs: list[Job], source_bytes: int) -> None:
    shape, rows = machine(), as_rows(jobs)
    result = {"command": command(), "model": name, "source_bytes": source_bytes,
              "repeats": repeats, "machine": shape, "rows": rows}  # fmt: skip
    lines = [
        f"`{command()}`",
        "",
        f"{name}'s shape, {source_bytes / 1e9:.2f} GB `pytorch_model.bin`; "
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; "
        f"medians of {repeats} interleaved runs, process start included.",
        "",
        "| | seconds | × cp | peak memory, GB | written, GB |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['median']:.1f} | {row['times_first']:.1f} "
            f"| {row['peak_bytes'] / 1e9:.2f} | "
            + (f"{row['written_bytes'] / 1e9:.2f} |" if row["written_bytes"] else "– |")
            for row in rows
        ),
    ]
    keep(f"conversion-{name}", result, lines)


if __name__ == "__main__":
    main()
