"""The reference: CodeGen's own mathematics over a checkpoint's weights, read as it goes.

It is independent of all that it judges. It works in CodeGen's interleaved rotary form and shares
nothing with the writers but the lazy tensors, so a wrong row order cannot be wrong on both sides;
for the same reason it has a layer of its own, apart from the one that calibration uses. All
sequences go through the model at once, and only a chunk of a matrix's rows is in memory at a time:
memory grows with the number of positions and not with the size of the model, and the file is read
once.

`CachedReference` keeps outputs on disk: whoever verifies several artefacts of one source needs the
same ones again, and at 16B a pass takes minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cgconvert.errors import InputError
from cgconvert.io.cache import key_of, read_entry, write_entry
from cgconvert.io.progress import Amount, Progress, SilentProgress
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder, Layer
from cgconvert.model.device import torch_device
from cgconvert.model.dtype import FLOAT16, DType
from cgconvert.model.forward import attend, gelu, norm, rotary
from cgconvert.model.tensor import LazyTensor
from cgconvert.verification.metrics import ARRAYS, TOP, Distribution

__all__ = ["CachedReference", "Reference"]

STEP = "running the reference"
"""What progress calls a pass over the layers."""

CHUNK_BYTES = 128 << 20
"""How many bytes of a matrix are in memory at once, as float32."""

POSITIONS_PER_CHUNK = 1024
"""Positions whose logits are in memory at once: 210 MB at CodeGen's vocabulary."""


