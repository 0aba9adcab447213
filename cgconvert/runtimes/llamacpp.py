"""llama.cpp through llama-cpp-python's low-level interface: runs GGUF files."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.io.system.threads import thread_count
from cgconvert.runtimes.packages import import_package
from cgconvert.runtimes.runtime import Runtime

__all__ = ["LlamaCppRuntime"]

BATCH_TOKENS = 256
"""Tokens computed at once; their logits take 52 MB at CodeGen's vocabulary."""

CACHE_TYPES = {"F32": 0, "F16": 1}  # GGML_TYPE_F32, GGML_TYPE_F16
LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
GPU_KINDS = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU, and _IGPU, which shares the CPU's memory


class LlamaCppRuntime(Runtime):
    """A model of llama.cpp with one context for one sequence.

    The KV cache is float32 and flash attention is off by default, so that errors are those of the
    file and not of llama.cpp's default float16 cache. Weights are not repacked: that takes a second
    copy of them, and on a CPU with AMX a llama.cpp compiled by GCC 12 ends with an illegal
    instruction (its _tile_loadconfig declares that it reads eight bytes, so the compiler drops the
    stores of the other bytes, which hold the numbers of rows).
    """

    name = "llama.cpp"
    package = "llama_cpp"
    imports = ("llama_cpp.llama_cpp",)
    format = "gguf"

    def __init__(self, library: Any, model: Any, context: Any, device: str, n_ctx: int) -> None:
        """Hold llama.cpp's pointers to a model and to its context of `n_ctx` tokens."""
        self.device = device
        self._library, self._model, self._context = library, model, context
        self._vocab = library.llama_model_get_vocab(model)
        self._vocab_size = library.llama_vocab_n_tokens(self._vocab)
        self._n_ctx, self._n_past = n_ctx, 0
        self._batch = library.llama_batch_init(BATCH_TOKENS, 0, 1)

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        *,
        n_ctx: int | None = None,
        cache_type: str = "F32",
        flash_attention: bool = False,
        repack_weights: bool = False,
    ) -> Self:
        """Load a file (see Runtime.load).

        Args:
            path: The GGUF file.
            device: "cpu", "cuda", or "gpu": whatever GPU this llama.cpp was built for, as by Metal
                or Vulkan. The runtime's attribute `device` then has the GPU's name too.
            threads: CPU threads; None for PyTorch's number of threads.
            n_ctx: The longest context, which bounds the memory of the KV cache; the model's own
                context length if it is None or larger.
            cache_type: The type of the KV cache, "F32" or "F16".
            flash_attention: Whether to use flash attention.
            repack_weights: Whether llama.cpp may copy quantized matrices into the order that its
                fastest kernels for this CPU use.
        """
        library = _library()
        if device not in ("cpu", "cuda", "gpu"):
            raise UsageError(
                f"device {device}: llama.cpp runs on cpu, cuda or gpu (Metal, Vulkan) here"
            )
        if device == "cuda":
            _require_cuda(library)
        if device == "gpu":
            device = f"gpu ({gpu_names(library)})"
        offload = device != "cpu"
        model_params = library.llama_model_default_params()
        model_params.n_gpu_layers = -1 if offload else 0
        model_params.use_extra_bufts = repack_weights
        _error_lines.clear()
        model = library.llama_model_load_from_file(os.fsencode(path), model_params)
        if not model:
            raise _error_from_log(f"{path}: llama.cpp cannot load it", device)
        length = library.llama_model_n_ctx_train(model)
        params = library.llama_context_default_params()
        params.n_ctx = n_ctx = min(length, n_ctx or length)
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_outputs_max_per_seq = BATCH_TOKENS  # logits after every token
        params.n_threads = params.n_threads_batch = threads or thread_count()
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        params.flash_attn_type = int(flash_attention)
        params.offload_kqv = params.op_offload = offload
        context = library.llama_init_from_model(model, params)
        if not context:
            library.llama_model_free(model)
            raise _error_from_log(f"{path}: llama.cpp cannot run it", device)
        return cls(library, model, context, device, n_ctx)

    @property
    def n_positions(self) -> int:
        """The length of the context that was opened, in tokens."""
        return self._n_ctx

    def reset(self) -> None:
        """Empty llama.cpp's KV cache."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._n_past = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed."""
        self._check(ids)
        logits = np.empty((len(ids), self._vocab_size), dtype=np.float32)
        for first in range(0, len(ids), BATCH_TOKENS):
            part = ids[first : first + BATCH_TOKENS]
            logits[first : first + len(part)] = self._decode(part, len(part))
        return logits

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed_last."""
        self._check(ids)
        for first in range(0, len(ids), BATCH_TOKENS):
            logits = self._decode(ids[first : first + BATCH_TOKENS], 1)
        last: np.ndarray = logits[0].copy()
        return last

    def _check(self, ids: Sequence[int]) -> None:
        """Raise UsageError for tokens that do not fit into the context, or have no row."""
        self.check_length(self._n_past + len(ids))
        unknown = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if unknown is not None:
            raise UsageError(f"token {unknown} is not one of the model's {self._vocab_size}")

    def _decode(self, ids: Sequence[int], keep: int) -> np.ndarray:
        """Append up to BATCH_TOKENS tokens; logits after the last `keep`, [keep, vocab_size].

        The logits lie in llama.cpp's own memory and are valid until the next call.
        """
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._n_past + i
            batch.logits[i] = i >= len(ids) - keep
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise CgconvertError(f"llama.cpp: llama_decode returned {status}")
        self._n_past += len(ids)
        pointer = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(keep, self._vocab_size))

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 1))()  # never more tokens than bytes
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), tokens, len(tokens), False, True
        )
        if count < 0:
            raise CgconvertError(f"llama.cpp: llama_tokenize returned {count}")
        return tokens[:count]

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        # Piece by piece: llama_detokenize would take out spaces before punctuation.
        return b"".join(map(self._piece, ids)).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        """The UTF-8 bytes of one token; a token may end within a character."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @property
    def tokenizer_size(self) -> int:
        """The number of ids without the unused ones at the end, which pad the vocabulary."""
        unused = self._library.LLAMA_TOKEN_ATTR_UNUSED
        last: int = self._vocab_size
        # A control token with "unused" in its text has the attribute too, beside its own.
        while last and self._library.llama_vocab_get_attr(self._vocab, last - 1) == unused:
            last -= 1
        return last

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids of eos, eot and eom in the file's metadata, each once."""
        library, text = self._library, ctypes.create_string_buffer(16)
        ids = [int(library.llama_vocab_eos(self._vocab)), int(library.llama_vocab_eot(self._vocab))]
        key = b"tokenizer.ggml.eom_token_id"  # llama.cpp has no function for it
        if library.llama_model_meta_val_str(self._model, key, text, len(text)) > 0:
            ids.append(int(text.value))
        return tuple(dict.fromkeys(index for index in ids if index >= 0))

    @property
    def stopping_ids(self) -> frozenset[int]:
        """The ids in the metadata, and those of tokens at which llama.cpp stops by their text."""
        is_end = self._library.llama_vocab_is_eog
        ids = filter(partial(is_end, self._vocab), range(self._vocab_size))
        return frozenset(ids) | frozenset(self.eos_token_ids)

    def close(self) -> None:
        """See Runtime.close; closing twice does no harm."""
        if self._model is not None:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
            self._model = self._context = self._vocab = None
        super().close()


