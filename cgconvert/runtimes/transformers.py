"""Hugging Face transformers: runs Hugging Face folders, in CodeGen's layout and in Phi's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from cgconvert.errors import InputError, UsageError
from cgconvert.io.strict_json import read_json
from cgconvert.lazy import torch
from cgconvert.model.device import DEVICES, torch_device, warm_up_mkl
from cgconvert.model.generation_config import ids_of
from cgconvert.runtimes.packages import broken_package, import_package
from cgconvert.runtimes.runtime import Runtime, run_left_padded

__all__ = ["TransformersRuntime", "quiet"]

MODEL_CLASSES = {
    "codegen": "CodeGenForCausalLM",
    "gptj": "GPTJForCausalLM",
    "phi": "PhiForCausalLM",
}
"""The class of transformers that runs a model, by its model_type."""


class TransformersRuntime(Runtime):
    """A causal model of transformers with a growing DynamicCache.

    It computes in float32 on the CPU, whatever type the weights are stored as, and in float16 on
    CUDA.
    """

    name = package = "transformers"
    imports = (
        "torch",
        "transformers",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.codegen.modeling_codegen",
        "transformers.models.codegen.tokenization_codegen",
        "transformers.models.phi.modeling_phi",
        "transformers.models.gpt2.tokenization_gpt2",
    )
    format = "huggingface"
    takes_batches = True

    def __init__(
        self, model: Any, tokenizer: Any, device: str, threads_to_restore: int | None
    ) -> None:
        """Hold a loaded model and tokenizer.

        `threads_to_restore` is the number that torch.set_num_threads gets on `close`; None if it
        was not changed.
        """
        self.device = device
        self._model = model
        self._tokenizer = tokenizer
        self._threads_to_restore = threads_to_restore
        self.reset()

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Load a folder (see Runtime.load). The class of the model is named here, by its type.

        `threads` sets PyTorch's number of threads for the whole process; `close` restores it. A
        folder whose tensors are not exactly those of the model is an InputError too.
        """
        transformers = import_package("transformers", "transformers", "transformers")
        try:
            model_type = str(read_json(path / "config.json").get("model_type"))
            model_class: Any = getattr(transformers, MODEL_CLASSES[model_type])
            tokenizer_class: Any = transformers.AutoTokenizer
        except Exception as error:  # it imports its parts at first use
            raise broken_package("transformers", "transformers", error) from error
        if device not in DEVICES:
            raise UsageError(f"device {device}: transformers runs on cpu, cuda, mps or gpu here")
        device = torch_device(device).type
        warm_up_mkl()
        with quiet(), _input_errors(path):
            tokenizer = tokenizer_class.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
            model, loading_info = model_class.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.float16,
                output_loading_info=True,
            )
        _check_complete(path, loading_info)
        try:
            model.eval().to(device)
        except RuntimeError as error:  # PyTorch raises it if a GPU has not enough memory
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f'{path}: cannot be moved to {device}, use `device="cpu"`: {reason}'
            ) from error
        threads_to_restore = torch.get_num_threads() if threads else None
        if threads:
            torch.set_num_threads(threads)
        return cls(model, tokenizer, device, threads_to_restore)

    @property
    def n_positions(self) -> int:
        """The max_position_embeddings of the configuration."""
        return int(self._model.config.max_position_embeddings)

    def reset(self) -> None:
        """Replace the KV cache by an empty one."""
        from transformers import DynamicCache

        self._kv_cache = DynamicCache()

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed."""
        past = self._kv_cache.get_seq_length()
        total = past + len(ids)
        self.check_length(total)
        if not ids:
            return np.empty((0, self._model.config.vocab_size), dtype=np.float32)
        rows = self._model.get_input_embeddings().num_embeddings
        if max(ids) >= rows:  # PyTorch raises IndexError, and CUDA ends the process
            raise UsageError(f"token {max(ids)} is not one of the model's {rows}")
        tokens = np.asarray(ids, dtype=np.int64)[None]
        mask = np.ones((1, total), dtype=np.int64)
        logits, _ = self._run(tokens, mask, np.arange(past, total)[None], self._kv_cache)
        sequence_logits: np.ndarray = logits[0]
        return sequence_logits

    def batch(self, sequences: Sequence[Sequence[int]], steps: int = 0) -> list[np.ndarray]:
        """See Runtime.batch."""
        from transformers import DynamicCache

        self.check_length(max(map(len, sequences), default=0))
        return run_left_padded(self._run, DynamicCache(), sequences, steps)

    def _run(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any
    ) -> tuple[np.ndarray, Any]:
        """Run the model once, see runtime.Run; `cache` is a DynamicCache, which grows in place."""
        arrays = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        inputs = {name: torch.tensor(array, device=self.device) for name, array in arrays.items()}
        with torch.inference_mode(), _input_errors(self.place, "run"):
            logits = self._model(
                **inputs,
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits.float().cpu().numpy(), cache

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        # verbose=False: no warning that the text is longer than the context.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    @property
    def tokenizer_size(self) -> int:
        """The number of ids in the tokenizer, added tokens included."""
        return len(self._tokenizer)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The eos_token_id of the generation configuration, which is one id or a list.

        Raises InputError if there is none.
        """
        eos = self._model.generation_config.eos_token_id
        return ids_of(eos, f"{self.place}: eos_token_id")

    def close(self) -> None:
        """See Runtime.close; restores PyTorch's number of threads if `open` changed it."""
        self._model = self._tokenizer = None
        self.reset()
        if self._threads_to_restore is not None:
            torch.set_num_threads(self._threads_to_restore)
        if self.device == "cuda":
            torch.cuda.empty_cache()
        elif self.device == "mps":
            torch.mps.empty_cache()
        super().close()


def _check_complete(path: Path, loading_info: Mapping[str, Any]) -> None:
    """Raise InputError if tensors are missing, unexpected or of another shape.

    transformers only warns of these, and initialises missing tensors randomly. `loading_info` is
    what from_pretrained returns with output_loading_info: names of tensors by what is wrong.
    """
    differences = {kind: sorted(map(str, names)) for kind, names in loading_info.items() if names}
    if differences:
        text = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in differences.items())
        raise InputError(f"{path}: its tensors are not the model's: {text}")


@contextmanager
def _input_errors(path: Path | str, action: str = "load") -> Iterator[None]:
    """Turn any exception into an InputError about the folder at `path`.

    transformers has no exception class of its own; a model that loads may still fail when it runs.
    torch.OutOfMemoryError passes unchanged, because the folder does not cause it. `action`, "load"
    or "run", is what the message says that transformers could not do.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: transformers cannot {action} it: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Turn transformers' progress bars and warnings off: stderr belongs to the command."""
    from transformers import utils

    logging: Any = utils.logging  # its functions carry no types
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
