"""Quantize a model layer by layer, each matrix for the inputs it will really meet.

Two copies of the calibration text go through the layers side by side: as the source computes it,
and through the layers quantized so far. A matrix is then not asked to stay as it is but to bring
its output back to the source's: with x the source's inputs and y those it will get, the best there
is without rounding is W E[x y^T] E[y y^T]^-1, and that is rounded with error feedback under
E[y y^T] (feedback.py). Biases take up what is left of the mean. The embedding has no inputs; its
rows are rounded under the Fisher matrix of its output.

Each matrix is gated: on windows that took part in nothing else its output has to be nearer to the
source's than with the plain search, or the plain search is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgconvert.calibrate.gptq import quantize
from cgconvert.calibrate.statistics import AcceptanceTest, Fisher, Moments, Positions
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.io.progress import Progress
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU, floats
from cgconvert.model.forward import attend, gelu, norm, rotary
from cgconvert.model.tensor import LazyTensor

__all__ = ["Calibration", "Quantized", "State"]

WINDOWS = 16
"""Windows of text that go through a layer at once."""

KEPT_BYTES = 1 << 30
"""What a layer's inner states may take; of a larger model they are computed twice."""

ROWS = 16384
"""Of a matrix that are fitted at once: they do not meet, and the head has many."""


@dataclass(frozen=True)
class Quantized:
    """What became of a part of the model.

    `stored` is uint8 [rows, bytes of a row] of a matrix, float32 of a bias and of a matrix that
    stays as it is. `fitted` is False where the plain search was better on the windows held out.
    """

    stored: torch.Tensor
    fitted: bool = True


@dataclass
class State:
    """The hidden states before a layer, float32 [windows, T, n_embd]: the source's and ours."""

    exact: torch.Tensor
    ours: torch.Tensor


