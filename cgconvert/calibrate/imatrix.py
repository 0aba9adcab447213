"""Collect an importance matrix: the mean square of each input of each matrix on a text.

The definition is that of llama-imatrix (tools/imatrix/imatrix.cpp, collect_imatrix). Its chunks are
the windows of the calibration set: each begins at position 0, and every position counts. The head
is included, as with --process-output.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cgconvert.formats.gguf.imatrix import Imatrix, InputStatistics, encoded
from cgconvert.io.progress import Amount, Progress
from cgconvert.lazy import torch
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import float64_sum, read_float32, torch_device
from cgconvert.model.forward import Observer, layer, layer_weights, norm, rotary
from cgconvert.model.tensor_names import GGUF

__all__ = ["collect"]

WINDOWS = 16
"""The number of windows that go through a layer at once."""


def collect(
    decoder: Decoder,
    windows: torch.Tensor,
    text: str,
    progress: Progress,
    device: torch.device | None = None,
) -> Imatrix:
    """Collect the imatrix of a model on the windows of a text.

    The memory needed is that of the weights of one layer in float32 and of the hidden states of all
    windows.

    Args:
        decoder: The model.
        windows: The token ids, int64 [windows, T].
        text: The name of the text, which the imatrix records.
        progress: Advances by one for each layer and for the head.
        device: The device of all computations.

    Returns:
        The imatrix of all matrices except the embedding, by their names in GGUF.
    """
    device = device or torch_device("cpu")
    g, sums = decoder.geometry, _SquareSums()
    tables = rotary(g, windows.shape[1], device)
    progress.step("collecting the imatrix", Amount(g.n_layer + 1, "layers"))
    with torch.inference_mode():
        states = read_float32(decoder.wte, device)[windows.to(device)]
        for number in range(g.n_layer):
            weights = layer_weights(decoder, number, device)
            observe = sums.observer(number)
            for x in states.split(WINDOWS):
                attention, mlp = layer(g, weights, x, tables, observe)
                x += attention + mlp + weights["fc_out_bias"]
            progress.advance(1)
        norms = (decoder.ln_f_weight, decoder.ln_f_bias)
        scale, shift = (read_float32(tensor, device) for tensor in norms)
        for x in states.split(WINDOWS):
            sums.add(GGUF.name("head"), _squares(norm(x, scale, shift, g.layer_norm_epsilon)))
        progress.advance(1)
    count = windows.numel()
    inputs = {
        name: InputStatistics(total.float().cpu(), count) for name, total in sums.totals.items()
    }
    imatrix = Imatrix(inputs, (text,), len(windows), windows.shape[1])
    return replace(imatrix, sha256=hashlib.sha256(encoded(imatrix)).hexdigest())


class _SquareSums:
    """Sums of squared inputs over positions.

    Attributes:
        totals: The sums, float64 [columns] each, by the name of the matrix in GGUF.
    """

    def __init__(self) -> None:
        self.totals: dict[str, torch.Tensor] = {}

    def add(self, name: str, squares: torch.Tensor) -> None:
        """Add sums of squares [columns] to those of a matrix."""
        self.totals[name] = self.totals.get(name, 0) + squares

    def observer(self, number: int) -> Observer:
        """Make the observer that adds the squared inputs of the matrices of layer `number`."""
        last: tuple[torch.Tensor, torch.Tensor] | None = None  # inputs and their sums of squares

        def observe(part: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
            nonlocal last
            if last is None or last[0] is not inputs:  # q, k, v and fc_in have the same inputs
                last = inputs, _squares(inputs)
            self.add(GGUF.name(part, number), last[1])

        return observe


def _squares(inputs: torch.Tensor) -> torch.Tensor:
    """Sum the squares of inputs [..., columns] over all positions: float64 [columns]."""
    return float64_sum(inputs.square().flatten(0, -2), 0)
