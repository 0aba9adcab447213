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
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch

import cgconvert
from cgconvert.errors import CgconvertError, UsageError
from cgconvert.formats.registry import identify
from cgconvert.model.device import torch_device
from cgconvert.runtimes import RUNTIMES, open_runtime

BUILT_IN = "codegen-tiny-mono"
SPEED_MODEL = "codegen-350M-mono"
PROMPT_TOKENS, STEPS, TOKEN = 384, 64, 100

ARTEFACTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hf": ("to-hf", {}),
    "onnx": ("to-onnx", {}),
    "onnx-fp16 --target cuda": ("to-onnx", {"dtype": "float16", "target": "cuda"}),
    "onnx-int4": ("to-onnx", {"bits": 4}),
    "gguf F16": ("to-gguf", {"type": "F16"}),
    "gguf Q8_0": ("to-gguf", {"type": "Q8_0"}),
    "gguf Q4_K_M": ("to-gguf", {"type": "Q4_K_M"}),
}
"""The artefacts that are made, and the conversion and options of each."""

ON_A_GPU_ONLY = ("onnx-fp16 --target cuda",)
"""Artefacts whose graph is made for CUDA."""

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
    for name, (conversion, options) in ARTEFACTS.items():
        suffix = ".gguf" if conversion == "to-gguf" else ""
        output = run.work / (name.replace(" ", "-") + suffix)

        def measure(
            row: Row,
            name: str = name,
            conversion: str = conversion,
            options: Mapping[str, Any] = options,
            output: Path = output,
        ) -> None:
            taken, result = seconds(
                lambda: cgconvert.convert(BUILT_IN, conversion, output, **options)
            )
            row.cpu = f"{taken:.1f} s"
            paths[name] = result.path

        run.row("convert", name, measure)
    return paths


def calibrate(run: Run) -> dict[str, Path]:
    """Quantize the built-in model with calibration, on the device and on the CPU."""
    paths: dict[str, Path] = {}
    cases = {
        "calibrated gguf": ("gguf", ".gguf"),
        "calibrated onnx": ("onnx", ""),
    }
    for name, (format_, suffix) in cases.items():

        def measure(row: Row, name: str = name, format_: str = format_, end: str = suffix) -> None:
            def quantize(device: str) -> Path:
                output = run.work / f"{name.replace(' ', '-')}-{device}{end}"
                options = {"bits": 4, "format": format_, "device": device}
                return cgconvert.convert(BUILT_IN, "quantize", output, **options).path

            on_device, paths[name] = seconds(lambda: quantize(run.device))
            row.device = f"{on_device:.0f} s"
            if run.device != "cpu":
                on_cpu, _ = seconds(lambda: quantize("cpu"))
                row.cpu, row.ratio = f"{on_cpu:.0f} s", f"{on_cpu / on_device:.1f}"

        run.row("calibrate", name, measure)
    return paths


def verify(run: Run, paths: Mapping[str, Path]) -> None:
    """Verify every artefact in every runtime of its format, on the device."""
    for name, path in paths.items():
        if name in ON_A_GPU_ONLY and run.device == "cpu":
            continue
        for runtime in RUNTIMES[identify(path).format]:

            def measure(row: Row, path: Path = path, runtime: str = runtime) -> None:
                taken, result = seconds(
                    lambda: cgconvert.verify(
                        path, reference=BUILT_IN, runtime=runtime, device=run.device
                    )
                )
                checks = {check.name: check for check in result.checks}
                loss = checks.get("logits.kl_mean")
                row.device = f"{taken:.0f} s"
                row.result = f"{result.verdict}, KL {loss.value:.2g}" if loss else result.verdict
                if not result.passed:
                    failed = [check.name for check in result.checks if check.verdict == "fail"]
                    row.result, row.exit_code = f"failed: {', '.join(failed)}", 4

            run.row("verify", f"{name}, {runtime}", measure)


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
    for name, (conversion, options) in ARTEFACTS.items():
        if name in ON_A_GPU_ONLY and run.device == "cpu":
            continue
        suffix = ".gguf" if conversion == "to-gguf" else ""
        output = run.work / f"speed-{name.replace(' ', '-')}{suffix}"
        format_ = {"to-hf": "huggingface", "to-onnx": "onnx", "to-gguf": "gguf"}[conversion]
        for runtime in RUNTIMES[format_]:

            def measure(
                row: Row,
                name: str = name,
                conversion: str = conversion,
                options: Mapping[str, Any] = options,
                output: Path = output,
                runtime: str = runtime,
            ) -> None:
                if not output.exists():
                    cgconvert.convert(source, conversion, output, **options)
                devices = {run.device, "cpu"}
                if name in ON_A_GPU_ONLY:
                    devices.discard("cpu")
                measured: dict[str, list[tuple[float, float]]] = {device: [] for device in devices}
                for _ in range(rounds):
                    for device, speeds in measured.items():
                        speeds.append(tokens_a_second(output, device, runtime))
                medians = {
                    device: [statistics.median(column) for column in zip(*speeds, strict=True)]
                    for device, speeds in measured.items()
                }
                row.device = "{:.0f} + {:.0f} tokens/s".format(*medians[run.device])
                if run.device != "cpu" and "cpu" in medians:
                    row.cpu = "{:.0f} + {:.0f} tokens/s".format(*medians["cpu"])
                    ratios = [
                        a / b for a, b in zip(medians[run.device], medians["cpu"], strict=True)
                    ]
                    row.ratio = "{:.1f}, {:.1f}".format(*ratios)

            run.row("prefill + decode", f"{name}, {runtime}", measure)


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
