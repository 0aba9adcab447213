"""Time and peak memory of `quantize --bits 4` on a family member's shape, weights random.

    python benchmarks/calibration.py codegen-350M-mono --work bench
    python benchmarks/calibration.py codegen-16B-mono --layers 1 --work bench

Memory does not depend on the number of layers (one is worked on at a time, of which the others are
not held), so a cut model shows that of the whole one. Time goes with them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
from measuring import RESULTS, Job, command, keep, machine, workplace

from cgconvert import embedded


@click.command()
@click.argument("name")
@click.option("--layers", type=click.IntRange(1), help="Cut to so many.")
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(name: str, layers: int | None, threads: int, work: Path | None) -> None:
    """Measure one model once, beside what was measured before."""
    with workplace(work) as place:
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
        subprocess.run([*make, "-o", str(place)], check=True, stdout=subprocess.DEVNULL)
        source, target = next(place.iterdir()), place / "m.gguf"
        given = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, "-m", "cgconvert", "quantize"]
        given += [str(source), "--bits", "4", "-o", str(target)]
        job = Job(name, [*given, "--tokenizer", str(embedded.path())], target)
        job.measure()
    told = re.search(r"(\d+) windows of (\d+) tokens.*; about (.*) here", job.said)
    assert told, job.said
    file = RESULTS / "calibration.json"
    result = json.loads(file.read_text()) if file.is_file() else {"runs": {}}
    label = f"{name}, {layers} layers" if layers else name
    result["machine"] = machine()
    result["runs"][label] = {
        "command": command(), "threads": threads, "tokens": int(told[1]) * int(told[2]),
        "told": told[3], "seconds": round(job.seconds[0], 1), "peak_bytes": job.peak[0],
        "written_bytes": job.written,
    }  # fmt: skip
    shape = result["machine"]
    lines = [
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; memory is the "
        "peak of all processes, mapped pages in it.",
        "",
        "| model | threads | tokens fitted to | told before | minutes | GB | file, GB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {label} | {run['threads']} | {run['tokens']} | {run['told']} "
            f"| {run['seconds'] / 60:.1f} | {run['peak_bytes'] / 1e9:.1f} "
            f"| {run['written_bytes'] / 1e9:.2f} |"
            for label, run in result["runs"].items()
        ),
        "",
        *(f"`{run['command']}`  " for run in result["runs"].values()),
    ]
    keep("calibration", result, lines)


if __name__ == "__main__":
    main()
