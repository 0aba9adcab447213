"""The descriptions of types of numbers are those of torch's own types."""

from __future__ import annotations

import pytest
import torch

from cgconvert.model.dtype import TORCH_DTYPES, dtype_of

OF_TORCH = vars(torch)
"""torch's names; which types it has depends on its version."""


@pytest.mark.parametrize("name", [name for name in TORCH_DTYPES if name in OF_TORCH])
def test_a_type_is_described_as_torch_has_it(name: str) -> None:
    described = TORCH_DTYPES[name]
    assert described.torch_dtype is OF_TORCH[name]
    assert dtype_of(OF_TORCH[name]) == described
    assert str(described) == name
