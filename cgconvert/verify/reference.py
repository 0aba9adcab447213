"""The fp16 reference: CodeGen's own mathematics over a checkpoint's weights, streamed.

It is independent of all that it judges. It works in CodeGen's interleaved rotary form and shares
nothing with the writers but the lazy tensors, so a wrong reorder cannot be wrong on both sides; for
the same reason it has a layer of its own, apart from the one that calibration uses. All sequences
go through the model at once, and only a chunk of a matrix's rows is in memory at a time: memory
follows the number of positions, not the size of the model, and the file is read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cgconvert.errors import InputError
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.decoder import Decoder, Layer
from cgconvert.model.device import torch_device
from cgconvert.model.forward import attend, gelu, norm, rotary
from cgconvert.model.tensor import LazyTensor
from cgconvert.verify.distribution import Distribution

__all__ = ["Reference"]

CHUNK_BYTES = 128 << 20
"""float32 bytes of the rows of a matrix in memory at once."""

POSITIONS = 1024
"""Positions whose logits are whole in memory at once: 210 MB at CodeGen's vocabulary."""


class Reference:
    """A decoder that runs layer by layer over whole sequences, without a cache.

    It computes in float32, on a GPU too: weights are streamed, so that costs no memory, and the
    error of float16 is what is to be measured (transformers, modeling_codegen.py:
    CodeGenAttention._attn has float32 scores).

    Args:
        decoder: The model.
        device: "cpu", "cuda" or "auto".
        weights: The type that weights are rounded to before; None leaves them as stored.
        progress: Gets a step for each call and an advance for each layer.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        device: str = "cpu",
        weights: torch.dtype | None = torch.float16,
        progress: Progress | None = None,
    ) -> None:
        self.decoder = decoder
        self.device = torch_device(device)
        self.weights = weights
        self.progress = progress or Silent()

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits after every token of every sequence: float32 [len(sequence), vocab_size] each.

        Raises InputError for an empty or over-long sequence and for an id outside the vocabulary.
        """
        if not sequences:
            return []
        with torch.inference_mode():
            logits = self._head(self._forward(sequences)).numpy()
        return np.split(logits, np.cumsum([len(s) for s in sequences])[:-1])

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        allowed: int,
        first: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """The same logits as Distributions, each sequence's from position `first` on (default 0).

        `allowed` is the number of ids that the tokenizer has. Raises InputError as `logits`.
        """
        if not sequences:
            return []
        first = first or [0] * len(sequences)
        ends = np.cumsum([len(s) for s in sequences])
        pairs = list(zip(sequences, first, strict=True))
        places = np.concatenate(
            [
                np.arange(end - len(s) + begin, end)
                for end, (s, begin) in zip(ends, pairs, strict=True)
            ]
        )
        tokens = np.concatenate([[*s[begin + 1 :], -1] for s, begin in pairs])
        parts = []
        with torch.inference_mode():
            hidden = self._forward(sequences)[torch.from_numpy(places).to(self.device)]
            for start in range(0, len(places), POSITIONS):
                piece = slice(start, start + POSITIONS)
                logits = self._head(hidden[piece]).numpy()
                parts.append(Distribution.of(logits, tokens[piece], allowed))
        whole = Distribution.joined(parts)
        edges = np.cumsum([0, *(len(s) - begin for s, begin in pairs)]).tolist()
        return [whole[begin:end] for begin, end in itertools.pairwise(edges)]

    def _check(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raise InputError for a sequence that the model cannot take."""
        g = self.decoder.geometry
        for sequence in sequences:
            if not 0 < len(sequence) <= g.n_positions:
                raise InputError(
                    f"reference: a sequence of {len(sequence)} tokens; "
                    f"it must have 1 to {g.n_positions}"
                )
            if min(sequence) < 0 or max(sequence) >= g.vocab_size:
                raise InputError(
                    f"reference: id {max(sequence, key=abs)} is outside the model's "
                    f"{g.vocab_size} rows; is this the model's own tokenizer?"
                )

    def _forward(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """The head's input, float32 [all tokens, n_embd]."""
        self._check(sequences)
        d = self.decoder
        x = self._embed(np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]))
        lengths = [len(s) for s in sequences]
        sin, cos = rotary(d.geometry, max(lengths), self.device)
        self.progress.step("running the reference", len(d.layers))
        for layer in d.layers:
            x = self._layer(x, layer, lengths, sin, cos)
            self.progress.advance(1)
        return self._norm(x, d.ln_f_weight, d.ln_f_bias)

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        """Logits on the CPU, float32 [positions, vocab_size]."""
        out = torch.empty(x.shape[0], self.decoder.head.shape[0])
        for rows, part in self._linear_parts(x, self.decoder.head, self.decoder.head_bias):
            out[:, rows] = part.cpu()
        return out

    def _layer(
        self,
        x: torch.Tensor,
        layer: Layer,
        lengths: list[int],
        sin: torch.Tensor,
        cos: torch.Tensor,
    ) -> torch.Tensor:
        """x + attn(ln(x)) + mlp(ln(x)): both take the same input; x is [tokens, n_embd]."""
        normed = self._norm(x, layer.ln_weight, layer.ln_bias)
        heads = self.decoder.geometry.n_head
        q, k, v = (
            self._linear(normed, w).unflatten(1, (heads, -1)) for w in (layer.q, layer.k, layer.v)
        )
        context = torch.cat(
            [
                attend(qs[None], ks[None], vs[None], sin[:length], cos[:length])[0]
                for length, qs, ks, vs in zip(
                    lengths, q.split(lengths), k.split(lengths), v.split(lengths), strict=True
                )
            ]
        )
        attention = self._linear(context.flatten(1), layer.o)
        inner = gelu(self._linear(normed, layer.fc_in, layer.fc_in_bias))
        return x + attention + self._linear(inner, layer.fc_out, layer.fc_out_bias)

    def _embed(self, ids: np.ndarray) -> torch.Tensor:
        unique, where = np.unique(ids, return_inverse=True)
        return self._load(self.decoder.wte.rows(unique))[torch.from_numpy(where).to(self.device)]

    def _norm(self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor) -> torch.Tensor:
        eps = self.decoder.geometry.layer_norm_epsilon
        return norm(x, self._load(weight), self._load(bias), eps)

    def _linear(
        self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor | None = None
    ) -> torch.Tensor:
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        for rows, part in self._linear_parts(x, weight, bias):
            out[:, rows] = part
        return out

    def _linear_parts(
        self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor | None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """x @ weight.T + bias, a chunk of output columns at a time: (columns, [N, columns])."""
        rows, width = weight.shape
        step = max(1, CHUNK_BYTES // (4 * width))
        for first in range(0, rows, step):
            chunk = slice(first, min(first + step, rows))
            part = x @ self._load(weight, chunk).T
            yield chunk, part if bias is None else part + self._load(bias, chunk)

    def _load(self, tensor: LazyTensor, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a tensor, rounded to `weights`, in float32 on the device."""
        values = tensor.read(rows)
        if self.weights is not None:
            values = values.to(self.weights)
        return values.to(self.device, torch.float32)
