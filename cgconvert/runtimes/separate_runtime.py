"""Runtimes in a process of their own: a crash, an endless loop or a lack of memory ends only that.

The classes of runtimes run in the process that opens them. `SeparateRuntime` opens one of them in
another process and hands every call to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Self

import numpy as np

from cgconvert.errors import CgconvertError, InputError, RuntimeEndedError, UsageError
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.progress import format_bytes
from cgconvert.io.separate_object import LibraryError, ProcessEndedError, SeparateObject
from cgconvert.runtimes.limits import MEMORY_VARIABLE, SECONDS_VARIABLE, Limits
from cgconvert.runtimes.runtime import Runtime

__all__ = [
    "SeparateRuntime",
    "describe_ending",
    "host",
    "open_separately",
    "runtime_imports",
    "separate_errors",
]  # fmt: skip

HOST = "cgconvert.runtimes.separate_runtime:host"


class SeparateRuntime(Runtime):
    """A runtime in a process of its own, with the interface of every runtime."""

    package: ClassVar[str] = ""

    def __init__(
        self, remote: SeparateObject, files: AdmittedFiles, limits: Limits, name: str
    ) -> None:
        """Hold a HostedRuntime in another process, which has the admitted files open.

        Errors name the artefact.
        """
        self._remote, self._admitted, self._limits = remote, files, limits
        self.files, self.place = files, str(files.artefact)
        self.name = name
        facts = self._call("facts")
        self.name, self.device, self.activations, self._version = (
            str(facts[key]) for key in ("name", "device", "activations", "version")
        )
        self.takes_batches = bool(facts["takes_batches"])

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Raise UsageError: `open_separately` opens runtimes, by their classes."""
        raise UsageError(f"{path}: a separate runtime is opened by its class")

    @property
    def version(self) -> str:
        """The version of the package that does the work."""
        return self._version

    @cached_property
    def n_positions(self) -> int:
        """See Runtime.n_positions."""
        return int(self._call("n_positions"))

    @cached_property
    def tokenizer_size(self) -> int:
        """See Runtime.tokenizer_size."""
        return int(self._call("tokenizer_size"))

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """See Runtime.eos_token_ids."""
        return tuple(map(int, self._call("eos_token_ids")))

    @cached_property
    def stopping_ids(self) -> frozenset[int]:
        """See Runtime.stopping_ids."""
        return frozenset(map(int, self._call("stopping_ids")))

    def reset(self) -> None:
        """See Runtime.reset."""
        self._call("reset")

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed."""
        return self._logits(self._call("feed", _numbers(ids), tokens=len(ids)), len(ids))

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed_last."""
        return self._logits(self._call("feed_last", _numbers(ids), tokens=len(ids)))

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """See Runtime.batch."""
        lists = [_numbers(sequence) for sequence in sequences]
        tokens = len(lists) * max(map(len, lists), default=0)
        arrays = self._call("batch", lists, steps, tokens=tokens)
        return [self._logits(logits, len(ids)) for logits, ids in zip(arrays, lists, strict=True)]

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        return list(map(int, self._call("tokenize", text)))

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        return str(self._call("detokenize", _numbers(ids)))

    def close(self) -> None:
        """See Runtime.close; ends the process."""
        self._remote.close()
        super().close()

    def _call(self, name: str, *arguments: Any, tokens: int = 0) -> Any:
        with separate_errors(self._admitted, self.name, self._limits, "ran"):
            return self._remote.call(name, *arguments, seconds=self._limits.seconds(tokens))

    def _logits(self, logits: Any, rows: int | None = None) -> np.ndarray:
        """Check the shape of what came back: `rows` rows, or one without a row axis."""
        shape = (rows,) if rows is not None else ()
        if isinstance(logits, np.ndarray) and logits.shape[:-1] == shape:
            return logits
        raise InputError(f"{self.place}: {self.name} returned logits of another shape")


def _numbers(ids: Sequence[int]) -> list[int]:
    """Ids as numbers of Python, which JSON has too."""
    return [int(index) for index in ids]


class HostedRuntime:
    """A runtime in the process where it runs, as `SeparateRuntime` calls it."""

    def __init__(self, runtime: Runtime | None) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def facts(self) -> dict[str, Any]:
        """Return what does not change while the runtime is open."""
        runtime = self._runtime
        assert runtime is not None
        return {
            "name": runtime.name,
            "device": runtime.device,
            "activations": runtime.activations,
            "version": runtime.version,
            "takes_batches": runtime.takes_batches,
        }

    @property
    def exists(self) -> bool:
        """Whether there is a runtime; not if the artefact has none of the kind asked for."""
        return self._runtime is not None


