"""Quantize a model layer by layer, each matrix for the inputs that it gets in the quantized model.

The hidden states of the calibration set go through the layers twice: through those of the source,
and through those quantized so far. Let x be the inputs of a matrix W in the source and y its inputs
in the quantized model. Then W itself is not what should be approximated, because y differs from x:
the matrix whose outputs for y are nearest to W x is W E[x y^T] E[y y^T]^-1. This target is rounded
by GPTQ with the Hessian E[y y^T] (gptq.py), and biases correct the remaining error of the mean. The
embedding has no inputs; its rows are rounded by GPTQ with the Fisher matrix of its output.

A matrix fitted in this way is accepted only if, on the validation windows, its outputs are at least
as near to the source's as those of the matrix that is encoded directly. Otherwise the latter is
used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cgconvert.calibrate.gptq import quantize_matrix
from cgconvert.calibrate.statistics import (
    AcceptanceTest,
    FisherTest,
    InputStatistics,
    ValidationPositions,
)
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import float64_device, read_float32, torch_device
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
from cgconvert.write.promise import PROMISE_TOKENS, PROMISE_WINDOWS, Promise

__all__ = ["HiddenStates", "LayerwiseCalibration", "QuantizedPart"]

BATCH = 16
"""The number of windows that go through a layer at once."""

ACTIVATION_BYTES = 1 << 30
"""The memory for a layer's MLP activations between two uses; larger ones are computed twice."""

ROWS = 16384
"""The number of rows that are fitted at once. It bounds memory, because the head has a row for each
token of the vocabulary; rows are independent of each other."""


@dataclass(frozen=True)
class QuantizedPart:
    """A tensor of the quantized model.

    Attributes:
        stored: The packed rows uint8 [rows, bytes of a row] of a quantized matrix; the float32
            values of a bias or of a matrix that is not quantized.
        is_fitted: False for a matrix that is encoded directly, because the fitted one was worse on
            the validation windows.
    """

    stored: torch.Tensor
    is_fitted: bool = True


@dataclass
class HiddenStates:
    """The hidden states before a layer.

    Attributes:
        source: Those in the source, float32 [windows, T, n_embd].
        quantized: Those in the quantized model, float32 [windows, T, n_embd].
    """

    source: torch.Tensor
    quantized: torch.Tensor


