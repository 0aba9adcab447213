"""The runtime of a source: cgconvert computes it in float32, to try it before it is converted.

The weights are read once into memory as float32. Each layer is computed on the new positions alone,
with a cache of keys and values. Nothing is written, and no other package is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from cgconvert.errors import UsageError
from cgconvert.io.progress import format_bytes
from cgconvert.io.system.memory import available_memory
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.device import read_float32, torch_device
from cgconvert.model.forward import attend_with_cache, gelu, layer_weights, norm, rotary
from cgconvert.runtimes.runtime import Runtime

__all__ = ["SourceRuntime"]

FLOAT32_BYTES = 4


class SourceRuntime(Runtime):
    """A checkpoint in float32, with one growing cache.

    Args:
        checkpoint: The model.
        device: One of model.device.DEVICES.

    Raises:
        UsageError: The device is not there, or the model does not fit into the memory.
    """

    name = "source"
    package = "torch"

    def __init__(self, checkpoint: Checkpoint, device: str = "auto") -> None:
        self.checkpoint = checkpoint
        decoder, g = checkpoint.decoder, checkpoint.geometry
        self._torch_device = torch_device(device)
        self.device = self._torch_device.type
        needed, available = FLOAT32_BYTES * g.parameters, available_memory()
        if self.device == "cpu" and needed > available:
            raise UsageError(
                f"{checkpoint.name} needs {format_bytes(needed)} of memory in float32, "
                f"{format_bytes(available)} are free; convert it first ('cgconvert to-gguf SOURCE "
                "--type Q8_0') and give the file"
            )
        self._layers = [
            layer_weights(decoder, number, self._torch_device) for number in range(g.n_layer)
        ]
        self._ends = {
            part: read_float32(getattr(decoder, part), self._torch_device)
            for part in ("wte", "ln_f_weight", "ln_f_bias", "head", "head_bias")
        }
        self._tables = rotary(g, g.n_positions, self._torch_device)
        self.reset()

    @classmethod
    def load(cls, path: Path, device: str = "cpu", threads: int | None = None) -> Self:
        """Raise UsageError: a source may be a name or an archive, and is no folder."""
        raise UsageError(f"{path}: a source is opened as a checkpoint")

    @property
    def n_positions(self) -> int:
        """The context length of the model."""
        return self.checkpoint.geometry.n_positions

    @property
    def tokenizer_size(self) -> int:
        """The number of ids in the source's tokenizer."""
        return self.checkpoint.tokenizer.size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids at which the source says that generation ends."""
        return self.checkpoint.eos_token_ids

    def reset(self) -> None:
        """Empty the cache of keys and values."""
        self._length = 0
        self._cache: list[tuple[torch.Tensor, torch.Tensor]] = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed."""
        hidden = self._forward(ids)
        return self._logits(hidden)

    def feed_last(self, ids: Sequence[int]) -> np.ndarray:
        """See Runtime.feed_last; the head is computed for one position."""
        logits: np.ndarray = self._logits(self._forward(ids)[-1:])[0]
        return logits

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        ends = self._ends
        with torch.inference_mode():
            logits = hidden @ ends["head"].t() + ends["head_bias"]
        array: np.ndarray = logits.cpu().numpy()
        return array

    def _forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Run new tokens through all layers; return the head's input, [len(ids), n_embd]."""
        g, start, end = self.checkpoint.geometry, self._length, self._length + len(ids)
        self.check_length(end)
        if len(ids) and not 0 <= min(ids) <= max(ids) < g.vocab_size:
            raise UsageError(f"an id is outside the model's {g.vocab_size} rows")
        tables = (self._tables[0][start:end], self._tables[1][start:end])
        grown = []
        with torch.inference_mode():
            x = self._ends["wte"][torch.tensor(list(ids), device=self._torch_device)]
            for number, weights in enumerate(self._layers):
                normed = norm(x, weights["ln_weight"], weights["ln_bias"], g.layer_norm_epsilon)
                q, k, v = (
                    (normed @ weights[part].t()).unflatten(-1, (g.n_head, -1)) for part in "qkv"
                )
                past = self._cache[number] if start else None
                context, cache = attend_with_cache(q, k, v, *tables, past)
                grown.append(cache)
                inner = gelu(normed @ weights["fc_in"].t() + weights["fc_in_bias"])
                attention = context.flatten(-2) @ weights["o"].t()
                x = x + attention + inner @ weights["fc_out"].t() + weights["fc_out_bias"]
            hidden = norm(
                x, self._ends["ln_f_weight"], self._ends["ln_f_bias"], g.layer_norm_epsilon
            )
        self._cache, self._length = grown, end
        return hidden

    def tokenize(self, text: str) -> list[int]:
        """See Runtime.tokenize."""
        return self.checkpoint.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See Runtime.detokenize."""
        return self.checkpoint.tokenizer.decode(list(ids))

    def close(self) -> None:
        """Free the weights and the cache."""
        self._layers, self._ends, self._cache = [], {}, []