class Reference:
    """A decoder that runs layer by layer over whole sequences, without a cache.

    It computes in float32, on a GPU too: weights are streamed, so that costs no memory, and the
    error of float16 is what is to be measured (transformers, modeling_codegen.py:
    CodeGenAttention._attn has float32 scores).

    Args:
        decoder: The model.
        device: One of model.device.DEVICES; gpu is the CPU where torch finds no GPU.
        weight_dtype: The type that weights are rounded to before they are used; None leaves them
            as stored.
        progress: Gets a step for each pass and an advance for each layer.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        device: str = "cpu",
        weight_dtype: DType | None = FLOAT16,
        progress: Progress | None = None,
    ) -> None:
        self.decoder = decoder
        # Where llama.cpp has a GPU, as by Vulkan, torch may have none.
        self.device = torch_device(device, cpu_without_gpu=True)
        self.weight_dtype = weight_dtype
        self.progress = progress or SilentProgress()

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Compute the logits after every token: float32 [len(sequence), vocab_size] per sequence.

        Raises InputError for a sequence that is empty or longer than the context, and for an id
        that the model has no row for.
        """
        if not sequences:
            return []
        with torch.inference_mode():
            logits = self._head(self._forward(sequences)).numpy()
        return np.split(logits, np.cumsum([len(s) for s in sequences])[:-1])

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        tokenizer_size: int,
        first_positions: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """Compute the same logits as `logits`, reduced to a Distribution for each sequence.

        Args:
            sequences: The ids of each sequence.
            tokenizer_size: The number of ids that the tokenizer has.
            first_positions: The position from which on each sequence's logits are returned; 0 by
                default.

        Raises:
            InputError: See `logits`.
        """
        if not sequences:
            return []
        first_positions = first_positions or [0] * len(sequences)
        pairs = list(zip(sequences, first_positions, strict=True))
        ends = np.cumsum([len(s) for s in sequences])
        positions = np.concatenate(
            [
                np.arange(end - len(s) + first, end)
                for end, (s, first) in zip(ends, pairs, strict=True)
            ]
        )
        next_ids = np.concatenate([[*s[first + 1 :], -1] for s, first in pairs])
        parts = []
        with torch.inference_mode():
            hidden = self._forward(sequences)[torch.from_numpy(positions).to(self.device)]
            for start in range(0, len(positions), POSITIONS_PER_CHUNK):
                chunk = slice(start, start + POSITIONS_PER_CHUNK)
                logits = self._head(hidden[chunk]).numpy()
                parts.append(Distribution.of(logits, next_ids[chunk], tokenizer_size))
        joined = Distribution.joined(parts)
        edges = np.cumsum([0, *(len(s) - first for s, first in pairs)]).tolist()
        return [joined[begin:end] for begin, end in itertools.pairwise(edges)]

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
        """Run the layers; return the head's input, float32 [tokens of all sequences, n_embd]."""
        self._check(sequences)
        d = self.decoder
        x = self._embed(np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]))
        lengths = [len(s) for s in sequences]
        sin, cos = rotary(d.geometry, max(lengths), self.device)
        self.progress.step(STEP, Amount(len(d.layers), "layers"))
        for layer in d.layers:
            x = self._layer(x, layer, lengths, sin, cos)
            self.progress.advance(1)
        return self._norm(x, d.ln_f_weight, d.ln_f_bias)

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the head; return logits on the CPU, float32 [positions, vocab_size]."""
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
        """Compute x + attn(ln(x)) + mlp(ln(x)); x is float32 [tokens of all sequences, n_embd].

        `lengths` are the numbers of tokens of the sequences, which do not attend to each other.
        """
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
        """Read the embeddings of `ids`, float32 [len(ids), n_embd]; each row is read once."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = self._load(self.decoder.wte.rows(unique))
        return rows[torch.from_numpy(inverse).to(self.device)]

    def _norm(self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor) -> torch.Tensor:
        """Apply a layer norm."""
        eps = self.decoder.geometry.layer_norm_epsilon
        return norm(x, self._load(weight), self._load(bias), eps)

    def _linear(
        self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor | None = None
    ) -> torch.Tensor:
        """Compute x @ weight.T + bias, float32 [N, rows of `weight`]."""
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        for rows, part in self._linear_parts(x, weight, bias):
            out[:, rows] = part
        return out

    def _linear_parts(
        self, x: torch.Tensor, weight: LazyTensor, bias: LazyTensor | None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield x @ weight.T + bias in chunks of columns: (columns, float32 [N, columns])."""
        rows, width = weight.shape
        step = max(1, CHUNK_BYTES // (4 * width))
        for first in range(0, rows, step):
            chunk = slice(first, min(first + step, rows))
            part = x @ self._load(weight, chunk).T
            yield chunk, part if bias is None else part + self._load(bias, chunk)

    def _load(self, tensor: LazyTensor, rows: slice = slice(None)) -> torch.Tensor:
        """Read rows of a tensor, rounded to `weight_dtype`, as float32 on the device."""
        values = tensor.read(rows)
        if self.weight_dtype is not None:
            values = values.to(self.weight_dtype.torch_dtype)
        return values.to(self.device, torch.float32)


KIND = "reference"
"""What the cache calls the outputs."""

VERSION = 2
"""Raise this number if the reference's mathematics change, or the fields of a Distribution."""


class CachedReference:
    """A reference whose outputs are kept in cgconvert's cache, one entry for each sequence.

    An entry's name is a hash of everything that the output depends on: the source's SHA-256, how it
    was read (geometry, groups of qkv), the type that weights are rounded to, the device, torch's
    version, the tokens, and which positions and logits are kept. What is not there as this user
    wrote it is computed again.

    Args:
        reference: Computes what is not in the cache.
        source_sha256: The digest of the files that the reference's weights come from.
    """

    def __init__(self, reference: Reference, source_sha256: str) -> None:
        self.reference, self.source_sha256 = reference, source_sha256
        self._identity = [
            VERSION, TOP, source_sha256, reference.decoder.geometry.as_dict(),
            str(reference.weight_dtype), reference.device.type, torch.__version__,
        ]  # fmt: skip

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        tokenizer_size: int,
        first_positions: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """See Reference.distributions. Sequences that are not cached are computed in one pass."""
        first_positions = first_positions or [0] * len(sequences)
        names = [
            self._name(sequence, tokenizer_size, first)
            for sequence, first in zip(sequences, first_positions, strict=True)
        ]
        loaded = {i: _load(name) for i, name in enumerate(names)}
        outputs = {i: output for i, output in loaded.items() if output is not None}
        missing = [i for i in range(len(names)) if i not in outputs]
        if not missing:  # a step that is complete at once, so that the count of steps stays true
            self.reference.progress.step(STEP, 1)
            self.reference.progress.advance(1)
        computed = self.reference.distributions(
            [sequences[i] for i in missing], tokenizer_size, [first_positions[i] for i in missing]
        )
        for i, distribution in zip(missing, computed, strict=True):
            outputs[i] = distribution
            _save(names[i], distribution)
        return [outputs[i] for i in range(len(names))]

    def _name(self, sequence: Sequence[int], tokenizer_size: int, first_position: int) -> str:
        """The name of the entry with one sequence's output."""
        identity = [*self._identity, tokenizer_size, first_position, list(map(int, sequence))]
        return f"{key_of(identity)}.safetensors"


def _save(name: str, distribution: Distribution) -> None:
    """Write an output, the whole entry or nothing."""
    arrays = {name: np.ascontiguousarray(getattr(distribution, name)) for name in ARRAYS}
    arrays["sizes"] = np.array([distribution.tokenizer_size, distribution.vocab_size])
    write_entry(KIND, name, save(arrays))


def _load(name: str) -> Distribution | None:
    """Read an output; None if its entry is absent or damaged."""
    data = read_entry(KIND, name)
    if data is None:
        return None
    try:
        arrays = load(data)
        tokenizer_size, vocab_size = arrays.pop("sizes").tolist()
        return Distribution(**arrays, tokenizer_size=tokenizer_size, vocab_size=vocab_size)
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
