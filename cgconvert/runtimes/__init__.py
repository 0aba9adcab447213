"""Runtimes by the format they run. Nothing heavy is imported before one is opened."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import UsageError
from cgconvert.runtimes.runtime import Runtime

__all__ = ["RUNTIMES", "Entry", "Runtime", "open_runtime", "version_of"]


@dataclass(frozen=True)
class Entry:
    """Where a runtime's class is, and the package that does the work."""

    module: str
    name: str
    package: str

    def load(self) -> type[Runtime]:
        runtime: type[Runtime] = getattr(importlib.import_module(self.module), self.name)
        return runtime


RUNTIMES: Mapping[str, Mapping[str, Entry]] = {
    "huggingface": {
        "transformers": Entry("cgconvert.runtimes.transformers", "Transformers", "transformers"),
    },
    "onnx": {
        "onnxruntime": Entry("cgconvert.runtimes.onnxruntime", "OnnxRuntime", "onnxruntime"),
        "onnxruntime-genai": Entry("cgconvert.runtimes.genai", "Genai", "onnxruntime_genai"),
    },
    "gguf": {
        "llama.cpp": Entry("cgconvert.runtimes.llamacpp", "LlamaCpp", "llama_cpp"),
    },
}
"""By format, then by name; the first of a format is what it is run in unless told otherwise."""


def open_runtime(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    path: Path,
    device: str = "auto",
    *,
    name: str | None = None,
    threads: int | None = None,
) -> Runtime:
    """Open an artefact of a format, in the runtime called `name` or the format's first.

    `threads` is $OMP_NUM_THREADS unless given, else what the runtime takes by itself.
    `device` auto means cuda where the runtime has it, else the CPU. Raises UsageError for an
    unknown format, name or device and MissingRuntimeError or InputError as Runtime.open.
    """
    entry = _entry(format, name)
    # The variable torch itself reads; llama.cpp and onnxruntime do not.
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or None
    if device not in ("cpu", "cuda", "auto"):
        raise UsageError(f"device {device!r}: give cpu, cuda or auto")
    runtime = entry.load()
    if device != "auto":
        return runtime.open(path, device, threads)
    if _has_gpu():
        try:
            return runtime.open(path, "cuda", threads)
        except UsageError:  # built without CUDA, or not there at all: the CPU says which
            pass
    return runtime.open(path, "cpu", threads)


def version_of(runtime: Runtime) -> str:
    """Version of the package an open runtime works with."""
    entries = {name: entry for table in RUNTIMES.values() for name, entry in table.items()}
    return str(importlib.import_module(entries[runtime.name].package).__version__)


def _entry(format: str, name: str | None) -> Entry:  # noqa: A002
    table = RUNTIMES.get(format)
    if table is None:
        raise UsageError(f"nothing here runs {format!r}; there are {', '.join(RUNTIMES)}")
    if name is None:
        return next(iter(table.values()))
    if name not in table:
        raise UsageError(f"runtime {name!r} does not run {format}; use {' or '.join(table)}")
    return table[name]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
