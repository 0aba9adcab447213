"""Objects that live in a process of their own, and are called through a connection.

The process has no sockets, no home and no telemetry (telemetry.py), and its memory and time have
limits. If it ends, even by a crash of native code, an exception is raised here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from cgconvert import errors
from cgconvert.errors import CgconvertError
from cgconvert.io.process_messages import receive, send
from cgconvert.io.system.confinement import forbid_dumps, forbid_sockets
from cgconvert.io.system.separate_process import (
    Ending,
    SeparateProcess,
    prepare_imports,
    start_separate,
)
from cgconvert.io.telemetry import private_environment

__all__ = ["LibraryError", "ProcessEndedError", "SeparateObject", "prepare", "serve"]

TARGET = "cgconvert.io.separate_object:serve"
MAX_ARRAY_BYTES = 1 << 40
LAST_SECONDS = 5
"""How long it takes at most until a process that closed its connection has ended."""

CLASSES: Mapping[str, type[CgconvertError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CgconvertError) and kind is not CgconvertError
}
"""The classes of errors that pass from one process to another."""


class ProcessEndedError(Exception):
    """The process ended, or was ended, before it answered.

    Attributes:
        ending: How it ended; None if it did not answer in time.
    """

    def __init__(self, ending: Ending | None) -> None:
        super().__init__("the process ended")
        self.ending = ending


class LibraryError(Exception):
    """An exception of a library in the process, as one line of text: its class and its message.

    Attributes:
        is_memory: Whether it is a lack of memory.
    """

    def __init__(self, text: str, *, is_memory: bool) -> None:
        super().__init__(text)
        self.is_memory = is_memory


class SeparateObject:
    """An object in a process of its own.

    Args:
        target: Module and function that makes it, such as HOST of runtimes/separate_runtime.py.
        arguments: The function's arguments, as JSON values.
        imports: Modules that the function needs, which are imported once for many processes.
        max_bytes: The memory that the process may take; 0 for no limit.
        seconds: How long making the object may take.
        allow_unix: Whether the process may open Unix sockets, which stay on this machine; CUDA
            needs them.

    Raises:
        ProcessEndedError: The process ended, or took too long.
        LibraryError: A library raised an exception.
        CgconvertError: The function raised it.
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[Any],
        *,
        imports: Sequence[str],
        max_bytes: int,
        seconds: float,
        allow_unix: bool = False,
    ) -> None:
        environment = private_environment()
        request = {
            "target": target,
            "arguments": arguments,
            "environment": environment,
            "allow_unix": allow_unix,
        }
        for is_last in (False, True):
            self._process: SeparateProcess | None = start_separate(
                TARGET, imports, max_bytes, environment
            )
            try:
                self._call(request, seconds)
                return
            except ProcessEndedError as error:
                # A server that ends because it had nothing to do no longer takes a request.
                is_lost = error.ending is not None and not error.ending.is_known
                if is_last or not is_lost:
                    raise
            except BaseException:
                self.close()
                raise

    def call(self, name: str, *arguments: Any, seconds: float) -> Any:
        """Call a method of the object, or read its attribute, and return the value.

        Raises what the class raises. After ProcessEndedError it cannot be called any more.
        """
        return self._call({"name": name, "arguments": arguments}, seconds)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()

    def _call(self, request: Mapping[str, Any], seconds: float) -> Any:
        if self._process is None:
            raise ProcessEndedError(Ending(is_known=False))
        connection = self._process.connection
        try:
            send(connection, request)
            if not connection.poll(seconds):
                self.close()
                raise ProcessEndedError(None)
            answer = receive(connection, MAX_ARRAY_BYTES)
        except (EOFError, OSError, ValueError):
            raise ProcessEndedError(self._ending()) from None
        except ProcessEndedError:
            raise
        except BaseException:  # what is left of the answer would be taken for the next one
            self.close()
            raise
        if "value" in answer:
            return answer["value"]
        text = str(answer["text"])
        if answer["error"] not in CLASSES:
            raise LibraryError(text, is_memory=bool(answer["is_memory"]))
        kind = CLASSES[answer["error"]]
        error = kind.__new__(kind)
        error.args = (text,)
        raise error

    def _ending(self) -> Ending:
        """How the process ended, which has closed its connection."""
        assert self._process is not None
        ending = self._process.wait(LAST_SECONDS)
        self.close()
        return ending or Ending(is_known=False)


def prepare(imports: Sequence[str]) -> None:
    """Begin to import modules for separate objects to come, while this process does other things.

    It is only quicker than without. Systems that do not fork cannot do it.
    """
    prepare_imports(imports, private_environment())


def serve(connection: Any) -> None:
    """Make an object and answer calls of it, until the connection is closed; runs in the process.

    The first request names what makes it.
    """
    first = receive(connection, MAX_ARRAY_BYTES)
    os.environ.clear()
    os.environ.update(first["environment"])
    forbid_dumps()
    forbid_sockets(allow_unix=first["allow_unix"])
    made = None
    with contextlib.suppress(EOFError, OSError):
        request = first
        while True:
            try:
                if request is first:
                    made = resolve_name(first["target"])(*first["arguments"])
                    answer: dict[str, Any] = {"value": None}
                else:
                    attribute = getattr(made, request["name"])
                    value = attribute(*request["arguments"]) if callable(attribute) else attribute
                    answer = {"value": value}
            except CgconvertError as error:
                kind = type(error).__name__
                answer = {"error": kind, "text": str(error), "is_memory": False}
            except Exception as error:
                answer = {"error": "", "text": _line(error), "is_memory": _is_memory(error)}
            send(connection, answer)
            request = receive(connection, MAX_ARRAY_BYTES)


LACKS_MEMORY = re.compile(
    r"bad[ _]alloc|not enough memory|out of memory|[Ff]ailed to allocate|can't allocate"
)


def _is_memory(error: Exception) -> bool:
    """Whether an exception says that memory is lacking: most libraries have no class for it."""
    return isinstance(error, MemoryError) or LACKS_MEMORY.search(str(error)) is not None


def _line(error: Exception) -> str:
    """The class and the message of an exception, in a line."""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
