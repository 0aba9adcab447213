"""Where tensors are computed: the CPU, or CUDA where torch has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cgconvert.errors import UsageError
from cgconvert.model.tensor import LazyTensor

__all__ = ["CPU", "DEVICES", "deterministic", "floats", "torch_device"]

DEVICES = ("auto", "cpu", "cuda")
"""What a user can ask for; auto is cuda where there is one."""

CPU = torch.device("cpu")


def torch_device(name: str) -> torch.device:
    """The device of one of these names. Raises UsageError where cuda is asked for and absent, or
    for any other name."""
    if name not in DEVICES:
        raise UsageError(f"device {name!r}: give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def floats(tensor: LazyTensor, device: torch.device) -> torch.Tensor:
    """All of it in float32, moved there as it is stored."""
    return tensor.read().to(device).float()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """The same numbers every time on one device: CUDA's quickest kernels add in any order.

    Raises UsageError where a GPU's memory is not enough.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError("device cuda: not enough memory on the GPU; use --device cpu") from error
    finally:
        torch.set_deterministic_debug_mode(before)
