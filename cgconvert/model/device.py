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

__all__ = ["DEVICES", "deterministic", "read_float32", "torch_device", "warm_up_mkl"]

DEVICES = ("auto", "cpu", "cuda")
"""The names a user can choose from; auto is cuda if torch has a CUDA device, else cpu."""

MKL_FUNCTIONS = ("sin", "cos", "sqrt", "tanh")
"""Those of the functions that torch has MKL compute which cgconvert or transformers' CodeGen calls
(tanh is part of gelu_new in transformers)."""


def torch_device(name: str) -> torch.device:
    """Return torch's device for one of the names in DEVICES.

    Raises UsageError for any other name, and for cuda if torch has no CUDA device.
    """
    if name not in DEVICES:
        raise UsageError(f"device {name!r}: give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError('device cuda: torch finds no CUDA device; use `device="cpu"`')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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
        raise UsageError('device cuda: not enough memory on the GPU; use `device="cpu"`') from error
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
