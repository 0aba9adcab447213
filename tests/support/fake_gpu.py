"""A torch device for tests without a GPU: it computes on the CPU and refuses what a GPU refuses.

    device = fake_gpu.device()

Tensors of the device have right numbers, but an operation on one of them and one of the CPU's
raises an error, as on CUDA, and so does access to their memory. So a test can tell that all tensors
are on the right device. A GPU's own random numbers and kernels are not imitated.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["device", "without_float64"]

NAME = "fakegpu"


@functools.cache
def device() -> torch.device:
    """Register the device in this process, and return it."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *arguments, **options: _run(op, arguments, options), "PrivateUse1")
    _libraries.append(library)
    return torch.device(NAME, 0)


@contextlib.contextmanager
def without_float64() -> Iterator[None]:
    """Let the device refuse float64 in this context, as Apple's MPS does."""
    refused_types.append(torch.float64)
    try:
        yield
    finally:
        refused_types.pop()


refused_types: list[torch.dtype] = []
"""The types that the device has no tensors of."""

_libraries: list[torch.library.Library] = []
"""Registrations last as long as their library, so it is kept here."""


class _FakeTensor(torch.Tensor):
    """A tensor of the device; `held` is the CPU tensor with its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _FakeTensor:
        made: _FakeTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=device(),
        )  # fmt: skip
        made.held = held
        return made

    def new_tensor(
        self,
        data: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ) -> torch.Tensor:
        """Replace torch's method, which accesses the memory."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=device).to(self.device)

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a function without cls
        cls, op: Any, types: Any, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        return _run(op, arguments, options or {})


def _run(op: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    on_device: dict[int, _FakeTensor] = {}
    on_cpu: list[torch.Tensor] = []
    targets: list[torch.device] = []

    def held(value: Any) -> Any:
        if isinstance(value, _FakeTensor):
            on_device[id(value.held)] = value
            return value.held
        if isinstance(value, torch.Tensor) and value.dim():  # scalars may be on any device
            on_cpu.append(value)
        if isinstance(value, torch.device):
            targets.append(value)
            return torch.device("cpu")
        return [held(item) for item in value] if isinstance(value, list | tuple) else value

    def wrapped(value: Any) -> Any:
        """Wrap what an operation on held tensors returned; its own inputs keep their wrappers."""
        if isinstance(value, list | tuple):
            return type(value)(map(wrapped, value))
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in on_device:
            return on_device[id(value)]
        if value.dtype in refused_types:
            raise TypeError(f"{op.name()}: {NAME} has no {value.dtype}")
        with torch.inference_mode(
            mode=False
        ):  # a view of a tensor made outside is not an inference tensor
            return _FakeTensor(value)

    numbers = [held(value) for value in arguments]
    named = {name: held(value) for name, value in options.items()}
    if on_device and on_cpu and op.name() not in ("aten::copy_", "aten::_copy_from"):
        raise RuntimeError(f"{op.name()}: tensors on {NAME} and on {on_cpu[0].device}")
    result = op(*numbers, **named)
    return result if targets and targets[0].type == "cpu" else wrapped(result)
