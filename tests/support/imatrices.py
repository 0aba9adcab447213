"""Importance matrices of small models; llama.cpp's collection and quantization as oracles."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgconvert.calibrate.imatrix import collect
from cgconvert.formats.gguf.imatrix import Imatrix
from cgconvert.io.progress import SilentProgress
from tests.support.gguf_models import random_checkpoint

__all__ = ["collected", "legacy", "llama_collect", "llama_quantize", "windows"]

MUL_MAT = b"MUL_MAT"
BATCH = 64


def windows() -> torch.Tensor:
    """Ids int64 [2, BATCH]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 3900, (2, BATCH), generator=generator)


@functools.cache
def collected() -> Imatrix:
    """Return the importance matrix of the random model with heads of 64."""
    return collect(random_checkpoint(64).decoder, windows(), "noise", SilentProgress())


def legacy(imatrix: Imatrix, *, tail: bool = True) -> bytes:
    """Encode an imatrix as save_imatrix_legacy of tools/imatrix/imatrix.cpp does."""
    data = [struct.pack("<i", len(imatrix.inputs))]
    for name, inputs in sorted(imatrix.inputs.items()):
        calls = -(-inputs.count // imatrix.chunk_size)
        values = inputs.squares.numpy() / np.float32(inputs.count or 1) * np.float32(calls)
        data += [struct.pack("<i", len(name)), name.encode()]
        data += [struct.pack("<ii", calls, len(values)), values.tobytes()]
    if tail:
        text = imatrix.datasets[0].encode()
        data += [struct.pack("<ii", imatrix.chunks, len(text)), text]
    return b"".join(data)


class _Tensor(ctypes.Structure):
    """The start of ggml.h's struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@functools.cache
def _operation() -> Any:
    """Return ggml_op_name; the numbers of operations change between versions."""
    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    function = ctypes.CDLL(str(library)).ggml_op_name
    function.restype, function.argtypes = ctypes.c_char_p, (ctypes.c_int,)
    return function


def llama_collect(path: Path, sequences: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Collect sums of squares by tensor name, as llama-imatrix --process-output does.

    Each is float64 [columns], over the inputs of every multiplication by a matrix of the file.
    """
    from llama_cpp import llama_cpp as lib

    squares: dict[str, np.ndarray] = {}

    def visit(address: int, ask: bool, _: object) -> bool:
        tensor = _Tensor.from_address(address)
        if _operation()(tensor.op) != MUL_MAT:
            return not ask
        matrix, inputs = (_Tensor.from_address(tensor.src[i]) for i in range(2))
        name = matrix.name.decode()
        if not (name.startswith("blk.") or name == "output.weight"):
            return not ask
        if not ask:
            columns, count = inputs.ne[0], inputs.ne[1]
            assert list(inputs.nb[:2]) == [4, 4 * columns]
            raw = (ctypes.c_float * (columns * count)).from_address(inputs.data)
            x = np.frombuffer(raw, np.float32).reshape(count, columns).astype(np.float64)
            squares[name] = squares.get(name, np.zeros(columns)) + np.square(x).sum(0)
        return True

    callback = lib.ggml_backend_sched_eval_callback(visit)
    settings = lib.llama_model_default_params()
    settings.use_extra_bufts = False
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max_per_seq = BATCH
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = params.type_k = params.type_v = 0
    params.cb_eval = callback
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(BATCH, 0, 1)
    for ids in sequences:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert lib.llama_decode(context, batch) == 0
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return squares


def llama_quantize(
    source: Path,
    target: Path,
    type: str,  # noqa: A002
    importance: Mapping[str, np.ndarray],
) -> None:
    """Quantize a file by llama_model_quantize, which llama-quantize calls.

    `importance` holds mean squares by tensor name.
    """
    from llama_cpp import llama_cpp as lib

    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{type}"), 1
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        lib.llama_model_imatrix_data(name.encode(), values.ctypes.data_as(pointer), values.size)
        for name, values in importance.items()
    ]
    entries.append(lib.llama_model_imatrix_data(None, None, 0))
    parameters.imatrix = (lib.llama_model_imatrix_data * len(entries))(*entries)
    assert not lib.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
