"""Measure time and peak memory of `cgconvert verify` on every type of a model.

    python benchmarks/verification.py --name codegen-350M-mono

The model has the family's shape and random weights. Each artefact is written, then verified in its
own process with an empty cache, so that the time includes the reference. No peer does this.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from measuring import Job, as_rows, command, machine, store, work_folder

TYPES = {
    "hf float16": ("to-hf",),
    "hf phi": ("to-hf", "--layout", "phi"),
    "onnx float32": ("to-onnx",),
    "onnx float16": ("to-onnx", "--dtype", "float16"),
    "onnx int8": ("to-onnx", "--bits", "8"),
    "onnx int4": ("to-onnx", "--bits", "4"),
    "gguf F16": ("to-gguf", "--type", "F16"),
    "gguf Q8_0": ("to-gguf", "--type", "Q8_0"),
    "gguf Q4_0": ("to-gguf", "--type", "Q4_0"),
}


@click.command()
@click.option("--name", default="codegen-350M-mono", show_default=True)
@click.option("--only", multiple=True, help="Types whose name contains this.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(name: str, only: tuple[str, ...], work: Path | None) -> None:
    """Verify each type once."""
    ours, jobs = [sys.executable, "-m", "cgconvert"], []
    with work_folder(work) as folder:
        make = [sys.executable, "-m", "cgconvert.testing.synthetic", name, "-o", str(folder)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for label, (conversion, *options) in TYPES.items():
            if only and not any(part in label for part in only):
                continue
            suffix = ".gguf" if conversion == "to-gguf" else ""
            path = folder / f"{label.replace(' ', '-')}{suffix}"
            write = [*ours, conversion, str(folder / name), "-o", str(path), *options]
            subprocess.run(write, check=True, capture_output=True)
            check = [*ours, "verify", str(path), "--reference", str(folder / name)]
            jobs.append(Job(label, ["env", f"CGCONVERT_CACHE={path}-cache", *check], None))
            click.echo(label, err=True)
            jobs[-1].measure()
    shape, rows = machine("onnxruntime", "llama-cpp-python", "transformers"), as_rows(jobs)
    lines = [
        f"`{command()}`",
        "",
        f"{name}'s shape, random weights, a context of 2048; {shape['cores']} cores, "
        f"{shape['memory_gb']} GB, {shape['architecture']}; one run each, process start included.",
        "",
        "| | seconds | peak memory, GB |",
        "|---|---|---|",
        *(f"| {r['name']} | {r['median']:.0f} | {r['peak_bytes'] / 1e9:.2f} |" for r in rows),
    ]
    result = {"command": command(), "model": name, "machine": shape, "rows": rows}
    store(f"verification-{name}", result, lines)


if __name__ == "__main__":
    main()
