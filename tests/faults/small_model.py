"""The model that all valid inputs hold, and its matrix of importance."""

from __future__ import annotations

import functools

import torch

from cgconvert.calibrate.imatrix import collect
from cgconvert.formats.gguf.imatrix import Imatrix
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN
from tests.faults.valid_inputs import GEOMETRY, STATE

__all__ = ["small_decoder", "small_imatrix"]


@functools.cache
def small_decoder() -> Decoder:
    tensors = {name: InMemoryTensor(tensor) for name, tensor in STATE.items()}
    return CODEGEN.decoder(GEOMETRY, tensors, "small")


@functools.cache
def small_imatrix() -> Imatrix:
    return collect(small_decoder(), torch.arange(64).view(2, 32), "a text", SilentProgress())
