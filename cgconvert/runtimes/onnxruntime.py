"""onnxruntime: runs an ONNX folder, with a KV cache in one buffer or one that grows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.onnx.reader import data_files, find_graph, folder_of, parse
from cgconvert.formats.onnx.weights import PADDING
from cgconvert.installation import install_command, requirements, uninstall_command
from cgconvert.io.strict_json import read_json
from cgconvert.model.generation_config import ids_of
from cgconvert.model.geometry import MAX_SIZES
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.packages import import_package
from cgconvert.runtimes.runtime import Runtime, run_left_padded

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "CUDA_OPTIONS", "DTYPES", "INPUTS", "PAST", "OnnxRuntime", "SharedCache", "onnxruntime_error",
]  # fmt: skip

PAST, PRESENT = "past_key_values.", "present."
"""Prefixes of the names of the KV cache's inputs and outputs."""

INPUTS = ("input_ids", "attention_mask", "position_ids")
LOGITS_TO_KEEP = "num_logits_to_keep"
"""An input that some graphs have: after how many of the last tokens logits are computed; 0: all."""

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {"use_tf32": "0"}
"""Without this option the CUDA provider rounds factors of float32 products to 10 bits (TF32)."""

CUDA_FAILURE = re.compile(r"(CUDA|CUDNN|CUBLAS) failure|CUDA_PATH is set|Failed to allocate memory")
"""Begins the part of onnxruntime's message that says what is wrong with the GPU."""

OLDEST = "1.22"
"""The oldest release that runs float graphs; it refuses those of 4 and 8 bits itself."""

DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""The session option that names the folder of the weights of a graph that is loaded from memory."""

MATMUL_NBITS = "MatMulNBits"
FLOAT32_LEVEL = 1
"""The accuracy level at which MatMulNBits computes with float32 activations."""

CacheShape = tuple[int, int, int, int]
"""[1, heads, positions, head size]"""


class OnnxRuntime(Runtime):
    """An ONNX decoder whose KV cache stays on the device; only logits come back.

    `feed` decodes as onnxruntime-genai does, with a cache as long as the context; `batch` decodes
    as optimum and transformers.js do, with a cache that grows.
    """

    name = package = "onnxruntime"
    format = "onnx"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        folder: Path,
        device: str,
        data: Sequence[np.ndarray] = (),
    ) -> None:
        """Hold a session of a decoder graph, and the memory that its weights lie in, if any.

        `folder` has the tokenizer and configuration.
        """
        self.device = device
        self._data = data
        self._session: Any = session  # None once closed
        self._folder = folder
        self._outputs = [output.name for output in session.get_outputs()]
        # The shape (with names for the axes of variable length) and the type of each cache input.
        self._past_inputs = {
            value.name: (value.shape, DTYPES[value.type])
            for value in session.get_inputs()
            if value.name.startswith(PAST)
        }
        self._vocab_size = int(session.get_outputs()[0].shape[2])
        self._n_positions = _n_positions(folder / "config.json")
        self._tokenizer = Tokenizer.load(folder)
        metadata = session.get_modelmeta().custom_metadata_map
        self.takes_batches = metadata.get(PADDING) != "after"
        if any(dtype == np.float16 for _, dtype in self._past_inputs.values()):
            self.activations = "float16"
        self._has_logits_to_keep = _has_logits_to_keep(session)
        self._kv_cache: SharedCache | None = None  # made when the first token is fed

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Load the graph at `path`, or the only one of a folder (see Runtime.load)."""
        return cls._load(path, device, threads, float_activations=False)

    @classmethod
    def load_with_float_activations(
        cls, path: Path, device: str = "cpu", threads: int | None = None
    ) -> Self | None:
        """Load the graph so that every MatMulNBits computes in float32.

        Returns None on CUDA, where activations are never quantized (see
        Runtime.load_with_float_activations).
        """
        nodes = parse(find_graph(path)).graph.node
        if device != "cpu" or all(node.op_type != MATMUL_NBITS for node in nodes):
            return None
        return cls._load(path, device, threads, float_activations=True)

    @classmethod
    def _load(
        cls, path: Path, device: str, threads: int | None, *, float_activations: bool
    ) -> Self:
        """Load a graph; `float_activations` makes every MatMulNBits compute in float32."""
        onnxruntime = import_package("onnxruntime", "onnxruntime", "onnxruntime", OLDEST)
        device = "cuda" if device == "gpu" else device
        if device not in PROVIDERS:
            raise UsageError(f"device {device}: onnxruntime runs on cpu or cuda (gpu is cuda) here")
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            with_cuda = requirements("onnxruntime-gpu", "onnxruntime-gpu")
            raise UsageError(
                "device cuda: this onnxruntime was built without CUDA; "
                f"{uninstall_command('onnxruntime')}, then {install_command(with_cuda)}, or use "
                '`device="cpu"`'
            )
        graph = find_graph(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures come as exceptions, once
        if threads is not None:
            options.intra_op_num_threads = threads
        data = _add_data(options, graph) if float_activations else []
        try:
            session = onnxruntime.InferenceSession(
                _with_float32_matrices(graph) if float_activations else str(graph),
                options,
                providers=[(provider, CUDA_OPTIONS if device == "cuda" else {})],
                enable_fallback=0,
            )
            is_decoder = _is_decoder(session)  # names that are not text show here
        except Exception as error:  # onnxruntime's errors have no common base
            summary = f"{graph}: onnxruntime cannot load it"
            raise onnxruntime_error(summary, error, device) from error
        if provider not in session.get_providers():  # its libraries did not load
            raise UsageError(
                f"device {device}: {provider} does not start; install the CUDA and cuDNN that this "
                'onnxruntime was built for, or use `device="cpu"`'
            )
        if not is_decoder:
            raise InputError(f"{graph}: not a decoder with a KV cache: its inputs are other ones")
        return cls(session, folder_of(graph), device, data)

    @property
    def n_positions(self) -> int:
        """The n_positions of config.json."""
        return self._n_positions

    @property
    def tokenizer_size(self) -> int:
        """The number of ids in the folder's tokenizer files."""
        return self._tokenizer.size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The eos_token_id of generation_config.json, which is one id or a list."""
        path = self._folder / "generation_config.json"
        return ids_of(read_json(path).get("eos_token_id"), f"{path}: eos_token_id")

    def reset(self) -> None:
        """Empty the KV cache; its memory is kept."""
        if self._kv_cache is not None:
            self._kv_cache.length = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed."""
        if not ids:
            return np.empty((0, self._vocab_size), dtype=np.float32)
        cache = self._cache_with_room(len(ids))
        with self._input_errors():
            return cache.feed(ids)

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed_last; a graph with num_logits_to_keep computes no other logits."""
        cache = self._cache_with_room(len(ids))
        with self._input_errors():
            logits: np.ndarray = cache.feed(ids, keep=1)[-1]
        return logits

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """See Runtime.batch."""
        if not self.takes_batches:
            raise UsageError(
                f"{self.place}: made for CUDA, so it takes no padding before a prompt; "
                'feed one prompt at a time, or write it without `target="cuda"`'
            )
        self.check_length(max(map(len, sequences), default=0))
        cache: Mapping[str, Any] = {}
        return run_left_padded(self._run, cache, sequences, steps)

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        return self._tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        return self._tokenizer.decode(ids)

    def close(self) -> None:
        """See Runtime.close."""
        self._kv_cache = None
        self._session = None
        self._data = ()
        super().close()

    def _cache_with_room(self, new_tokens: int) -> SharedCache:
        """The cache of `feed`, made if there is none yet.

        Raises UsageError if `new_tokens` more tokens do not fit into it.
        """
        self.check_length((self._kv_cache.length if self._kv_cache else 0) + new_tokens)
        if self._kv_cache is None:
            caches = {
                name: ((1, shape[1], self.n_positions, shape[3]), dtype)
                for name, (shape, dtype) in self._past_inputs.items()
            }
            with self._input_errors():
                self._kv_cache = SharedCache(self._session, caches, self.device)
        return self._kv_cache

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """Turn onnxruntime's exceptions into errors about the folder or the GPU.

        A graph that loads may still fail when it runs.
        """
        try:
            yield
        except Exception as error:  # onnxruntime's errors have no common base
            summary = f"{self.place}: onnxruntime cannot run it"
            raise onnxruntime_error(summary, error, self.device) from error

    def _run(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Mapping[str, Any]
    ) -> tuple[np.ndarray, Mapping[str, Any]]:
        """Run the graph once, see runtime.Run; `cache` maps input names to OrtValues."""
        binding = self._session.io_binding()
        for name, array in zip(INPUTS, (tokens, mask, positions), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        if self._has_logits_to_keep:
            binding.bind_cpu_input(LOGITS_TO_KEEP, np.array(0))
        for name, value in (cache or self._empty_cache(len(tokens))).items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        with self._input_errors():
            self._session.run_with_iobinding(binding)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        logits = values.pop("logits").numpy().astype(np.float32, copy=False)
        return logits, {name.replace(PRESENT, PAST): value for name, value in values.items()}

    def _empty_cache(self, batch: int) -> dict[str, Any]:
        """A cache without positions for `batch` sequences: OrtValues by name of input."""
        from onnxruntime import OrtValue

        return {
            name: OrtValue.ortvalue_from_numpy(
                np.empty((batch, shape[1], 0, shape[3]), dtype), self.device
            )
            for name, (shape, dtype) in self._past_inputs.items()
        }


class SharedCache:
    """The KV cache of one sequence with past and present in one buffer: a step copies nothing.

    GroupQueryAttention writes in place if it gets the same memory as past and as present
    (group_query_attention.cc: past_present_share_buffer). The buffer is as long as the context; the
    attention mask says how much of it is filled. All that a step needs is allocated and bound once.

    Args:
        session: The graph.
        caches: Shape and NumPy type of each input past_key_values.N.*.
        device: "cpu" or "cuda".

    Attributes:
        length: The number of tokens in the cache. Setting it to 0 empties the cache.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        caches: Mapping[str, tuple[CacheShape, Any]],
        device: str,
    ) -> None:
        from onnxruntime import OrtValue

        self.length = 0
        self._session = session
        self._has_logits_to_keep = _has_logits_to_keep(session)
        logits = session.get_outputs()[0]
        buffers = {
            name: OrtValue.ortvalue_from_shape_and_type(shape, dtype, device)
            for name, (shape, dtype) in caches.items()
        }
        positions = next(iter(caches.values()))[0][2]
        self._mask = np.ones((1, positions), dtype=np.int64)
        self._binding = session.io_binding()
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), buffer)
        self._token, self._position = np.zeros((2, 1, 1), dtype=np.int64)
        row = np.empty((1, 1, int(logits.shape[2])), dtype=DTYPES[logits.type])
        self._row = OrtValue.ortvalue_from_numpy(row)

    def feed(self, ids: Sequence[int], keep: int = 0) -> np.ndarray:
        """Append tokens; logits after each of them, float32 [len(ids), vocab_size].

        If `keep` is not 0 and the graph has the input num_logits_to_keep, there are logits after
        the last `keep` tokens only.
        """
        total = self.length + len(ids)
        if len(ids) == 1:
            tokens, positions = self._token, self._position
            tokens[:], positions[:] = ids, self.length
            self._binding.bind_ortvalue_output("logits", self._row)
        else:
            tokens = np.asarray(ids, dtype=np.int64)[None]
            positions = np.arange(self.length, total)[None]
            self._binding.bind_output("logits", "cpu")
        arrays = (tokens, self._mask[:, :total], positions)
        for name, array in zip(INPUTS, arrays, strict=True):
            self._binding.bind_cpu_input(name, array)
        if self._has_logits_to_keep:
            self._binding.bind_cpu_input(LOGITS_TO_KEEP, np.array(keep))
        self._session.run_with_iobinding(self._binding)
        self.length = total
        logits: np.ndarray = self._binding.get_outputs()[-1].numpy()[0]
        # The logits of a single token lie in `_row`, which the next step overwrites.
        return logits.astype(np.float32, copy=len(ids) == 1)


