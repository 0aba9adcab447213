"""Call transformers on a private folder, in a process of its own, and with one kind of error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cgconvert.errors import CgconvertError, in_words
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.separate_object import LibraryError, ProcessEndedError, SeparateObject
from cgconvert.io.system.threads import thread_count
from cgconvert.runtimes.limits import Limits
from cgconvert.runtimes.separate_runtime import describe_ending, runtime_imports
from cgconvert.runtimes.transformers import TransformersRuntime, quiet

__all__ = [
    "NoWitnessError",
    "SeparateTransformers",
    "private_folder",
    "separate_transformers",
    "witness_imports",
    "witnessing",
]

HOSTED = "cgconvert.verification.witness.hosted_transformers:HostedTransformers"


class NoWitnessError(Exception):
    """transformers cannot be a witness; the message says why, in a line."""


@contextmanager
def private_folder() -> Iterator[AdmittedFiles]:
    """A temporary folder; an error while it is filled becomes a NoWitnessError."""
    with closing(AdmittedFiles(Path(), Path())) as view:
        try:
            yield view
        except CgconvertError as error:
            raise NoWitnessError(in_words(str(error))) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NoWitnessError(
                f"its files are not of the form they should be: {reason}"
            ) from error


@contextmanager
def witnessing(part: str) -> Iterator[None]:
    """Turn any exception of transformers into a NoWitnessError: it has no class of its own."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except NoWitnessError:
        raise
    except ImportError as error:
        raise NoWitnessError("transformers is not installed") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NoWitnessError(f"transformers cannot read its {part}: {reason}") from error


class SeparateTransformers:
    """transformers in a process of its own, with the private folder that it reads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._limits = folder, Limits.of(folder)
        with self._errors():
            self._remote = SeparateObject(
                HOSTED,
                (str(folder), thread_count()),
                imports=witness_imports(),
                max_bytes=self._limits.max_bytes,
                seconds=self._limits.opening_seconds,
            )

    def ask(self, name: str, *arguments: Any, tokens: int = 0) -> Any:
        """Call a method of HostedTransformers, which computes so many tokens; return its answer.

        Raises NoWitnessError if transformers has none.
        """
        seconds = self._limits.opening_seconds + self._limits.seconds(tokens)
        with self._errors():
            answer = self._remote.call(name, *arguments, seconds=seconds)
        if answer["reason"] is not None:
            raise NoWitnessError(answer["reason"])
        return answer["answer"]

    def close(self) -> None:
        """End the process."""
        self._remote.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the process raises, and the end of the process, into a NoWitnessError."""
        try:
            yield
        except ProcessEndedError as error:
            reason = describe_ending(error, self._limits, "read")
            raise NoWitnessError(f"transformers {reason}") from None
        except (CgconvertError, LibraryError) as error:
            reason = in_words(str(error)).replace(str(self._folder), "source")
            raise NoWitnessError(f"transformers cannot read it: {reason}") from error


@contextmanager
def separate_transformers(folder: Path) -> Iterator[SeparateTransformers]:
    """Open a private folder with transformers, in a process that ends with the block."""
    opened = SeparateTransformers(folder)
    try:
        yield opened
    finally:
        opened.close()


def witness_imports() -> list[str]:
    """The modules that a process imports to be a witness."""
    return [HOSTED.partition(":")[0], *runtime_imports(TransformersRuntime)]
