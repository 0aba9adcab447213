"""The runtimes that run artefacts, by format. Nothing heavy is imported before one is opened.

A new runtime is a module with a subclass of `Runtime` and a line in `RUNTIMES`.
"""

from __future__ import annotations

import os
from pathlib import Path
from pkgutil import resolve_name

from cgconvert.errors import UsageError
from cgconvert.runtimes.runtime import Runtime

__all__ = ["RUNTIMES", "Runtime", "open_runtime", "runtime_class"]

RUNTIMES: dict[str, dict[str, str]] = {
    "huggingface": {
        "transformers": "cgconvert.runtimes.transformers:Transformers",
    },
    "onnx": {
        "onnxruntime": "cgconvert.runtimes.onnxruntime:OnnxRuntime",
        "onnxruntime-genai": "cgconvert.runtimes.genai:Genai",
    },
    "gguf": {
        "llama.cpp": "cgconvert.runtimes.llamacpp:LlamaCpp",
    },
}
"""Module and class of each runtime, by format and then by name. The first of a format is its
default."""


def open_runtime(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    path: Path,
    device: str = "auto",
    *,
    name: str | None = None,
    threads: int | None = None,
) -> Runtime:
    """Open an artefact in a runtime.

    Args:
        format: The artefact's format, a key of `RUNTIMES`.
        path: The artefact: a file or a folder.
        device: "cpu", "cuda", or "auto": cuda where the runtime can use it, else the CPU.
        name: The runtime's name; the format's default where it is None.
        threads: CPU threads; where None $OMP_NUM_THREADS, else the runtime's own default.

    Raises:
        UsageError: The format, the name or the device is unknown, or the device is not there.
        MissingRuntimeError: The runtime's package is not installed.
        InputError: The runtime cannot load the artefact.
    """
    runtime = runtime_class(format, name)
    # The variable torch itself reads; llama.cpp and onnxruntime do not.
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or None
    if device not in ("cpu", "cuda", "auto"):
        raise UsageError(f"device {device!r}: give cpu, cuda or auto")
    if device != "auto":
        return runtime.open(path, device, threads)
    if _has_gpu():
        try:
            return runtime.open(path, "cuda", threads)
        except UsageError:  # built without CUDA, or not installed: the CPU's error says which
            pass
    return runtime.open(path, "cpu", threads)


def runtime_class(format: str, name: str | None = None) -> type[Runtime]:  # noqa: A002
    """Import the class of a format's runtime called `name`, or of the format's default.

    Raises UsageError where the format or the name is unknown.
    """
    runtimes = RUNTIMES.get(format)
    if runtimes is None:
        raise UsageError(f"nothing here runs {format!r}; there are {', '.join(RUNTIMES)}")
    if name is None:
        name = next(iter(runtimes))
    if name not in runtimes:
        raise UsageError(f"runtime {name!r} does not run {format}; use {' or '.join(runtimes)}")
    runtime: type[Runtime] = resolve_name(runtimes[name])
    return runtime


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
