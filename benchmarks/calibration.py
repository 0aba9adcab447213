"""Measure time and peak memory of `quantize --bits 4` on a family member's shape, random weights.

    python benchmarks/calibration.py codegen-350M-mono --work bench
    python benchmarks/calibration.py codegen-16B-mono --layers 1 --work bench

Memory does not depend on the number of layers, because layers are calibrated one at a time and the
others are not in memory. So `--layers` gives the memory of the whole model in less time. Time is
proportional to the number of layers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
from measuring import RESULTS, Job, command, machine, store, work_folder

from cgconvert import embedded


@click.command()
@click.argument("name")
@click.option("--layers", type=click.IntRange(1), help="Keep only this many layers.")
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(name: str, layers: int | None, threads: int, work: Path | None) -> None:
    """Measure one model once, and add it to the table of earlier measurements."""
    with work_folder(work) as folder:
        cut = ["--layers", str(layers)] if layers else []
        make = [
            sys.executable,
            "-m",
            "cgconvert.testing.synthetic",
            name,
            "--layout",
            "streamed",
            *cut,
        ]
        subprocess.run([*make, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL)
        source, target = next(folder.iterdir()), folder / "m.gguf"
        quantize = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, "-m", "cgconvert"]
        quantize += ["quantize", str(source), "--bits", "4", "-o", str(target)]
        job = Job(name, [*quantize, "--tokenizer", str(embedded.path())], target)
        job.measure()
    announced = re.search(
        r"(\d+) windows of (\d+) tokens.*time: +(.*?), by", " ".join(job.stderr.split())
    )
    assert announced, job.stderr
    file = RESULTS / "calibration.json"
    result = json.loads(file.read_text()) if file.is_file() else {"runs": {}}
    label = f"{name}, {layers} layers" if layers else name
    result["machine"] = machine()
    result["runs"][label] = {
        "command": command(), "threads": threads, "tokens": int(announced[1]) * int(announced[2]),
        "predicted": announced[3], "seconds": round(job.seconds[0], 1), "peak_bytes": job.peak[0],
        "written_bytes": job.written,
    }  # fmt: skip
    shape = result["machine"]
    lines = [
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; memory is the "
        "peak of all processes, including mapped pages.",
        "",
        "| model | threads | calibration tokens | predicted | minutes | GB | file, GB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {label} | {run['threads']} | {run['tokens']} | {run['predicted']} "
            f"| {run['seconds'] / 60:.1f} | {run['peak_bytes'] / 1e9:.1f} "
            f"| {run['written_bytes'] / 1e9:.2f} |"
            for label, run in result["runs"].items()
        ),
        "",
        *(f"`{run['command']}`  " for run in result["runs"].values()),
    ]
    store("calibration", result, lines)


if __name__ == "__main__":
    main()
