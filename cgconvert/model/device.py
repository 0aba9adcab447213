"""The device on which tensors are computed, and how its results stay the same in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from cgconvert.errors import UsageError
from cgconvert.lazy import torch

if TYPE_CHECKING:  # --help needs DEVICES and nothing that brings numpy
    from cgconvert.model.tensor import LazyTensor

__all__ = [
    "DEVICES", "check_device_name", "deterministic", "float64_device", "float64_sum",
    "read_float32", "torch_device", "warm_up_mkl",
]  # fmt: skip

DEVICES = ("auto", "cpu", "cuda", "mps", "gpu")
"""The names a user can choose from. auto is cuda if there is a CUDA device, else cpu. gpu is the
best GPU there is: for torch cuda, else mps, which is Apple's; for llama.cpp any that it was built
for, such as Metal's and Vulkan's. auto is never mps, on which cgconvert was never run."""

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that have no float64."""

MKL_FUNCTIONS = ("sin", "cos", "sqrt", "tanh", "exp")
"""Those of the functions that torch has MKL compute which cgconvert or transformers' CodeGen calls
(tanh is part of gelu_new in transformers, exp of the divergences)."""


def torch_device(name: str, *, cpu_without_gpu: bool = False) -> torch.device:
    """Return torch's device for one of the names in DEVICES.

    Args:
        name: The name.
        cpu_without_gpu: Whether gpu is the CPU where torch finds no GPU.

    Raises:
        UsageError: Another name, or torch does not find that device.
    """
    check_device_name(name)
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "cuda" and not has_cuda:
        raise UsageError('device cuda: torch finds no CUDA device; use `device="cpu"`')
    if name == "mps" and not has_mps:
        raise UsageError('device mps: torch finds no GPU of Apple; use `device="cpu"`')
    if name == "gpu" and not (has_cuda or has_mps or cpu_without_gpu):
        raise UsageError('device gpu: torch finds neither CUDA nor MPS; use `device="cpu"`')
    if name in ("auto", "cuda", "gpu") and has_cuda:
        return torch.device("cuda")
    return torch.device("mps" if name in ("mps", "gpu") and has_mps else "cpu")


def check_device_name(name: str) -> None:
    """Raise UsageError for a name that is not in DEVICES."""
    if name not in DEVICES:
        raise UsageError(f"device {name!r}: give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")


def float64_device(device: torch.device) -> torch.device:
    """Return where sums in float64 are kept: `device`, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def float64_sum(tensor: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum a tensor, or one dimension of it, in float64 on `float64_device`."""
    values = tensor.to(float64_device(tensor.device))
    return values.sum(dtype=torch.float64) if dim is None else values.sum(dim, dtype=torch.float64)


def read_float32(tensor: LazyTensor, device: torch.device) -> torch.Tensor:
    """Read a whole tensor as float32 on `device`.

    It is moved to the device in its own type and widened there, so that fewer bytes are moved.
    """
    return tensor.read().to(device).float()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Make the computations in this context give the same numbers in every run on one device.

    CUDA's quickest kernels add in an order that changes from run to run; they are not used in this
    context.

    Raises UsageError if the GPU's memory is too small.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    earlier_mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f'device {device.type}: not enough memory on the GPU; use `device="cpu"`'
        ) from error
    except RuntimeError as error:  # MPS has no class of its own for it
        if "MPS backend out of memory" not in str(error):
            raise
        raise UsageError('device mps: not enough memory on the GPU; use `device="cpu"`') from error
    finally:
        torch.set_deterministic_debug_mode(earlier_mode)


@cache
def warm_up_mkl() -> None:
    """Call each of MKL's vector functions once on one thread, before a large tensor needs it.

    torch has MKL compute sin, sqrt and the like, with a part of the tensor on each thread. MKL
    chooses the kernel of a function at the first call. If several threads make that call at the
    same time, one of them may get a kernel for another instruction set with low accuracy. In about
    one of a hundred processes, a part of the result is then wrong by up to thousands of units in
    the last place (PyTorch issue 188792; oneMKL before 2025.0). This function takes a millisecond,
    once in a process.
    """
    for dtype in (torch.float32, torch.float64):
        element = torch.ones(1, dtype=dtype)  # too few for a second thread
        for name in MKL_FUNCTIONS:
            getattr(torch, name)(element)