def _has_logits_to_keep(session: onnxruntime.InferenceSession) -> bool:
    """Whether the graph has an input that limits the logits to the last tokens."""
    return any(value.name == LOGITS_TO_KEEP for value in session.get_inputs())


def _with_float32_matrices(graph: Path) -> bytes:
    """Serialize the graph with every MatMulNBits set to compute with float32 activations."""
    model = parse(graph)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = FLOAT32_LEVEL
    serialized: bytes = model.SerializeToString()
    return serialized


def _add_data(options: onnxruntime.SessionOptions, graph: Path) -> list[np.ndarray]:
    """Give a session, which will load a graph from memory, the files of the graph's weights.

    onnxruntime from 1.24 on does not follow links to them unless it knows the path of the graph. It
    gets them as memory instead, which is returned and has to stay as long as the session.
    """
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_session_config_entry(DATA_FOLDER, str(graph.parent))
        return []
    paths = sorted(data_files(graph, graph))
    data = [np.memmap(path, mode="r") for path in paths]
    options.add_external_initializers_from_files_in_memory(
        [path.name for path in paths], data, [len(array) for array in data]
    )
    return list(data)


def _is_decoder(session: onnxruntime.InferenceSession) -> bool:
    """Whether the graph has the inputs and outputs that `OnnxRuntime` binds, in its order."""
    inputs = {value.name: value for value in session.get_inputs()}
    first = session.get_outputs()[0]
    past = [value for name, value in inputs.items() if name not in (*INPUTS, LOGITS_TO_KEEP)]
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


def _n_positions(path: Path) -> int:
    """Read n_positions from a config.json; the KV cache is allocated by it.

    Raises InputError if it is no number, or larger than any model's.
    """
    value, maximum = read_json(path).get("n_positions"), MAX_SIZES["n_positions"]
    if type(value) is not int or not 1 <= value <= maximum:
        raise InputError(f"{path}: n_positions is {value!r}; it must be from 1 to {maximum}")
    return value


def onnxruntime_error(summary: str, error: Exception, device: str) -> CgconvertError:
    """Make an error from a summary (the file and what failed) and an exception of onnxruntime.

    A GPU that is absent, too small or too old is a UsageError, everything else an InputError about
    the file. What onnxruntime says about a GPU comes after a C++ signature, which is left out.
    """
    message = " ".join(str(error).split())
    failure = CUDA_FAILURE.search(message) if device == "cuda" else None
    if failure:
        reason = message[failure.start() :][:200]
        return UsageError(f'{summary} on cuda, use `device="cpu"`: {reason}')
    return InputError(f"{summary}: {message[:300]}")