@cache
def _library() -> Any:
    """Load the ctypes functions of llama.cpp; its log goes to `_error_lines`, not to stderr."""
    library = import_package("llama_cpp.llama_cpp", "llama-cpp-python", "llamacpp")
    library.llama_log_set(_log_callback(library), None)
    library.llama_backend_init()
    return library


_error_lines: list[str] = []
"""The lines of level error that llama.cpp has logged since the last load began.

llama.cpp has one log for the whole process."""


@cache  # llama.cpp keeps a pointer to the callback, so Python must not free it
def _log_callback(library: Any) -> Any:
    """Make the C function that llama.cpp calls for every line of its log."""

    def keep_error_line(level: int, text: bytes, _: object) -> None:
        """Keep a line of the log if its level is error."""
        if level == LOG_ERROR:
            _error_lines.append(text.decode(errors="replace"))

    return library.llama_log_callback(keep_error_line)


def _error_from_log(summary: str, device: str) -> CgconvertError:
    """Make an error from a summary and the first error line that llama.cpp logged.

    Later lines are consequences of the first. An error of the GPU's is a UsageError: mostly the GPU
    has not enough memory, and the file is not at fault.
    """
    reason = " ".join(_error_lines[0].split()) if _error_lines else "llama.cpp gives no reason"
    if device != "cpu" and re.search("CUDA|cudaMalloc|[Vv]ulkan|[Mm]etal|out of memory", reason):
        return UsageError(f'{summary} on {device}, use `device="cpu"`: {reason}')
    return InputError(f"{summary}: {reason}")


def _require_cuda(library: Any) -> None:
    """Raise UsageError if llama.cpp was built without CUDA or finds no GPU."""
    system = library.llama_print_system_info().decode(errors="replace")
    if "CUDA" not in system:
        raise UsageError(
            "device cuda: this llama-cpp-python was built without CUDA; "
            'reinstall it with CMAKE_ARGS=-DGGML_CUDA=on, or use `device="cpu"`'
        )
    if not library.llama_supports_gpu_offload():
        raise UsageError('device cuda: llama.cpp finds no CUDA device; use `device="cpu"`')


def gpu_names(library: Any) -> str:
    """Return llama.cpp's names of its GPUs, for example Metal, Vulkan0 or CUDA0, with commas.

    Raises UsageError if llama.cpp was built without a backend for GPUs or finds none.
    """
    if not library.llama_supports_gpu_offload():
        raise UsageError(
            "device gpu: this llama-cpp-python has no backend for a GPU, or finds none; reinstall "
            "it with CMAKE_ARGS=-DGGML_METAL=on, -DGGML_VULKAN=on or -DGGML_CUDA=on, or use "
            '`device="cpu"`'
        )
    return ", ".join(name for name, kind in _devices(library) if kind in GPU_KINDS) or "unnamed"


def _devices(library: Any) -> list[tuple[str, int]]:
    """Return name and kind of each of llama.cpp's devices (ggml-backend.h).

    llama-cpp-python does not declare these functions. There are none where its library does not
    pass on those of ggml's, as on Windows.
    """
    try:
        count, get, name, kind = (
            getattr(library._lib, f"ggml_backend_dev_{function}")
            for function in ("count", "get", "name", "type")
        )
    except AttributeError:
        return []
    count.restype, get.restype, name.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    get.argtypes = [ctypes.c_size_t]
    name.argtypes = kind.argtypes = [ctypes.c_void_p]
    devices = [get(number) for number in range(count())]
    return [(name(device).decode(errors="replace"), kind(device)) for device in devices]
