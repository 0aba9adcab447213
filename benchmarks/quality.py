"""What quantization loses, in llama.cpp itself: ours and llama-quantize, with or without imatrix.

    python benchmarks/quality.py --model codegen-tiny-mono

Everything is made from one F16 file and one calibration text (the calibration part of the running
Python's standard library); losses are measured in an unmodified llama.cpp on the evaluation part,
which took part in no choice, against the float16 reference. Only a trained model says anything.
The imatrix holds what llama.cpp's own tool collects, the mean square of each matrix's inputs, over
the same windows that ours is fitted to.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from losses import HeldOut, Row, keep_rows, table
from measuring import command, machine, workplace

from cgconvert.calibrate.gguf import Budget
from cgconvert.calibrate.imatrix import collect
from cgconvert.calibrate.plans import CalibratedGGUF
from cgconvert.calibrate.preset import PRESETS, CalibrationPreset
from cgconvert.calibrate.quantizer import CalibrationSet
from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.gguf.imatrix import Imatrix
from cgconvert.formats.read import read
from cgconvert.io.progress import Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.runtimes.llamacpp import LlamaCpp
from cgconvert.texts.text import STDLIB, read_text
from cgconvert.write.execute import execute

PEERS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M")
OURS = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S")
SHARE = 0.75
"""Of Q4_K_M's bytes, at which its loss should be met."""


@click.command()
@click.option("--model", default="codegen-tiny-mono", show_default=True)
@click.option("--tokens", type=click.IntRange(512), default=16384, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--type", "only", multiple=True, help="Of all types only this, and Q4_K_M.")
@click.option("--work", type=click.Path(path_type=Path))
def main(model: str, tokens: int, threads: int, only: tuple[str, ...], work: Path | None) -> None:
    """Make every file and measure it."""
    peers, ours = (
        [t for t in types if not only or t in (*only, "Q4_K_M")] for types in (PEERS, OURS)
    )
    source = read(model)
    held_out = HeldOut(source, tokens)
    rows: list[Row] = []

    def judge(name: str, path: Path, seconds: float) -> None:
        runtime = LlamaCpp.open(path, "cpu", threads)
        try:
            logits = np.concatenate([_fed(runtime, s) for s in held_out.sequences])
        finally:
            runtime.close()
        rows.append(held_out.row(name, path.stat().st_size, seconds, logits))
        click.echo(f"{name}: KL {rows[-1].kl:.3g}, {path.stat().st_size:,} bytes", err=True)

    with workplace(work) as place:
        half = place / "F16.gguf"
        judge("F16", half, _timed(lambda: _write(source, half, "F16")))
        text = read_text(STDLIB, "calibration")
        effort = PRESETS["default"]
        ids = text.ids(source.tokenizer)
        windows = CalibrationSet.of(ids, source.geometry, STDLIB, effort)
        collected = collect(source.decoder, windows.fitted, STDLIB, Silent())
        means = {n: (i.squares / i.count).numpy() for n, i in collected.inputs.items()}
        for type_ in peers:
            for label, matrix in (("", None), (" + imatrix", means)):
                path = place / "peer.gguf"
                spent = _timed(
                    lambda p=path, t=type_, m=matrix: _llama_quantize(half, p, t, m, threads)
                )
                judge(f"llama-quantize {type_}{label}", path, spent)
        whole = next(r.nbytes for r in rows if r.name == "llama-quantize Q4_K_M")
        limits: list[tuple[str, Budget, CalibrationPreset]] = [
            *((f"as {t}", Budget(like=t), effort) for t in ours),
            (f"{SHARE:.0%} of Q4_K_M", Budget(nbytes=int(SHARE * whole)), effort),
            ("as Q4_K_M, effort max", Budget(like="Q4_K_M"), PRESETS["max"]),
        ]
        for type_ in ours:
            path = place / "ours.gguf"
            for label, given in (("no text", None), ("imatrix", collected)):
                spent = _timed(lambda p=path, t=type_, i=given: _write(source, p, t, i))
                judge(f"ours {type_}, {label}", path, spent)
        for label, budget, hard in limits:
            path, asked = place / "ours.gguf", {"budget": budget, "effort": hard}
            spent = _timed(lambda p=path, a=asked: _calibrated(source, p, text, place, **a))
            judge(f"ours calibrated, {label}", path, spent)
    _write_results(model, held_out.tokens, threads, rows)


def _fed(runtime: LlamaCpp, sequence: list[int]) -> np.ndarray:
    runtime.reset()
    return runtime.feed(sequence)


def _timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _write(source: Checkpoint, path: Path, type_: str, importance: Imatrix | None = None) -> None:
    execute(gguf.plan(source, path, type=type_, importance=importance), force=True)


def _calibrated(
    source: Checkpoint,
    path: Path,
    text: Any,
    place: Path,
    *,
    budget: Budget,
    effort: CalibrationPreset,
) -> None:
    """What does not depend on the budget is kept from one to the next."""
    asked = CalibratedGGUF(source, path, text, effort, {}, budget=budget)
    execute(asked.resolve(place / "steps", Silent()), force=True)


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
        f"llama.cpp, over {tokens} tokens that took part in no choice; seconds on {threads} of "
        f"{shape['cores']} cores, {shape['architecture']}.",
        "",
        *table(rows, base, "Q4_K_M", "Q4_K_M imatrix"),
    ]
    facts = {"command": command(), "model": model, "tokens": tokens, "threads": threads,
             "machine": shape}  # fmt: skip
    keep_rows(f"quality-{Path(model).name}", facts, rows, lines, "megabytes of the file")


if __name__ == "__main__":
    main()