class LayerwiseCalibration:
    """The quantization of the embedding, then of the layers in order, then of the head.

    Args:
        decoder: The source.
        types: The block type of each matrix; a matrix without a type is not quantized.
        train: The token ids that weights are fitted to, int64 [windows, T].
        validation: The token ids that decide whether a fit is accepted, int64 [windows, T].
        sweeps: The number of sweeps of coordinate descent, see gptq.quantize_matrix.
        device: The device of all computations, and of the tensors in arguments and results.
    """

    def __init__(
        self,
        decoder: Decoder,
        types: Mapping[MatrixId, BlockCodec],
        train: torch.Tensor,
        validation: torch.Tensor,
        sweeps: int,
        device: torch.device | None = None,
    ) -> None:
        self.decoder, self.types = decoder, types
        self.sweeps, self.device = sweeps, device or torch_device("cpu")
        self.ids = torch.cat([train, validation]).to(self.device)
        self.train_count = len(train)
        self.tables = rotary(decoder.geometry, self.ids.shape[1], self.device)

    def embedding(
        self, fisher: torch.Tensor, validation_fisher: torch.Tensor
    ) -> tuple[QuantizedPart, HiddenStates]:
        """Quantize the embedding, and compute the hidden states before the first layer.

        Args:
            fisher: The Fisher matrix of the embedding's output on training windows, float64
                [n_embd, n_embd].
            validation_fisher: The same on validation windows.
        """
        weight = read_float32(self.decoder.wte, self.device)
        statistics = InputStatistics(len(fisher), device=self.device)
        statistics.moments, statistics.cross = fisher, fisher.clone()
        part, values = self._fit(MatrixId("wte"), weight, statistics, FisherTest(validation_fisher))
        return part, HiddenStates(weight[self.ids], values[self.ids])

    def layer(self, number: int, states: HiddenStates) -> dict[str, QuantizedPart]:
        """Quantize a layer.

        Args:
            number: The number of the layer.
            states: The hidden states before the layer. They are replaced by those after it.

        Returns:
            The tensors of the layer that change, by their fields in the decoder's layer.
        """
        g = self.decoder.geometry
        source = layer_weights(self.decoder, number, self.device)
        quantized = dict(source)  # a matrix that is not quantized yet is the source's
        parts: dict[str, QuantizedPart] = {}

        def fit(part: str, statistics: InputStatistics, test: AcceptanceTest) -> None:
            name = MatrixId(part, number)
            parts[part], quantized[part] = self._fit(name, source[part], statistics, test)

        statistics, test = self._statistics(
            (
                norm_layer_input(g, source, states.source[batch]),
                norm_layer_input(g, quantized, states.quantized[batch]),
            )
            for batch in self._batches()
        )
        for part in ("q", "k", "v", "fc_in"):
            fit(part, statistics, test)
        bias_change = statistics.bias_change(source["fc_in"], quantized["fc_in"])
        quantized["fc_in_bias"] = source["fc_in_bias"] + bias_change
        parts["fc_in_bias"] = QuantizedPart(quantized["fc_in_bias"])
        del statistics, test  # for a large model each takes gigabytes

        contexts = HiddenStates(torch.empty_like(states.source), torch.empty_like(states.quantized))
        for batch in self._batches():
            contexts.source[batch] = self._context(source, states.source[batch])
            contexts.quantized[batch] = self._context(quantized, states.quantized[batch])
        for part in "qkv":
            del source[part], quantized[part]
        fit(
            "o",
            *self._statistics(
                (contexts.source[batch], contexts.quantized[batch]) for batch in self._batches()
            ),
        )

        stored_activations: list[torch.Tensor] = []
        can_store = 4 * self.ids.numel() * len(source["fc_in"]) <= ACTIVATION_BYTES

        def fc_out_pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            """Yield fc_out's outputs in the source and its inputs in the quantized model.

            Outputs are a quarter as wide as inputs, so their statistics are smaller. The hidden
            states of the source are replaced by those after the layer.
            """
            for batch in self._batches():
                output = self._activations(source, states.source[batch]) @ source["fc_out"].t()
                attention = contexts.source[batch] @ source["o"].t()
                states.source[batch] += attention + output + source["fc_out_bias"]
                activations = self._activations(quantized, states.quantized[batch])
                if can_store:
                    stored_activations.append(activations)
                yield output, activations

        fc_out_statistics = self._statistics(fc_out_pairs(), rows=len(source["fc_out"]))
        fc_in_shape = source["fc_in"].shape
        contexts.source = torch.empty(0)
        del source["fc_in"], quantized["fc_in"]
        fit("fc_out", *fc_out_statistics)
        del fc_out_statistics
        fc_in = self._values(MatrixId("fc_in", number), parts["fc_in"], fc_in_shape)
        quantized["fc_in"] = fc_in
        for batch in self._batches():
            if stored_activations:
                activations = stored_activations.pop(0)
            else:
                activations = self._activations(quantized, states.quantized[batch])
            output = activations @ quantized["fc_out"].t()
            attention = contexts.quantized[batch] @ quantized["o"].t()
            states.quantized[batch] += attention + output + source["fc_out_bias"]
        train = slice(self.train_count)
        mean_error = (states.source[train] - states.quantized[train]).mean((0, 1))
        parts["fc_out_bias"] = QuantizedPart(source["fc_out_bias"] + mean_error)
        states.quantized += mean_error
        return parts

    def head(self, states: HiddenStates) -> dict[str, QuantizedPart]:
        """Quantize the head; `states` are the hidden states after the last layer.

        Returns the head and its bias, by their fields in the decoder.
        """
        decoder, epsilon = self.decoder, self.decoder.geometry.layer_norm_epsilon
        scale = read_float32(decoder.ln_f_weight, self.device)
        shift = read_float32(decoder.ln_f_bias, self.device)
        statistics, test = self._statistics(
            (
                norm(states.source[batch], scale, shift, epsilon),
                norm(states.quantized[batch], scale, shift, epsilon),
            )
            for batch in self._batches()
        )
        weight = read_float32(decoder.head, self.device)
        part, values = self._fit(MatrixId("head"), weight, statistics, test)
        bias = read_float32(decoder.head_bias, self.device)
        bias = bias + statistics.bias_change(weight, values)
        return {"head": part, "head_bias": QuantizedPart(bias)}

    def promise(
        self, head: Mapping[str, QuantizedPart], states: HiddenStates, vocab_size: int
    ) -> Promise:
        """Measure the loss on the first tokens of the first validation windows.

        Args:
            head: The result of `head`.
            states: The hidden states after the last layer.
            vocab_size: The number of ids that the tokenizer has; only these count.
        """
        decoder, epsilon = self.decoder, self.decoder.geometry.layer_norm_epsilon
        read = partial(read_float32, device=self.device)
        scale, shift = read(decoder.ln_f_weight), read(decoder.ln_f_bias)
        weight = read(decoder.head)
        models = (
            (states.source, weight, read(decoder.head_bias)),
            (
                states.quantized,
                self._values(MatrixId("head"), head["head"], weight.shape),
                head["head_bias"].stored.to(self.device),
            ),
        )
        windows = slice(self.train_count, self.train_count + PROMISE_WINDOWS)
        ids, divergences = self.ids[windows, :PROMISE_TOKENS], []
        for window in range(self.train_count, self.train_count + len(ids)):
            log_p, log_q = (
                (norm(x[window, :PROMISE_TOKENS], scale, shift, epsilon) @ matrix[:vocab_size].t())
                .add_(bias[:vocab_size])
                .to(float64_device(self.device))
                .double()
                .log_softmax(-1)
                for x, matrix, bias in models
            )
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
        kl = torch.cat(divergences)
        standard_error = float(kl.std()) / len(kl) ** 0.5
        return Promise(float(kl.mean()), standard_error, tuple(map(tuple, ids.cpu().tolist())))

    def _fit(
        self,
        name: MatrixId,
        weight: torch.Tensor,
        statistics: InputStatistics,
        test: AcceptanceTest,
    ) -> tuple[QuantizedPart, torch.Tensor]:
        """Quantize a matrix: fit it to `statistics`, and accept the fit only if `test` says so.

        Returns the part, and the float32 matrix that it decodes to. A matrix without a type is
        returned as it is.
        """
        codec = self.types.get(name)
        if codec is None:
            return QuantizedPart(weight), weight
        direct_parts: list[torch.Tensor] = []
        fitted_parts: list[torch.Tensor] = []
        direct_error = fitted_error = 0.0
        for rows in weight.split(len(weight) if statistics.has_outputs else ROWS):
            direct_parts.append(codec.encode_rows(rows))
            target = statistics.target(rows)
            fitted_parts.append(quantize_matrix(target, statistics.hessian, codec, self.sweeps))
            packed = (direct_parts[-1], fitted_parts[-1])
            errors = test.errors(rows, [codec.decode_rows(part, rows.shape) for part in packed])
            direct_error += errors[0]
            fitted_error += errors[1]
        is_fitted = fitted_error <= direct_error
        part = QuantizedPart(torch.cat(fitted_parts if is_fitted else direct_parts), is_fitted)
        return part, self._values(name, part, weight.shape)

    def _values(self, name: MatrixId, part: QuantizedPart, shape: Sequence[int]) -> torch.Tensor:
        """Decode a part to the matrix, float32 of `shape`."""
        codec = self.types.get(name)
        return part.stored if codec is None else codec.decode_rows(part.stored, shape)

    def _context(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        """Compute the inputs of a layer's matrix o from the hidden states before the layer."""
        g = self.decoder.geometry
        return attention_context(g, weights, norm_layer_input(g, weights, x), self.tables)

    def _activations(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        """Compute the inputs of a layer's matrix fc_out from the hidden states before the layer."""
        return mlp_activations(weights, norm_layer_input(self.decoder.geometry, weights, x))

    def _batches(self) -> Iterator[slice]:
        """Yield slices of the windows, each as large as a batch."""
        for start in range(0, len(self.ids), BATCH):
            yield slice(start, start + BATCH)

    def _statistics(
        self, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], rows: int | None = None
    ) -> tuple[InputStatistics, ValidationPositions]:
        """Collect the statistics of the training windows and the test on the validation windows.

        Args:
            pairs: For each batch, a matrix's x (or W x) and y, [windows, T, width] each.
            rows: The width of W x, if the pairs contain it; see InputStatistics.
        """
        statistics, validation = None, ValidationPositions(rows is not None)
        for batch, pair in zip(self._batches(), pairs, strict=True):
            train = max(0, min(len(pair[0]), self.train_count - batch.start))
            statistics = statistics or InputStatistics(pair[1].shape[-1], rows, self.device)
            if train:
                statistics.add(*(states[:train].flatten(0, 1) for states in pair))
            if train < len(pair[0]):
                source, quantized = (states[train:].flatten(0, 1) for states in pair)
                validation.pairs.append((source, quantized))
        assert statistics is not None
        return statistics, validation
