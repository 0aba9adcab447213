"""A device that torch does not have, computed on the CPU: what a GPU refuses, it refuses.

    device = pretended.device()

Tensors there are real and their numbers right, but an operation on one of them and on one of the
CPU's is an error, as on CUDA, and so is a look at their memory. So a test can tell that everything
is on the device it should be on, on a machine without one. Random numbers and kernels of a GPU's
own are not pretended.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["device"]

NAME = "pretended"


@functools.cache
def device() -> torch.device:
    """The device, which there is from now on in this process."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *given, **options: _run(op, given, options), "PrivateUse1")
    _libraries.append(library)
    return torch.device(NAME, 0)


_libraries: list[torch.library.Library] = []
"""What is registered goes when its library does."""


class _There(torch.Tensor):
    """A tensor of the device; `held` is the CPU's with the numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _There:
        made: _There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=device(),
        )  # fmt: skip
        made.held = held
        return made

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        """torch's own asks for the memory."""
        return torch.tensor(data, **{"dtype": self.dtype, **options}).to(self.device)

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy")

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, given: Sequence[Any] = (), options: Any = None
    ) -> Any:
        return _run(op, given, options or {})


def _run(op: Any, given: Sequence[Any], options: Mapping[str, Any]) -> Any:
    there: dict[int, _There] = {}
    here: list[torch.Tensor] = []

    def held(value: Any) -> Any:
        if isinstance(value, _There):
            there[id(value.held)] = value
            return value.held
        if isinstance(value, torch.Tensor) and value.dim():  # a number is welcome anywhere
            here.append(value)
        return [held(one) for one in value] if isinstance(value, list | tuple) else value

    def wrapped(value: Any) -> Any:
        """What an operation on held tensors returned: those that were given are themselves."""
        if isinstance(value, list | tuple):
            return type(value)(map(wrapped, value))
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in there:
            return there[id(value)]
        with torch.inference_mode(mode=False):  # a view of a tensor from outside is no inference's
            return _There(value)

    numbers = [held(value) for value in given]
    named = {name: held(value) for name, value in options.items()}
    asked = named.get("device")
    if asked is not None:
        named["device"] = torch.device("cpu")
    if there and here and op.name() not in ("aten::copy_", "aten::_copy_from"):
        raise RuntimeError(f"{op.name()}: tensors on {NAME} and on {here[0].device}")
    found = op(*numbers, **named)
    return found if asked is not None and torch.device(asked).type == "cpu" else wrapped(found)
