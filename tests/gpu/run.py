"""Run conversion, calibration, verification and decoding on a GPU and print one table.

    python tests/gpu/run.py                  # on a machine with a CUDA GPU, within 8 minutes
    python tests/gpu/run.py --device cpu --size tiny    # what the script itself does, without a GPU

It needs torch and llama-cpp-python built with CUDA, onnxruntime-gpu, transformers and, if there is
one, onnxruntime-genai-cuda; docs/gpu.md has the commands that install them. Quality is measured on
the built-in model, speed on the shape of codegen-350M-mono with random weights. Each row compares
the device with the CPU of the same machine. The exit code is 0 if every row passed, 4 if the GPU
gave another result than it should, 2 if a runtime or the device is missing, and 5 if the time was
over before the last row.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch

import cgconvert
from cgconvert.api.verification import Verification
from cgconvert.errors import CgconvertError, UsageError
from cgconvert.formats.registry import identify
from cgconvert.model.device import torch_device
from cgconvert.runtimes import RUNTIMES, open_runtime

BUILT_IN = "codegen-tiny-mono"
SPEED_MODEL = "codegen-350M-mono"
PROMPT_TOKENS, STEPS, TOKEN = 384, 64, 100


@dataclass(frozen=True)
class Artefact:
    """An artefact that is made and run: its name in the table, conversion, format and options."""

    name: str
    conversion: str
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False

    def write(self, source: str | Path, work: Path, prefix: str = "") -> Path:
        """Convert a source, unless that was done before; return the artefact's path."""
        suffix = ".gguf" if self.format == "gguf" else ""
        output = work / f"{prefix}{self.name.replace(' ', '-')}{suffix}"
        if not output.exists():
            cgconvert.convert(source, self.conversion, output, **self.options)
        return output


ARTEFACTS = (
    Artefact("hf", "to-hf", "huggingface"),
    Artefact("onnx", "to-onnx", "onnx"),
    Artefact("onnx-fp16 --target cuda", "to-onnx", "onnx",
             {"dtype": "float16", "target": "cuda"}, needs_gpu=True),
    Artefact("onnx-int4", "to-onnx", "onnx", {"bits": 4}),
    Artefact("gguf F16", "to-gguf", "gguf", {"type": "F16"}),
    Artefact("gguf Q8_0", "to-gguf", "gguf", {"type": "Q8_0"}),
    Artefact("gguf Q4_K_M", "to-gguf", "gguf", {"type": "Q4_K_M"}),
)  # fmt: skip

ON_A_GPU_ONLY = frozenset(artefact.name for artefact in ARTEFACTS if artefact.needs_gpu)

STAGES = ("convert", "calibrate", "verify", "decode")

PACKAGES = (
    "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai",
    "onnxruntime-genai-cuda", "llama-cpp-python",
)  # fmt: skip


@dataclass
class Row:
    """One line of the table: what ran, its times in seconds or speeds, and how it ended."""

    stage: str
    what: str
    device: str = ""
    cpu: str = ""
    ratio: str = ""
    result: str = "passed"
    exit_code: int = 0


@dataclass
class Run:
    """The rows so far, and the time after which no further row is begun."""

    device: str
    work: Path
    deadline: float
    rows: list[Row] = field(default_factory=list)

    def row(self, stage: str, what: str, measure: Callable[[Row], None]) -> None:
        """Add a row that `measure` fills; a failure is its result, and the next row still runs."""
        row = Row(stage, what)
        if time.monotonic() > self.deadline:
            row.result, row.exit_code = "not run: the time is over", 5
        else:
            try:
                measure(row)
            except CgconvertError as error:
                row.result, row.exit_code = " ".join(str(error).split()), error.exit_code
        self.rows.append(row)
        columns = (row.stage, row.what, row.device, row.cpu, row.ratio, row.result)
        print("| " + " | ".join(columns) + " |", flush=True)

    @property
    def exit_code(self) -> int:
        """A wrong result before what is missing, and that before the end of the time."""
        codes = {row.exit_code for row in self.rows}
        return next((code for code in (4, 3, 1, 2, 5) if code in codes), 0)


def seconds(compute: Callable[[], Any]) -> tuple[float, Any]:
    """The time that `compute` takes, in seconds, and what it returns."""
    began = time.monotonic()
    value = compute()
    return time.monotonic() - began, value


def convert(run: Run) -> dict[str, Path]:
    """Write the artefacts of the built-in model; conversion itself always runs on the CPU."""
    paths: dict[str, Path] = {}

    def measure(artefact: Artefact, row: Row) -> None:
        taken, paths[artefact.name] = seconds(lambda: artefact.write(BUILT_IN, run.work))
        row.cpu = f"{taken:.1f} s"

    for artefact in ARTEFACTS:
        run.row("convert", artefact.name, partial(measure, artefact))
    return paths


def calibrate(run: Run) -> dict[str, Path]:
    """Quantize the built-in model with calibration, on the device and on the CPU."""
    paths: dict[str, Path] = {}

    def quantize(format_: str, device: str) -> Path:
        options = {"bits": 4, "format": format_, "device": device}
        artefact = Artefact(f"calibrated {format_}", "quantize", format_, options)
        return artefact.write(BUILT_IN, run.work, f"{device}-")

    def measure(format_: str, row: Row) -> None:
        on_device, paths[row.what] = seconds(lambda: quantize(format_, run.device))
        row.device = f"{on_device:.0f} s"
        if run.device != "cpu":
            on_cpu, _ = seconds(lambda: quantize(format_, "cpu"))
            row.cpu, row.ratio = f"{on_cpu:.0f} s", f"{on_cpu / on_device:.1f}"

    for format_ in ("gguf", "onnx"):
        run.row("calibrate", f"calibrated {format_}", partial(measure, format_))
    return paths


