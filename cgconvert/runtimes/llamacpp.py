"""llama.cpp through llama-cpp-python's low-level interface: runs GGUF files."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgconvert.errors import CgconvertError, InputError, MissingRuntimeError, UsageError
from cgconvert.formats.registry import load
from cgconvert.runtimes.runtime import Runtime

__all__ = ["LlamaCppRuntime"]

BATCH = 256
"""Tokens computed at once; their logits take 52 MB at CodeGen's vocabulary."""

LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class LlamaCppRuntime(Runtime):
    """A model of llama.cpp with one context of one sequence.

    The KV cache is float32 and flash attention is off, so that the file is measured and not the
    float16 cache that llama.cpp takes by default; `open` has options for others. Weights are not
    repacked: that takes a second copy of them, and on a CPU with AMX a llama.cpp compiled by GCC 12
    ends with an illegal instruction (its _tile_loadconfig names eight bytes as read, so the rows of
    the tiles are never stored).
    """

    name = "llama.cpp"
    package = "llama_cpp"

    def __init__(self, library: Any, model: Any, context: Any, device: str, n_ctx: int) -> None:
        self.device = device
        self._lib, self._model, self._context = library, model, context
        self._vocab = library.llama_model_get_vocab(model)
        self._width = library.llama_vocab_n_tokens(self._vocab)
        self._n_ctx, self._past = n_ctx, 0
        self._batch = library.llama_batch_init(BATCH, 0, 1)

    @classmethod
    def open(
        cls,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        *,
        n_ctx: int | None = None,
        cache: str = "F32",
        flash: bool = False,
        repack: bool = False,
    ) -> LlamaCppRuntime:
        """Load a file (see Runtime.open).

        Args:
            path: The GGUF file.
            device: "cpu" or "cuda".
            threads: CPU threads; PyTorch's number of threads where None.
            n_ctx: The longest context, which bounds the memory of the cache.
            cache: The type of the KV cache, F32 or F16.
            flash: Whether to use flash attention.
            repack: Whether llama.cpp may store quantized matrices in the order that its fastest
                kernels for this CPU use.
        """
        library = _library()
        if device not in ("cpu", "cuda"):
            raise UsageError(f"device {device}: llama.cpp runs on cpu or cuda here")
        if device == "cuda":
            _require_cuda(library)
        # llama.cpp aborts the process on some broken files, and hangs on others.
        load("gguf").admit(path)
        offload = device == "cuda"
        model_params = library.llama_model_default_params()
        model_params.n_gpu_layers = -1 if offload else 0
        model_params.use_extra_bufts = repack
        _errors.clear()
        model = library.llama_model_load_from_file(os.fsencode(path), model_params)
        if not model:
            raise _logged_error(f"{path}: llama.cpp cannot load it", device)
        length = library.llama_model_n_ctx_train(model)
        params = library.llama_context_default_params()
        params.n_ctx = n_ctx = min(length, n_ctx or length)
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max_per_seq = BATCH  # logits after every token
        params.n_threads = params.n_threads_batch = threads or torch.get_num_threads()
        params.type_k = params.type_v = {"F32": 0, "F16": 1}[cache]
        params.flash_attn_type = int(flash)
        params.offload_kqv = params.op_offload = offload
        context = library.llama_init_from_model(model, params)
        if not context:
            library.llama_model_free(model)
            raise _logged_error(f"{path}: llama.cpp cannot run it", device)
        return cls(library, model, context, device, n_ctx)

    @property
    def n_positions(self) -> int:
        return self._n_ctx

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._past = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self._check(ids)
        logits = np.empty((len(ids), self._width), dtype=np.float32)
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            logits[first : first + len(part)] = self._decode(part, len(part))
        return logits

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        self._check(ids)
        for first in range(0, len(ids), BATCH):
            logits = self._decode(ids[first : first + BATCH], 1)
        last: np.ndarray = logits[0].copy()
        return last

    def _check(self, ids: Sequence[int]) -> None:
        self.check_length(self._past + len(ids))
        unknown = next((token for token in ids if not 0 <= token < self._width), None)
        if unknown is not None:
            raise UsageError(f"token {unknown} is not one of the model's {self._width}")

    def _decode(self, ids: Sequence[int], keep: int) -> np.ndarray:
        """Logits after the last `keep` of at most BATCH tokens, float32 [keep, vocabulary].

        They lie in llama.cpp's own memory and are valid until the next call.
        """
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._past + i
            batch.logits[i] = i >= len(ids) - keep
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise CgconvertError(f"llama.cpp: llama_decode returned {status}")
        self._past += len(ids)
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(keep, self._width))

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 1))()  # never more tokens than bytes
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), tokens, len(tokens), False, True
        )
        if count < 0:
            raise CgconvertError(f"llama.cpp: llama_tokenize returned {count}")
        return tokens[:count]

    def detokenize(self, ids: Sequence[int]) -> str:
        # Piece by piece: llama_detokenize would take out spaces before punctuation.
        return b"".join(map(self._piece, ids)).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @property
    def tokenizer_size(self) -> int:
        unused = self._lib.LLAMA_TOKEN_ATTR_UNUSED
        last: int = self._width
        while last and self._lib.llama_vocab_get_attr(self._vocab, last - 1) & unused:
            last -= 1
        return last

    @property
    def end_of_text_id(self) -> int:
        return int(self._lib.llama_vocab_eos(self._vocab))

    def close(self) -> None:
        if self._model is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._model = self._context = self._vocab = None


@cache
def _library() -> Any:
    """The ctypes functions of llama.cpp, with its log kept off stderr."""
    try:
        from llama_cpp import llama_cpp as library
    except ImportError as error:
        raise MissingRuntimeError("llama-cpp-python", "llamacpp") from error
    except (OSError, RuntimeError) as error:  # the package is installed, its library does not load
        raise UsageError(f"llama-cpp-python cannot be loaded: {error}") from error
    library.llama_log_set(_log_callback(library), None)
    library.llama_backend_init()
    return library


_errors: list[str] = []
"""Errors that llama.cpp logged since the last load began; the process has one log."""


@cache  # llama.cpp keeps the pointer, so the callback must not be freed
def _log_callback(library: Any) -> Any:
    def keep_errors(level: int, text: bytes, _: object) -> None:
        if level == LOG_ERROR:
            _errors.append(text.decode(errors="replace"))

    return library.llama_log_callback(keep_errors)


def _logged_error(summary: str, device: str) -> CgconvertError:
    """An error with the first line that llama.cpp logged: the cause; later lines follow from it."""
    reason = " ".join(_errors[0].split()) if _errors else "it gives no reason"
    if device == "cuda" and re.search("CUDA|cudaMalloc", reason):  # not enough memory, mostly
        return UsageError(f'{summary} on cuda, use `device="cpu"`: {reason}')
    return InputError(f"{summary}: {reason}")


def _require_cuda(library: Any) -> None:
    system = library.llama_print_system_info().decode(errors="replace")
    if "CUDA" not in system:
        raise UsageError(
            "device cuda: this llama-cpp-python was built without CUDA; "
            'reinstall it with CMAKE_ARGS=-DGGML_CUDA=on, or use `device="cpu"`'
        )
    if not library.llama_supports_gpu_offload():
        raise UsageError('device cuda: llama.cpp finds no CUDA device; use `device="cpu"`')
