"""The runtimes that run artefacts, by format; none is imported before it is opened.

A new runtime is a module with a subclass of `Runtime` and a line in `RUNTIMES`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from cgconvert.errors import InputError, UsageError
from cgconvert.io.reading import within_budget
from cgconvert.io.system.threads import threads_of_environment
from cgconvert.lazy import torch
from cgconvert.model.device import check_device_name

if TYPE_CHECKING:
    from cgconvert.runtimes.runtime import Runtime  # it needs numpy

__all__ = [
    "RUNTIMES", "open_class", "open_runtime", "open_with_float_activations", "prepare_runtime",
    "runtime_class", "runtime_names",
]  # fmt: skip

RUNTIMES: dict[str, dict[str, str]] = {
    "huggingface": {
        "transformers": "cgconvert.runtimes.transformers:TransformersRuntime",
    },
    "onnx": {
        "onnxruntime": "cgconvert.runtimes.onnxruntime:OnnxRuntime",
        "onnxruntime-genai": "cgconvert.runtimes.genai:GenaiRuntime",
    },
    "gguf": {
        "llama.cpp": "cgconvert.runtimes.llamacpp:LlamaCppRuntime",
    },
}
"""Module and class of each runtime, by format and then by name. The first of a format is its
default."""


@within_budget()
def open_runtime(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    path: Path,
    device: str = "auto",
    *,
    name: str | None = None,
    threads: int | None = None,
) -> Runtime:
    """Open an artefact in a runtime, which runs in a process of its own.

    Args:
        format: The artefact's format, a key of `RUNTIMES`.
        path: The artefact: a file or a folder.
        device: One of model.device.DEVICES; auto is cuda if the runtime can use it, else cpu.
        name: The runtime's name; None for the format's default.
        threads: CPU threads; None for $OMP_NUM_THREADS, or the runtime's own default if that is
            not set.

    Raises:
        UsageError: The format has no runtime, the name or the device is unknown, or the device is
            not there.
        MissingRuntimeError: The runtime's package is not installed.
        InputError: The runtime cannot load the artefact.
        RuntimeEndedError: The runtime crashed, or took more memory or time than it may.
    """
    runtime = runtime_class(format, name)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{path}: its name is not UTF-8, which no runtime can open; rename it"
        ) from None
    # torch reads this variable itself; llama.cpp and onnxruntime do not.
    threads = threads or threads_of_environment()
    check_device_name(device)
    if device != "auto":
        return open_class(runtime, path, device, threads)
    if _has_gpu():
        try:
            return open_class(runtime, path, "cuda", threads)
        except UsageError:  # without CUDA the CPU will do; what is not installed, it says again
            pass
    return open_class(runtime, path, "cpu", threads)


def prepare_runtime(
    format: str,  # noqa: A002
    name: str | None = None,
    *further_modules: str,
) -> None:
    """Begin to import what a runtime of a format needs, in another process, for `open_runtime`.

    It takes no time of this process, which has other things to do before. Nothing is imported so
    while a runtime is open. `further_modules` are imported with it.

    Raises UsageError if the format has no runtime, or none of that name.
    """
    from cgconvert.io.separate_object import prepare
    from cgconvert.runtimes.separate_runtime import runtime_imports

    prepare([*runtime_imports(runtime_class(format, name)), *further_modules])


def open_with_float_activations(
    format: str,  # noqa: A002
    path: Path,
    device: str,
    *,
    name: str | None = None,
    threads: int | None = None,
) -> Runtime | None:
    """Open an artefact as Runtime.open_with_float_activations does, in a process of its own.

    The arguments are those of `open_runtime`, and so is what it raises. Returns None if the runtime
    has no such mode, or the artefact no matrices that the mode would affect.
    """
    from cgconvert.runtimes.separate_runtime import open_separately

    runtime = runtime_class(format, name)
    return open_separately(runtime, path, device, threads, float_activations=True)


def open_class(runtime: type[Runtime], path: Path, device: str, threads: int | None) -> Runtime:
    """Open an artefact in the runtime of a class, in a process of its own.

    `runtime.open` does the same in this process; tests put it in the place of this function.
    """
    from cgconvert.runtimes.separate_runtime import open_separately

    opened = open_separately(runtime, path, device, threads)
    assert opened is not None
    return opened


def runtime_names(format: str) -> list[str]:  # noqa: A002
    """The names of the runtimes of a format, its default first.

    Raises UsageError if no runtime runs the format.
    """
    if format not in RUNTIMES:
        raise UsageError(
            f"no runtime runs {format!r} artefacts; there are runtimes for {', '.join(RUNTIMES)}"
        )
    return list(RUNTIMES[format])


def runtime_class(format: str, name: str | None = None) -> type[Runtime]:  # noqa: A002
    """Import the class of a format's runtime called `name`, or of the format's default.

    Raises UsageError if the format has no runtime, or none of that name.
    """
    names = runtime_names(format)
    if name is None:
        name = names[0]
    if name not in names:
        raise UsageError(f"runtime {name!r} does not run {format}; use {' or '.join(names)}")
    runtime: type[Runtime] = resolve_name(RUNTIMES[format][name])
    return runtime


def _has_gpu() -> bool:
    """Whether PyTorch finds a CUDA device."""
    return torch.cuda.is_available()
