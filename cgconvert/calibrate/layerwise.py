"""Quantize a model layer by layer, each matrix for the inputs it will really meet.

Two copies of the calibration set go through the layers side by side: through the source, and
through the layers quantized so far. So a matrix is not made to stay as it is but to bring its
outputs back to the source's: with x the source's inputs and y those the quantized matrix gets, the
best matrix without rounding is W E[x y^T] E[y y^T]^-1. That is rounded by GPTQ under E[y y^T]
(gptq.py). Biases take up what is left of the mean. The embedding has no inputs; its rows are
rounded under the Fisher matrix of its output.

Each matrix is put to a test: on the validation windows, which took part in nothing else, its output
has to be at least as near to the source's as with plain rounding, or plain rounding is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgconvert.calibrate.gptq import quantize_matrix
from cgconvert.calibrate.statistics import (
    AcceptanceTest,
    FisherTest,
    InputStatistics,
    ValidationPositions,
)
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU, read_float32
from cgconvert.model.forward import (
    Weights,
    attention_context,
    layer_weights,
    mlp_activations,
    norm,
    norm_layer_input,
    rotary,
)
from cgconvert.model.matrix_id import MatrixId

__all__ = ["HiddenStates", "LayerwiseCalibration", "QuantizedPart"]

BATCH = 16
"""Windows that go through a layer at once."""

KEPT_BYTES = 1 << 30
"""Memory for the MLP activations of a layer; those of a larger model are computed twice."""

ROWS = 16384
"""Rows that are fitted at once. Rows are independent, and the head has a row for each token."""


@dataclass(frozen=True)
class QuantizedPart:
    """What replaces a tensor of the source.

    `stored` is uint8 [rows, bytes of a row] of a quantized matrix, float32 of a bias and of a
    matrix that stays as it is. `fitted` is False where plain rounding was better on the validation
    windows.
    """

    stored: torch.Tensor
    fitted: bool = True


@dataclass
class HiddenStates:
    """The hidden states before a layer in both models, float32 [windows, T, n_embd] each."""

    source: torch.Tensor
    quantized: torch.Tensor


class LayerwiseCalibration:
    """Quantizes the embedding, then the layers in order, then the head.

    Args:
        decoder: The source.
        types: The block type of each matrix; a matrix without one stays as it is.
        train: Token ids that weights are fitted to, int64 [windows, T].
        validation: Ids that only judge, int64 [windows, T].
        sweeps: Of coordinate descent, see gptq.quantize_matrix.
        device: Computes everything; tensors given to the methods and returned by them lie there.
    """

    def __init__(
        self,
        decoder: Decoder,
        types: Mapping[MatrixId, BlockCodec],
        train: torch.Tensor,
        validation: torch.Tensor,
        sweeps: int,
        device: torch.device = CPU,
    ) -> None:
        self.decoder, self.types = decoder, types
        self.sweeps, self.device = sweeps, device
        self.ids = torch.cat([train, validation]).to(device)
        self.train_count = len(train)
        self.tables = rotary(decoder.geometry, self.ids.shape[1], device)

    def embedding(
        self, fisher: torch.Tensor, validation_fisher: torch.Tensor
    ) -> tuple[QuantizedPart, HiddenStates]:
        """Quantize the embedding under the Fisher matrices of its output on the training and on
        validation windows, float64 [n_embd, n_embd] each; also the hidden states after it."""
        weight = read_float32(self.decoder.wte, self.device)
        statistics = InputStatistics(len(fisher), device=self.device)
        statistics.moments, statistics.cross = fisher, fisher.clone()
        part, values = self._fit(MatrixId("wte"), weight, statistics, FisherTest(validation_fisher))
        return part, HiddenStates(weight[self.ids], values[self.ids])

    def layer(self, number: int, states: HiddenStates) -> dict[str, QuantizedPart]:
        """Quantize layer `number`: its tensors that change. `states` move on to the next layer."""
        g = self.decoder.geometry
        w = layer_weights(self.decoder, number, self.device)
        q = dict(w)  # the quantized layer; what is not fitted yet is the source's
        parts: dict[str, QuantizedPart] = {}

        def fit(part: str, statistics: InputStatistics, test: AcceptanceTest) -> None:
            parts[part], q[part] = self._fit(MatrixId(part, number), w[part], statistics, test)

        statistics, test = self._statistics(
            (
                norm_layer_input(g, w, states.source[batch]),
                norm_layer_input(g, q, states.quantized[batch]),
            )
            for batch in self._batches()
        )
        for part in ("q", "k", "v", "fc_in"):
            fit(part, statistics, test)
        bias = w["fc_in_bias"] + statistics.bias_change(w["fc_in"], q["fc_in"])
        parts["fc_in_bias"] = QuantizedPart(bias)
        q["fc_in_bias"] = bias
        del statistics, test  # of a large model each of these is gigabytes

        contexts = HiddenStates(torch.empty_like(states.source), torch.empty_like(states.quantized))
        for batch in self._batches():
            contexts.source[batch] = self._context(w, states.source[batch])
            contexts.quantized[batch] = self._context(q, states.quantized[batch])
        for part in "qkv":
            del w[part], q[part]
        fit(
            "o",
            *self._statistics(
                (contexts.source[batch], contexts.quantized[batch]) for batch in self._batches()
            ),
        )

        kept: list[torch.Tensor] = []
        keeps = 4 * self.ids.numel() * len(w["fc_in"]) <= KEPT_BYTES

        def outputs_and_inputs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            """fc_out's inputs are four times as wide as its outputs, so the source's are not kept;
            its hidden states move on to the next layer here."""
            for batch in self._batches():
                output = self._activations(w, states.source[batch]) @ w["fc_out"].t()
                attention = contexts.source[batch] @ w["o"].t()
                states.source[batch] += attention + output + w["fc_out_bias"]
                activations = self._activations(q, states.quantized[batch])
                if keeps:
                    kept.append(activations)
                yield output, activations

        fc_out = self._statistics(outputs_and_inputs(), rows=len(w["fc_out"]))
        fc_in_shape = w["fc_in"].shape
        contexts.source = torch.empty(0)
        del w["fc_in"], q["fc_in"]
        fit("fc_out", *fc_out)
        del fc_out
        q["fc_in"] = self._values(MatrixId("fc_in", number), parts["fc_in"], fc_in_shape)
        for batch in self._batches():
            activations = kept.pop(0) if kept else self._activations(q, states.quantized[batch])
            output = activations @ q["fc_out"].t()
            attention = contexts.quantized[batch] @ q["o"].t()
            states.quantized[batch] += attention + output + w["fc_out_bias"]
        train = slice(self.train_count)
        missing = (states.source[train] - states.quantized[train]).mean((0, 1))
        parts["fc_out_bias"] = QuantizedPart(w["fc_out_bias"] + missing)
        states.quantized += missing
        return parts

    def head(self, states: HiddenStates) -> dict[str, QuantizedPart]:
        """Quantize the head for the hidden states after the last layer."""
        d, epsilon = self.decoder, self.decoder.geometry.layer_norm_epsilon
        scale, shift = (read_float32(t, self.device) for t in (d.ln_f_weight, d.ln_f_bias))
        statistics, test = self._statistics(
            (
                norm(states.source[batch], scale, shift, epsilon),
                norm(states.quantized[batch], scale, shift, epsilon),
            )
            for batch in self._batches()
        )
        weight = read_float32(d.head, self.device)
        part, values = self._fit(MatrixId("head"), weight, statistics, test)
        bias = read_float32(d.head_bias, self.device) + statistics.bias_change(weight, values)
        return {"head": part, "head_bias": QuantizedPart(bias)}

    def _fit(
        self,
        name: MatrixId,
        weight: torch.Tensor,
        statistics: InputStatistics,
        test: AcceptanceTest,
    ) -> tuple[QuantizedPart, torch.Tensor]:
        """Quantize a matrix: what is stored, and the float32 matrix that it decodes to."""
        codec = self.types.get(name)
        if codec is None:
            return QuantizedPart(weight), weight
        plain: list[torch.Tensor] = []
        fitted: list[torch.Tensor] = []
        errors = [0.0, 0.0]
        for rows in weight.split(len(weight) if statistics.sums_outputs else ROWS):
            plain.append(codec.encode_rows(rows))
            target = statistics.target(rows)
            fitted.append(quantize_matrix(target, statistics.hessian, codec, self.sweeps))
            values = [codec.decode_rows(stored, rows.shape) for stored in (plain[-1], fitted[-1])]
            errors = [a + b for a, b in zip(errors, test.errors(rows, values), strict=True)]
        accepted = errors[1] <= errors[0]
        part = QuantizedPart(torch.cat(fitted if accepted else plain), accepted)
        return part, self._values(name, part, weight.shape)

    def _values(self, name: MatrixId, part: QuantizedPart, shape: Sequence[int]) -> torch.Tensor:
        codec = self.types.get(name)
        return part.stored if codec is None else codec.decode_rows(part.stored, shape)

    def _context(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        g = self.decoder.geometry
        return attention_context(g, weights, norm_layer_input(g, weights, x), self.tables)

    def _activations(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        return mlp_activations(weights, norm_layer_input(self.decoder.geometry, weights, x))

    def _batches(self) -> Iterator[slice]:
        for first in range(0, len(self.ids), BATCH):
            yield slice(first, first + BATCH)

    def _statistics(
        self, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], rows: int | None = None
    ) -> tuple[InputStatistics, ValidationPositions]:
        """Split batches of (source, quantized) into statistics of the training windows and
        validation positions; `rows` as in InputStatistics."""
        statistics, validation = None, ValidationPositions(rows is not None)
        for batch, pair in zip(self._batches(), pairs, strict=True):
            edge = max(0, min(len(pair[0]), self.train_count - batch.start))
            statistics = statistics or InputStatistics(pair[1].shape[-1], rows, self.device)
            if edge:
                statistics.add(*(states[:edge].flatten(0, 1) for states in pair))
            if edge < len(pair[0]):
                source, quantized = (states[edge:].flatten(0, 1) for states in pair)
                validation.pairs.append((source, quantized))
        assert statistics is not None
        return statistics, validation
