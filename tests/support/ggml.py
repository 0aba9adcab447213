"""llama.cpp's quantization in C as an oracle: ggml_quantize_chunk through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = ["dequantize", "quantize"]


@cache
def _function() -> Any:
    """Return ggml_quantize_chunk of the library in llama-cpp-python."""
    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return function


def quantize(name: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize float32 [rows, columns] to uint8 [rows, bytes of a row].

    `importance` is float32 [columns].
    """
    kind = gguf.GGMLQuantizationType[name]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    coded = np.zeros((len(rows), rows.shape[1] // block * nbytes), np.uint8)
    matrix = None if importance is None else importance.ctypes.data
    done = _function()(kind, rows.ctypes.data, coded.ctypes.data, 0, *rows.shape, matrix)
    assert done == coded.nbytes
    return coded


def dequantize(name: str, coded: np.ndarray) -> np.ndarray:
    decoded: np.ndarray = gguf.quants.dequantize(coded, gguf.GGMLQuantizationType[name])
    return decoded
