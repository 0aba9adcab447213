"""The values of MatMulNBits' attributes, which options name before the codec is imported."""

from __future__ import annotations

__all__ = ["ACCURACY_LEVELS", "BLOCK_SIZES"]

ACCURACY_LEVELS = (0, 1, 2, 3, 4)
"""MatMulNBits' accuracy_level: the operator's choice, float32, float16, bfloat16, int8."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes for which onnxruntime has CPU kernels (mlas/lib/qnbitgemm.cpp); other sizes are slow.
"""
