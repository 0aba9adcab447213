"""Plain onnxruntime: an ONNX folder with its KV cache carried from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgconvert.checkpoint.config import read_json
from cgconvert.checkpoint.onnx import find_graph, folder_of
from cgconvert.errors import InputError, MissingRuntimeError, UsageError
from cgconvert.runtimes.admission import admit_onnx
from cgconvert.runtimes.runtime import Runtime
from cgconvert.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntime", "check_length", "first_line"]

INPUTS = ("input_ids", "attention_mask", "position_ids")
PAST, PRESENT = "past_key_values.", "present."
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntime(Runtime):
    """The cache stays on the device; only logits come back."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, folder: Path, device: str) -> None:
        self.device = device
        self._session = session
        self._folder = folder
        self._outputs = [output.name for output in session.get_outputs()]
        self._empty = {
            value.name: (value.shape, _DTYPES[value.type])
            for value in session.get_inputs()
            if value.name.startswith(PAST)
        }
        self._vocabulary = int(session.get_outputs()[0].shape[2])
        self._n_positions = _integer(folder / "config.json", "n_positions")
        self._tokenizer = Tokenizer.load(folder)
        self._cache: dict[str, Any] = {}
        self._length = 0

    @classmethod
    def open(cls, path: Path, device: str = "cpu", threads: int | None = None) -> OnnxRuntime:
        """Load the one graph of a folder, or the graph itself."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingRuntimeError("onnxruntime", "onnxruntime") from error
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise MissingRuntimeError("onnxruntime with CUDA", "onnxruntime-gpu")
        graph = find_graph(path)
        admit_onnx(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures come as exceptions, once
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(
                str(graph), options, providers=[provider], enable_fallback=0
            )
            is_decoder = _is_decoder(session)  # names that are not text show here
        except Exception as error:  # onnxruntime's errors have no common base
            raise InputError(f"{graph}: onnxruntime cannot load it: {first_line(error)}") from error
        if provider not in session.get_providers():  # its libraries did not load
            raise UsageError(f"onnxruntime cannot use {device} here: {provider} does not start")
        if not is_decoder:
            raise InputError(f"{graph}: not a decoder with a KV cache: its inputs are other ones")
        return cls(session, folder_of(graph), device)

    @property
    def n_positions(self) -> int:
        return self._n_positions

    @property
    def tokens(self) -> int:
        return self._tokenizer.size

    @property
    def end_of_text(self) -> int:
        return _integer(self._folder / "generation_config.json", "eos_token_id")

    def reset(self) -> None:
        self._cache, self._length = {}, 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        if not ids:
            return np.empty((0, self._vocabulary), dtype=np.float32)
        total = self._length + len(ids)
        check_length(total, self.n_positions)
        tokens = np.asarray(ids, dtype=np.int64)[None]
        positions = np.arange(self._length, total)[None]
        mask = np.ones((1, total), dtype=np.int64)
        logits, self._cache = self._run(tokens, mask, positions, self._cache)
        self._length = total
        return logits[0]

    def batch(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Run prompts of different lengths as one left-padded batch, apart from the cache.

        Returns each prompt's logits, float32 [its length, vocabulary].
        """
        width = max(map(len, prompts))
        check_length(width, self.n_positions)
        tokens = np.full((len(prompts), width), self.end_of_text, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        logits, _ = self._run(tokens, mask, positions, {})
        return [row[width - len(prompt) :] for row, prompt in zip(logits, prompts, strict=True)]

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def _run(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Logits float32 [batch, length, vocabulary], and the cache grown by `tokens`."""
        binding = self._session.io_binding()
        for name, array in zip(INPUTS, (tokens, mask, positions), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in (cache or self._empty_cache(len(tokens))).items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # a graph that loads may still not fit together
            raise InputError(
                f"{self._folder}: onnxruntime cannot run it: {first_line(error)}"
            ) from error
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        logits = values.pop("logits").numpy().astype(np.float32, copy=False)
        return logits, {name.replace(PRESENT, PAST): value for name, value in values.items()}

    def _empty_cache(self, batch: int) -> dict[str, Any]:
        from onnxruntime import OrtValue

        return {
            name: OrtValue.ortvalue_from_numpy(
                np.empty((batch, shape[1], 0, shape[3]), dtype), self.device
            )
            for name, (shape, dtype) in self._empty.items()
        }


def _is_decoder(session: onnxruntime.InferenceSession) -> bool:
    """Whether inputs and outputs are those that `OnnxRuntime` feeds and fetches."""
    inputs = {value.name: value for value in session.get_inputs()}
    first = session.get_outputs()[0]
    past = [value for name, value in inputs.items() if name not in INPUTS]
    return (
        len(inputs) == len(INPUTS) + len(past)
        and first.name == "logits"
        and len(first.shape) == 3
        and isinstance(first.shape[2], int)
        and len(past) == len(session.get_outputs()) - 1
        and all(
            value.name.startswith(PAST)
            and value.type in _DTYPES
            and len(value.shape) == 4
            and all(isinstance(value.shape[axis], int) for axis in (1, 3))
            for value in past
        )
    )


def check_length(total: int, n_positions: int) -> None:
    """Raises UsageError where the cache would grow beyond the context."""
    if total > n_positions:
        raise UsageError(f"{total} tokens are more than the model's context of {n_positions}")


def _integer(path: Path, key: str) -> int:
    value = read_json(path).get(key)
    if not isinstance(value, int):
        raise InputError(f"{path}: {key} is {value!r}, not one number")
    return value


def first_line(error: Exception) -> str:
    """A runtime's message on one line."""
    return " ".join(str(error).split())[:300]