def host(
    kind: str, path: str, device: str, threads: int | None, float_activations: bool
) -> HostedRuntime:
    """Load admitted files in this process, which is the runtime's own.

    Args:
        kind: Module and class of the runtime.
        path: What the runtime opens: the private folder, or a file in it.
        device: See Runtime.load.
        threads: See Runtime.load.
        float_activations: Whether to call `load_with_float_activations`.
    """
    runtime: type[Runtime] = resolve_name(kind)
    loading = runtime.load_with_float_activations if float_activations else runtime.load
    loaded = loading(Path(path), device, threads)
    if loaded is not None:
        loaded.place = path
    return HostedRuntime(loaded)


def open_separately(
    kind: type[Runtime],
    path: Path,
    device: str,
    threads: int | None,
    *,
    float_activations: bool = False,
) -> Runtime | None:
    """Admit an artefact in this process, and open its admitted files in a process of its own.

    Args:
        kind: The class of the runtime.
        path: The artefact.
        device: See Runtime.open.
        threads: See Runtime.open.
        float_activations: Whether to open it as `open_with_float_activations` does, which may
            return None.

    Raises:
        UsageError: See Runtime.open.
        MissingRuntimeError: See Runtime.open.
        InputError: See Runtime.open.
        RuntimeEndedError: The process ended, or did not answer in time.
    """
    limits = Limits.of(path)
    with ExitStack() as closing:
        files = closing.enter_context(contextlib.closing(kind.admit(path)))
        closing.enter_context(separate_errors(files, kind.name, limits, "loaded"))
        remote = SeparateObject(
            HOST,
            (f"{kind.__module__}:{kind.__qualname__}", str(files.path), device, threads,
             float_activations),
            imports=runtime_imports(kind),
            max_bytes=limits.max_bytes,
            seconds=limits.opening_seconds,
            allow_unix=device != "cpu",
        )  # fmt: skip
        closing.callback(remote.close)
        if not remote.call("exists", seconds=limits.opening_seconds):
            return None
        runtime = SeparateRuntime(remote, files, limits, kind.name)
        closing.pop_all()
        return runtime


def runtime_imports(kind: type[Runtime]) -> list[str]:
    """The modules that a process imports to open artefacts in a runtime."""
    return [HOST.partition(":")[0], kind.__module__, *(kind.imports or (kind.package,))]


@contextmanager
def separate_errors(files: AdmittedFiles, name: str, limits: Limits, action: str) -> Iterator[None]:
    """Turn the end of a runtime's process, and exceptions in it, into errors about the artefact.

    Args:
        files: The artefact, as errors name it, and its files as the process knows them.
        name: The name of the runtime.
        limits: Its limits.
        action: What it did with the artefact, such as "loaded".
    """
    try:
        yield
    except ProcessEndedError as error:
        raise RuntimeEndedError(
            f"{files.artefact}: {name} {describe_ending(error, limits, action)}"
        ) from None
    except LibraryError as error:
        hint = ""
        if error.is_memory:
            hint = f"; {format_bytes(limits.max_bytes)} are allowed, see {MEMORY_VARIABLE}"
        text = files.with_artefact_paths(str(error))
        raise InputError(
            f"{files.artefact}: {name} failed when it {action} it: {text}{hint}"
        ) from None
    except CgconvertError as error:
        files.check_unchanged()  # if one has changed, that is the error to show
        error.args = (files.with_artefact_paths(str(error)),)
        raise


def describe_ending(error: ProcessEndedError, limits: Limits, action: str) -> str:
    """Say how a process ended and what to do; the text follows the runtime's name."""
    ending = error.ending
    if ending is None:
        return (
            f"gave no answer in time when it {action} it, and was ended; "
            f"{SECONDS_VARIABLE}=SECONDS gives it longer for each call"
        )
    if ending.is_over_memory:
        return (
            f"took more than {format_bytes(limits.max_bytes)} of memory when it {action} it, and "
            f"was ended; {MEMORY_VARIABLE}=SIZE, such as 64GB, allows more"
        )
    if ending.signal == "SIGKILL":
        return f"was killed when it {action} it; perhaps the machine has too little free memory"
    reason = f" ({ending.signal})" if ending.signal else ""
    return f"crashed{reason} when it {action} it; write it again, or install another version of it"
