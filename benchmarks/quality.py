"""Measure what quantization loses in llama.cpp: ours, and llama-quantize with or without imatrix.

    python benchmarks/quality.py --model codegen-tiny-mono

All files are made from one F16 file and one calibration text, the calibration part of the running
Python's standard library. Losses are measured in an unmodified llama.cpp on the evaluation part,
which is not used for any choice, against the float16 reference. The model must be a trained one, or
the losses mean nothing. The imatrix contains the mean square of each matrix's inputs, as
llama.cpp's own tool computes it, over the windows on which ours is calibrated.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from losses import EvaluationText, Row, store_rows, table
from measuring import command, machine, work_folder

from cgconvert.calibrate.budget import Budget
from cgconvert.calibrate.calibration_set import PRESETS, CalibrationPreset, CalibrationSet
from cgconvert.calibrate.gguf import CalibratedGGUF
from cgconvert.calibrate.imatrix import collect
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.imatrix import Imatrix
from cgconvert.formats.read import read
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.texts.text import STDLIB, read_text
from cgconvert.write.execute import execute

PEERS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M")
OURS = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S")
SHARE = 0.75
"""The share of Q4_K_M's bytes with which ours should lose no more than Q4_K_M."""


@click.command()
@click.option("--model", default="codegen-tiny-mono", show_default=True)
@click.option("--tokens", type=click.IntRange(512), default=16384, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--type", "only", multiple=True, help="Measure only this type and Q4_K_M.")
@click.option("--work", type=click.Path(path_type=Path))
def main(model: str, tokens: int, threads: int, only: tuple[str, ...], work: Path | None) -> None:
    """Create every file and measure its loss."""
    peers, ours = (
        [t for t in types if not only or t in (*only, "Q4_K_M")] for types in (PEERS, OURS)
    )
    source = read(model)
    evaluation = EvaluationText(source, tokens)
    rows: list[Row] = []

    def measure(name: str, path: Path, seconds: float) -> None:
        runtime = LlamaCppRuntime.open(path, "cpu", threads)
        try:
            logits = np.concatenate([_logits(runtime, s) for s in evaluation.sequences])
        finally:
            runtime.close()
        rows.append(evaluation.row(name, path.stat().st_size, seconds, logits))
        click.echo(f"{name}: KL {rows[-1].kl:.3g}, {path.stat().st_size:,} bytes", err=True)

    with work_folder(work) as folder:
        half = folder / "F16.gguf"
        measure("F16", half, _timed(lambda: _write(source, half, "F16")))
        text = read_text(STDLIB, "calibration")
        effort = PRESETS["default"]
        ids = text.ids(source.tokenizer)
        windows = CalibrationSet.sample(ids, source.geometry, STDLIB, effort)
        collected = collect(source.decoder, windows.train, STDLIB, SilentProgress())
        means = {n: (i.squares / i.count).numpy() for n, i in collected.inputs.items()}
        for type_ in peers:
            for label, matrix in (("", None), (" + imatrix", means)):
                path = folder / "peer.gguf"
                seconds = _timed(
                    lambda p=path, t=type_, m=matrix: _llama_quantize(half, p, t, m, threads)
                )
                measure(f"llama-quantize {type_}{label}", path, seconds)
        whole = next(r.nbytes for r in rows if r.name == "llama-quantize Q4_K_M")
        limits: list[tuple[str, Budget, CalibrationPreset]] = [
            *((f"as {t}", Budget(like=t), effort) for t in ours),
            (f"{SHARE:.0%} of Q4_K_M", Budget(nbytes=int(SHARE * whole)), effort),
            ("as Q4_K_M, effort max", Budget(like="Q4_K_M"), PRESETS["max"]),
        ]
        for type_ in ours:
            path = folder / "ours.gguf"
            for label, importance in (("no text", None), ("imatrix", collected)):
                seconds = _timed(lambda p=path, t=type_, i=importance: _write(source, p, t, i))
                measure(f"ours {type_}, {label}", path, seconds)
        for label, budget, hard in limits:
            path, options = folder / "ours.gguf", {"budget": budget, "effort": hard}
            seconds = _timed(lambda p=path, a=options: _calibrated(source, p, text, folder, **a))
            measure(f"ours calibrated, {label}", path, seconds)
    _write_results(model, evaluation.tokens, threads, rows)


def _logits(runtime: LlamaCppRuntime, sequence: list[int]) -> np.ndarray:
    runtime.reset()
    return runtime.feed(sequence)


def _timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _write(source: Checkpoint, path: Path, type_: str, importance: Imatrix | None = None) -> None:
    execute(gguf.plan(source, path, type=type_, importance=importance), force=True)


def _calibrated(
    source: Checkpoint,
    path: Path,
    text: Any,
    folder: Path,
    *,
    budget: Budget,
    effort: CalibrationPreset,
) -> None:
    """Write a calibrated file; steps that do not depend on the budget are kept in `folder`."""
    plan = CalibratedGGUF(source, path, text, effort, {}, budget=budget)
    execute(plan.resolve(folder / "steps", SilentProgress()), force=True)


def _llama_quantize(
    source: Path, target: Path, type_: str, importance: dict[str, np.ndarray] | None, threads: int
) -> None:
    from llama_cpp import llama_cpp as lib

    lib.llama_log_set(SILENT, None)
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{type_}")
    parameters.nthread = threads
    if importance is not None:
        entries = [
            lib.llama_model_imatrix_data(
                name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
            )
            for name, values in importance.items()
        ]
        entries.append(lib.llama_model_imatrix_data(None, None, 0))
        parameters.imatrix = (lib.llama_model_imatrix_data * len(entries))(*entries)
    status = lib.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if status:
        raise click.ClickException(f"llama_model_quantize {type_} returned {status}")


def _silent() -> Any:
    from llama_cpp import llama_cpp as lib

    return lib.llama_log_callback(lambda level, text, data: None)


SILENT = _silent()


def _write_results(model: str, tokens: int, threads: int, rows: list[Row]) -> None:
    model = Path(model).name
    shape = machine("llama-cpp-python")
    base = next(r for r in rows if r.name == "llama-quantize Q4_K_M + imatrix")
    lines = [
        f"`{command()}`",
        "",
        f"{model}: mean and 99th percentile of the KL divergence from the float16 reference in "
        f"llama.cpp, over {tokens} tokens that were used for no choice; seconds on {threads} of "
        f"{shape['cores']} cores, {shape['architecture']}.",
        "",
        *table(rows, base, "Q4_K_M", "Q4_K_M imatrix"),
    ]
    facts = {"command": command(), "model": model, "tokens": tokens, "threads": threads,
             "machine": shape}  # fmt: skip
    store_rows(f"quality-{Path(model).name}", facts, rows, lines, "megabytes of the file")


if __name__ == "__main__":
    main()
