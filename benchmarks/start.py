"""Measure how soon the commands answer: help, mistakes of usage, completion, headers and plans.

    python benchmarks/start.py

Each command runs in a process of its own, in turn with `python -c "import click, numpy"`, which
stands for what no command line with numpy starts below. The built-in model is the source.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import click
from measuring import command, machine, store

SOURCE = "codegen-tiny-mono"

PEERS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import click, numpy'": ["-c", "import click, numpy"],
    "python -c 'import torch'": ["-c", "import torch"],
}
PEER = "python -c 'import click, numpy'"

COMMANDS = (
    "", "--help", "--version", "to-gguf --help", "quantize --help", "to-nothing",
    "to-hf x --dtype int3", f"inspect {SOURCE}", f"inspect {SOURCE} --json", "run --list",
    *(f"to-{kind} {SOURCE} --dry-run" for kind in ("hf", "onnx", "gguf")),
    f"to-gguf {SOURCE} --type Q4_K_M --dry-run",
)  # fmt: skip
"""Arguments of cgconvert; those without a meaning are mistakes of usage."""

COMPLETED = "cgconvert to-gguf codegen-"


@click.command()
@click.option("--runs", type=click.IntRange(1), default=21, show_default=True)
def main(runs: int) -> None:
    """Let the commands take turns, and print the medians."""
    started = {name: [sys.executable, *arguments] for name, arguments in PEERS.items()}
    for arguments in COMMANDS:
        name = f"cgconvert {arguments}".strip()
        started[name] = [sys.executable, "-m", "cgconvert", *arguments.split()]
    completion = f"completion of `{COMPLETED}`"
    started[completion] = [sys.executable, "-m", "cgconvert"]
    environment = os.environ | {"COMP_WORDS": COMPLETED, "COMP_CWORD": "2"}
    environment["_CGCONVERT_COMPLETE"] = "bash_complete"
    seconds: dict[str, list[float]] = {name: [] for name in started}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs + 1):
            for name, line in started.items():
                began = time.perf_counter()
                subprocess.run(
                    line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=environment if name == completion else None,
                )  # fmt: skip
                seconds[name].append(time.perf_counter() - began)
    # The first run reads the files from the disk.
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    least = {name: min(times[1:]) for name, times in seconds.items()}
    shape = machine("click", "numpy", "torch")
    lines = [
        f"`{command()}`",
        "",
        f"{shape['cores']} cores, {shape['memory_gb']} GB, {shape['architecture']}; medians of "
        f"{runs} runs in turn, seconds.",
        "",
        "| command | median | least | of click and numpy |",
        "|---|---|---|---|",
        *(
            f"| {name if name in PEERS or name == completion else f'`{name}`'} | {median:.3f} "
            f"| {least[name]:.3f} | {median / medians[PEER]:.1f} |"
            for name, median in medians.items()
        ),
    ]
    rows = [{"name": name, "median": medians[name], "least": least[name]} for name in medians]
    store("start", {"command": command(), "machine": shape, "rows": rows}, lines)


if __name__ == "__main__":
    main()