def verify(run: Run, paths: Mapping[str, Path]) -> None:
    """Verify every artefact in every runtime of its format, on the device."""

    def measure(path: Path, runtime: str, row: Row) -> None:
        taken, result = seconds(
            lambda: cgconvert.verify(path, reference=BUILT_IN, runtime=runtime, device=run.device)
        )
        row.device = f"{taken:.0f} s"
        row.result, row.exit_code = outcome(result)

    for name, path in paths.items():
        if name in ON_A_GPU_ONLY and run.device == "cpu":
            continue
        for runtime in RUNTIMES[identify(path).format]:
            run.row("verify", f"{name}, {runtime}", partial(measure, path, runtime))


def outcome(result: Verification) -> tuple[str, int]:
    """What the table says of a verification of one artefact, and its exit code."""
    (report,) = result.reports
    if report.is_only_unrun:
        return f"not run: {report.runtime['missing']}", 2
    if not result.passed:
        return f"failed: {', '.join(c.name for c in result.checks if c.verdict == 'fail')}", 4
    loss = next((c.value for c in result.checks if c.name == "logits.kl_mean"), None)
    return (f"{result.verdict}, KL {loss:.2g}" if loss is not None else str(result.verdict)), 0


@contextlib.contextmanager
def opened(path: Path, device: str, runtime: str) -> Iterator[Any]:
    """An artefact in a runtime, closed at the end."""
    model = open_runtime(identify(path).format, path, device, name=runtime)
    try:
        yield model
    finally:
        model.close()


def tokens_a_second(path: Path, device: str, runtime: str) -> tuple[float, float]:
    """Speed of a prefill and of single steps after it, in tokens a second."""
    with opened(path, device, runtime) as model:
        model.feed_last([TOKEN] * PROMPT_TOKENS)  # the first call compiles and allocates
        model.reset()
        prefill, _ = seconds(lambda: model.feed_last([TOKEN] * PROMPT_TOKENS))
        decode, _ = seconds(lambda: [model.feed_last([TOKEN]) for _ in range(STEPS)])
    return PROMPT_TOKENS / prefill, STEPS / decode


def decode(run: Run, source: str | Path, rounds: int) -> None:
    """Measure the speed of a model in every runtime.

    Device and CPU take turns, `rounds` times; figures are medians.
    """

    def measure(artefact: Artefact, runtime: str, row: Row) -> None:
        path = artefact.write(source, run.work, "speed-")
        devices = [run.device] if artefact.needs_gpu else list(dict.fromkeys((run.device, "cpu")))
        measured: dict[str, list[tuple[float, float]]] = {device: [] for device in devices}
        for _ in range(rounds):
            for device, speeds in measured.items():
                speeds.append(tokens_a_second(path, device, runtime))
        medians = {
            device: [statistics.median(column) for column in zip(*speeds, strict=True)]
            for device, speeds in measured.items()
        }
        row.device = "{:.0f} + {:.0f} tokens/s".format(*medians[run.device])
        if run.device != "cpu" and "cpu" in medians:
            row.cpu = "{:.0f} + {:.0f} tokens/s".format(*medians["cpu"])
            ratios = [a / b for a, b in zip(medians[run.device], medians["cpu"], strict=True)]
            row.ratio = "{:.1f}, {:.1f}".format(*ratios)

    for artefact in ARTEFACTS:
        if artefact.needs_gpu and run.device == "cpu":
            continue
        for runtime in RUNTIMES[artefact.format]:
            what = f"{artefact.name}, {runtime}"
            run.row("prefill + decode", what, partial(measure, artefact, runtime))


def speed_source(size: str, work: Path) -> str | Path:
    """The checkpoint whose speed is measured: the built-in model, or random weights of 350M."""
    if size == "tiny":
        return BUILT_IN
    from cgconvert import embedded
    from cgconvert.model import family
    from cgconvert.testing.synthetic import RandomState, write

    geometry = family.geometry(SPEED_MODEL)
    return write("safetensors", RandomState(geometry), geometry, work, SPEED_MODEL, embedded.path())


def machine(device: str) -> dict[str, str]:
    """The GPU, and the version of each package that is installed."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    if device != "cpu" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions["GPU"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        versions["CUDA of torch"] = str(torch.version.cuda)
    return versions


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--size", type=click.Choice(["tiny", "350M"]), default="350M", show_default=True)
@click.option("--minutes", type=float, default=8.0, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Speeds are medians of so many.")
@click.option(
    "--stage",
    "stages",
    type=click.Choice(STAGES),
    multiple=True,
    help="Run only this; repeatable. Verifying takes the artefacts of the stages before.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Store the table too.")
def main(
    device: str,
    size: str,
    minutes: float,
    rounds: int,
    stages: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Run everything on a device and print one table."""
    began = time.monotonic()
    try:
        torch_device(device)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    versions = machine(device)
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"\n| | | {device} | CPU | ratio | |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="cgconvert-gpu-") as folder:
        run = Run(device, Path(folder), began + 60 * minutes)
        chosen = stages or STAGES
        paths = convert(run) if "convert" in chosen else {}
        if "calibrate" in chosen:
            paths |= calibrate(run)
        if "verify" in chosen:
            verify(run, paths)
        if "decode" in chosen:
            decode(run, speed_source(size, run.work), rounds)
    passed = sum(row.exit_code == 0 for row in run.rows)
    print(f"\n{passed} of {len(run.rows)} passed, {time.monotonic() - began:.0f} s")
    if json_path:
        table = {"machine": versions, "device": device, "rows": [asdict(row) for row in run.rows]}
        json_path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    sys.exit(run.exit_code)


if __name__ == "__main__":
    main()
