"""onnxruntime-genai: runs an ONNX folder by its genai_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.comparison import as_mapping
from cgconvert.formats.onnx.admission import admit_genai
from cgconvert.installation import install_command, uninstall_command
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.strict_json import read_json
from cgconvert.model.generation_config import ids_of
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.runtimes.onnxruntime import CUDA_OPTIONS, onnxruntime_error
from cgconvert.runtimes.packages import import_package
from cgconvert.runtimes.runtime import Runtime

if TYPE_CHECKING:
    import onnxruntime_genai

__all__ = ["GenaiRuntime"]

PLAIN_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}
"""Settings with which the logits are those of the model, whatever the folder's search says."""


class GenaiRuntime(Runtime):
    """An ONNX folder in onnxruntime-genai, with the tokenizer and the KV cache of that library."""

    name = "onnxruntime-genai"
    package = "onnxruntime_genai"
    format = "onnx"

    def __init__(self, model: onnxruntime_genai.Model, folder: Path, device: str) -> None:
        """Hold a loaded model of a folder, and open the folder's tokenizer."""
        import onnxruntime_genai

        self.device = device
        self._genai = onnxruntime_genai
        self._config_path = folder / "genai_config.json"
        # These three are None once closed; the generator also before the first token is fed.
        self._model: Any = model
        self._tokenizer: Any = onnxruntime_genai.Tokenizer(model)
        self._tokenizer.update_options(skip_special_tokens="false")
        self._generator: Any = None

    @classmethod
    def admit(cls, path: Path) -> AdmittedFiles:
        """Check a folder with a genai_config.json, or the graph that it names."""
        return admit_genai(path)

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Load a folder that has a genai_config.json (see Runtime.load)."""
        onnxruntime_genai = import_package("onnxruntime_genai", "onnxruntime-genai", "genai")
        device = "cuda" if device == "gpu" else device
        if device not in ("cpu", "cuda"):
            raise UsageError(
                f"device {device}: onnxruntime-genai runs on cpu or cuda (gpu is cuda) here"
            )
        if device == "cuda" and not onnxruntime_genai.is_cuda_available():
            raise UsageError(
                "device cuda: this onnxruntime-genai was built without CUDA; "
                f"{uninstall_command('onnxruntime-genai')}, then "
                f'{install_command(["onnxruntime-genai-cuda"])}, or use `device="cpu"`'
            )
        options = {"log_severity_level": 4}  # failures come as exceptions, once
        if threads is not None:
            options["intra_op_num_threads"] = threads
        try:
            config = onnxruntime_genai.Config(str(path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            config.clear_providers()
            if device == "cuda":
                config.append_provider("cuda")
                for name, value in CUDA_OPTIONS.items():
                    config.set_provider_option("cuda", name, value)
            return cls(onnxruntime_genai.Model(config), path, device)
        except Exception as error:  # its errors have no common base
            summary = f"{path}: onnxruntime-genai cannot load it"
            raise onnxruntime_error(summary, error, device) from error

    @property
    def n_positions(self) -> int:
        """The context length in genai_config.json."""
        return _model_entry(self._config_path, "context_length")

    @property
    def tokenizer_size(self) -> int:
        """The number of ids in the folder's tokenizer files."""
        return Tokenizer.load(self._config_path.parent).size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The eos_token_id of genai_config.json, which is one id or a list."""
        model = as_mapping(read_json(self._config_path).get("model"))
        return ids_of(model.get("eos_token_id"), f"{self._config_path}: model.eos_token_id")

    def reset(self) -> None:
        """Drop the generator, which holds the KV cache."""
        self._generator = None

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed; the first tokens make a new generator."""
        if not ids:
            return np.empty((0, _model_entry(self._config_path, "vocab_size")), dtype=np.float32)
        if self._generator is None:
            parameters = self._genai.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self.n_positions, **PLAIN_SEARCH)
            self._generator = self._genai.Generator(self._model, parameters)
        self.check_length(self._generator.token_count() + len(ids))
        try:
            self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
            logits: np.ndarray = self._generator.get_output("logits")
        except Exception as error:  # a graph that loads may still fail when it runs
            summary = f"{self.place}: onnxruntime-genai cannot run it"
            raise onnxruntime_error(summary, error, self.device) from error
        sequence_logits: np.ndarray = logits[0].astype(np.float32, copy=False)
        return sequence_logits

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        text: str = self._tokenizer.decode(np.asarray(ids, dtype=np.int32))
        return text

    def close(self) -> None:
        """See Runtime.close."""
        self._generator = self._tokenizer = self._model = None
        super().close()


def _model_entry(path: Path, key: str) -> int:
    """Read a number from the object "model" of a genai_config.json."""
    model = read_json(path).get("model")
    value = model.get(key) if isinstance(model, dict) else None
    if not isinstance(value, int):
        raise InputError(f"{path}: model.{key} is {value!r}, not a number")
    return value
