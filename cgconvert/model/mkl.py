"""The first call of MKL's vector functions, on one thread.

torch has MKL compute sin, sqrt and their like of tensors on a CPU, each thread a part. MKL chooses
a function's kernel when it is first called, and where several threads do that at once, one of them
can get the kernel for another instruction set and of low accuracy: of some hundred processes one
has a part that is wrong by up to thousands of units in the last place (PyTorch issue 188792;
oneMKL before 2025.0).
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["warm_up_mkl"]

FUNCTIONS = (torch.sin, torch.cos, torch.sqrt, torch.tanh)
"""What cgconvert and transformers' CodeGen compute with, tanh the latter's gelu_new."""


@cache
def warm_up_mkl() -> None:
    """Before any of them has to do with a large tensor. Takes a millisecond, once a process."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)  # too few for a second thread
        for function in FUNCTIONS:
            function(one)