class Calibration:
    """`types` gives the block type of each matrix, by part for the ends ("wte", "head") and by
    (layer, part) for the others; those that are missing stay as they are.

    `fitted` and `held_out` are ids, int64 [windows, T]; `sweeps` see feedback.quantize. All is
    computed on `device`, where what is given and returned lies too.
    """

    def __init__(
        self,
        decoder: Decoder,
        types: Mapping[str | tuple[int, str], BlockCodec],
        fitted: torch.Tensor,
        held_out: torch.Tensor,
        sweeps: int,
        progress: Progress,
        device: torch.device = CPU,
    ) -> None:
        self.decoder, self.types, self.progress = decoder, types, progress
        self.sweeps, self.device = sweeps, device
        self.ids = torch.cat([fitted, held_out]).to(device)
        self.fitted = len(fitted)
        self.sin, self.cos = rotary(decoder.geometry, self.ids.shape[1], device)

    def embedding(self, fisher: torch.Tensor, held_out: torch.Tensor) -> tuple[Quantized, State]:
        """The embedding, under the Fisher matrix of its output: float64 [n_embd, n_embd] each."""
        weight = self._read(self.decoder.wte)
        fit = Moments(len(fisher), device=self.device)
        fit.inputs, fit.cross = fisher, fisher.clone()
        done, values = self._fit("wte", weight, fit, Fisher(held_out))
        return done, State(weight[self.ids], values[self.ids])

    def layer(self, i: int, state: State) -> dict[str, Quantized]:
        """Every part of layer `i` that changes; `state` moves on to the next."""
        block = self.decoder.layers[i]
        w = {part: self._read(tensor) for part, tensor in vars(block).items()}
        found: dict[str, Quantized] = {}
        q = dict(w)

        def settle(part: str, fit: Moments, gate: AcceptanceTest) -> None:
            found[part], q[part] = self._fit((i, part), w[part], fit, gate)

        fit, gate = self._moments(
            (self._normed(w, state.exact[s]), self._normed(q, state.ours[s])) for s in self._parts()
        )
        for part in ("q", "k", "v", "fc_in"):
            settle(part, fit, gate)
        bias = w["fc_in_bias"] + fit.bias(w["fc_in"], q["fc_in"])
        found["fc_in_bias"] = Quantized(bias)
        q["fc_in_bias"] = bias
        del fit, gate  # of a large model each of these is gigabytes
        contexts = {name: torch.empty_like(x) for name, x in vars(state).items()}
        for s in self._parts():
            contexts["exact"][s] = self._context(w, state.exact[s])
            contexts["ours"][s] = self._context(q, state.ours[s])
        for part in "qkv":
            del w[part], q[part]
        pairs = ((contexts["exact"][s], contexts["ours"][s]) for s in self._parts())
        settle("o", *self._moments(pairs))

        kept: list[torch.Tensor] = []
        keeps = 4 * self.ids.numel() * len(w["fc_in"]) <= KEPT_BYTES

        def inner() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            """The layer is as wide inside as four of its outputs: those are what is summed."""
            for s in self._parts():
                output = self._inner(w, state.exact[s]) @ w["fc_out"].t()
                attended = contexts["exact"][s] @ w["o"].t()
                state.exact[s] += attended + output + w["fc_out_bias"]
                ours = self._inner(q, state.ours[s])
                if keeps:
                    kept.append(ours)
                yield output, ours

        moments = self._moments(inner(), rows=len(w["fc_out"]))
        del contexts["exact"], w["fc_in"], q["fc_in"]
        settle("fc_out", *moments)
        del moments
        q["fc_in"] = self._values((i, "fc_in"), found["fc_in"], block.fc_in.shape)
        for s in self._parts():
            ours = kept.pop(0) if kept else self._inner(q, state.ours[s])
            output = ours @ q["fc_out"].t()
            state.ours[s] += contexts["ours"][s] @ q["o"].t() + output + w["fc_out_bias"]
        missing = (state.exact[: self.fitted] - state.ours[: self.fitted]).mean((0, 1))
        found["fc_out_bias"] = Quantized(w["fc_out_bias"] + missing)
        state.ours += missing
        return found

    def head(self, state: State) -> dict[str, Quantized]:
        d, eps = self.decoder, self.decoder.geometry.layer_norm_epsilon
        scale, shift = self._read(d.ln_f_weight), self._read(d.ln_f_bias)
        fit, gate = self._moments(
            (norm(state.exact[s], scale, shift, eps), norm(state.ours[s], scale, shift, eps))
            for s in self._parts()
        )
        weight = self._read(d.head)
        done, values = self._fit("head", weight, fit, gate)
        bias = self._read(d.head_bias) + fit.bias(weight, values)
        return {"head": done, "head_bias": Quantized(bias)}

    def _fit(
        self, name: str | tuple[int, str], weight: torch.Tensor, fit: Moments, gate: AcceptanceTest
    ) -> tuple[Quantized, torch.Tensor]:
        """What is stored, and the float32 matrix that it stands for."""
        codec = self.types.get(name)
        if codec is None:
            return Quantized(weight), weight
        plain: list[torch.Tensor] = []
        coded: list[torch.Tensor] = []
        errors = [0.0, 0.0]
        for rows in weight.split(len(weight) if fit.outputs else ROWS):
            plain += codec.encode(rows)
            coded.append(quantize(fit.target(rows), fit.hessian, codec, self.sweeps))
            values = [codec.decode(one, rows.shape) for one in (plain[-1], coded[-1])]
            errors = [a + b for a, b in zip(errors, gate.errors(rows, values), strict=True)]
        fitted = errors[1] <= errors[0]
        chosen = torch.cat(coded if fitted else plain)
        done = Quantized(chosen, fitted)
        return done, self._values(name, done, weight.shape)

    def _values(
        self, name: str | tuple[int, str], done: Quantized, shape: Sequence[int]
    ) -> torch.Tensor:
        codec = self.types.get(name)
        return done.stored if codec is None else codec.decode(done.stored, shape)

    def _read(self, tensor: LazyTensor) -> torch.Tensor:
        return floats(tensor, self.device)

    def _parts(self) -> Iterator[slice]:
        for first in range(0, len(self.ids), WINDOWS):
            yield slice(first, first + WINDOWS)

    def _moments(
        self, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], rows: int | None = None
    ) -> tuple[Moments, Positions]:
        """Of the fitted windows, and what is held out; `rows` see Moments."""
        fit, gate = None, Positions(rows is not None)
        for part, pair in zip(self._parts(), pairs, strict=True):
            edge = max(0, min(len(pair[0]), self.fitted - part.start))
            fit = fit or Moments(pair[1].shape[-1], rows, self.device)
            if edge:
                fit.add(*(some[:edge].flatten(0, 1) for some in pair))
            if edge < len(pair[0]):
                exact, ours = (some[edge:].flatten(0, 1) for some in pair)
                gate.pairs.append((exact, ours))
        assert fit is not None
        return fit, gate

    def _normed(self, w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return norm(x, w["ln_weight"], w["ln_bias"], self.decoder.geometry.layer_norm_epsilon)

    def _context(self, w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        normed, heads = self._normed(w, x), self.decoder.geometry.n_head
        q, k, v = ((normed @ w[part].t()).unflatten(-1, (heads, -1)) for part in "qkv")
        return attend(q, k, v, self.sin, self.cos).flatten(-2)

    def _inner(self, w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return gelu(self._normed(w, x) @ w["fc_in"].t() + w["fc_in_bias"])
