"""Plain onnxruntime: an ONNX folder, its KV cache in one buffer or carried from run to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgconvert.errors import CgconvertError, InputError, MissingRuntimeError, UsageError
from cgconvert.formats.onnx.reader import find_graph, folder_of, parse
from cgconvert.formats.onnx.weights import PADDING
from cgconvert.formats.registry import load
from cgconvert.io.strict_json import read_json
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.batch import left_padded
from cgconvert.runtimes.onnx_decode import DTYPES, INPUTS, KEEP, PAST, PRESENT, SharedCache
from cgconvert.runtimes.runtime import Runtime

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CUDA_OPTIONS", "OnnxRuntime", "failure"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {"use_tf32": "0"}
"""Float32 means float32: by itself the provider rounds what it multiplies to 10 bits."""

_CUDA_FAULT = re.compile(r"(CUDA|CUDNN|CUBLAS) failure|CUDA_PATH is set|Failed to allocate memory")
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where the weights of a graph lie that is not itself read from a file."""


class OnnxRuntime(Runtime):
    """The cache stays on the device; only logits come back.

    `feed` decodes as onnxruntime-genai does, in a cache as long as the context; `batch` as optimum
    and transformers.js do, with a cache that grows.
    """

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, folder: Path, device: str) -> None:
        self.device = device
        self._session: Any = session  # None once closed
        self._folder = folder
        self._outputs = [output.name for output in session.get_outputs()]
        self._empty = {
            value.name: (value.shape, DTYPES[value.type])
            for value in session.get_inputs()
            if value.name.startswith(PAST)
        }
        self._vocabulary = int(session.get_outputs()[0].shape[2])
        self._n_positions = _integer(folder / "config.json", "n_positions")
        self._tokenizer = Tokenizer.load(folder)
        facts = session.get_modelmeta().custom_metadata_map
        self.batches = facts.get(PADDING) != "after"
        self._keeps = any(value.name == KEEP for value in session.get_inputs())
        self._shared: SharedCache | None = None

    @classmethod
    def open(
        cls, path: Path, device: str = "cpu", threads: int | None = None, *, exact: bool = False
    ) -> OnnxRuntime:
        """Load the one graph of a folder, or the graph itself.

        `exact` computes matrices of 4 and 8 bits in float32, whatever accuracy the graph asks for.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingRuntimeError("onnxruntime", "onnxruntime") from error
        if device not in PROVIDERS:
            raise UsageError(f"device {device}: onnxruntime runs on cpu or cuda here")
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise UsageError(
                "device cuda: this onnxruntime was built without CUDA; pip uninstall onnxruntime, "
                "then pip install 'cgconvert[onnxruntime-gpu]', or use --device cpu"
            )
        graph = find_graph(path)
        load("onnx").admit(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures come as exceptions, once
        if threads is not None:
            options.intra_op_num_threads = threads
        if exact:
            options.add_session_config_entry(DATA_FOLDER, str(graph.parent))
        try:
            session = onnxruntime.InferenceSession(
                _exact(graph) if exact else str(graph),
                options,
                providers=[(provider, CUDA_OPTIONS if device == "cuda" else {})],
                enable_fallback=0,
            )
            is_decoder = _is_decoder(session)  # names that are not text show here
        except Exception as error:  # onnxruntime's errors have no common base
            raise failure(f"{graph}: onnxruntime cannot load it", error, device) from error
        if provider not in session.get_providers():  # its libraries did not load
            raise UsageError(
                f"device {device}: {provider} does not start; install the CUDA and cuDNN that this "
                "onnxruntime was built for, or use --device cpu"
            )
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
        if self._shared is not None:
            self._shared.length = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        if not ids:
            return np.empty((0, self._vocabulary), dtype=np.float32)
        cache = self._room(len(ids))
        with self._errors():
            return cache.feed(ids)

    def last(self, ids: Sequence[int]) -> np.ndarray:
        cache = self._room(len(ids))
        with self._errors():
            logits: np.ndarray = cache.feed(ids, keep=1)[-1]
        return logits

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        if not self.batches:
            raise UsageError(
                f"{self._folder}: made for CUDA, so it takes no padding before a prompt; "
                "feed one prompt at a time, or write it without --target cuda"
            )
        self.check_length(max(map(len, sequences), default=0))
        cache: Mapping[str, Any] = {}
        return left_padded(self._run, cache, sequences, steps)

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def close(self) -> None:
        self._shared = None
        self._session = None

    def _room(self, new: int) -> SharedCache:
        """The cache, with place for so many more tokens."""
        self.check_length((self._shared.length if self._shared else 0) + new)
        if self._shared is None:
            caches = {
                name: ((1, shape[1], self.n_positions, shape[3]), dtype)
                for name, (shape, dtype) in self._empty.items()
            }
            with self._errors():
                self._shared = SharedCache(self._session, caches, self.device)
        return self._shared

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a graph that loads may still not fit together
            where = f"{self._folder}: onnxruntime cannot run it"
            raise failure(where, error, self.device) from error

    def _run(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Mapping[str, Any]
    ) -> tuple[np.ndarray, Mapping[str, Any]]:
        """Logits float32 [batch, length, vocabulary], and the cache grown by `tokens`."""
        binding = self._session.io_binding()
        for name, array in zip(INPUTS, (tokens, mask, positions), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        if self._keeps:
            binding.bind_cpu_input(KEEP, np.array(0))
        for name, value in (cache or self._empty_cache(len(tokens))).items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        with self._errors():
            self._session.run_with_iobinding(binding)
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


def _exact(graph: Path) -> bytes:
    """The graph with every MatMulNBits at accuracy level 1, float32."""
    model = parse(graph)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    serialized: bytes = model.SerializeToString()
    return serialized


def _is_decoder(session: onnxruntime.InferenceSession) -> bool:
    """Whether inputs and outputs are those that `OnnxRuntime` feeds and fetches."""
    inputs = {value.name: value for value in session.get_inputs()}
    first = session.get_outputs()[0]
    past = [value for name, value in inputs.items() if name not in (*INPUTS, KEEP)]
    return (
        all(name in inputs for name in INPUTS)
        and first.name == "logits"
        and len(first.shape) == 3
        and isinstance(first.shape[2], int)
        and len(past) == len(session.get_outputs()) - 1
        and all(
            value.name.startswith(PAST)
            and value.type in DTYPES
            and len(value.shape) == 4
            and all(isinstance(value.shape[axis], int) for axis in (1, 3))
            for value in past
        )
    )


def _integer(path: Path, key: str) -> int:
    value = read_json(path).get(key)
    if not isinstance(value, int):
        raise InputError(f"{path}: {key} is {value!r}, not one number")
    return value


def failure(what: str, error: Exception, device: str) -> CgconvertError:
    """onnxruntime's exception on one line: the GPU is at fault, or else the file that `what` names.

    Of a GPU that is absent, too small or too old it says so behind a C++ signature.
    """
    said = " ".join(str(error).split())
    fault = _CUDA_FAULT.search(said) if device == "cuda" else None
    if fault:
        return UsageError(f"{what} on cuda, use --device cpu: {said[fault.start() :][:200]}")
    return InputError(f"{what}: {said[:300]}")
