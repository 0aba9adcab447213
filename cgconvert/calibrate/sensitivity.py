"""How much the model's output suffers when one matrix changes, measured with gradients.

Near the source the KL divergence is half a quadratic form in the errors d of a matrix's outputs, by
the Fisher matrix E[g g^T], where g is the gradient of -log p(y) and y is drawn from the model's own
distribution. Over a sequence that is E[(sum over positions of g . d)^2] / 2 (Martens, 2020, arXiv
1412.1193). With d = (Q - W) x, one backward pass gives the loss of any change of any matrix.

Layers are taken one at a time: the forward pass keeps what enters each on the disk, the backward
pass computes the layer again, so memory follows the text and not the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cgconvert.io.progress import Progress
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import CPU, read_float32
from cgconvert.model.forward import (
    Observer,
    RotaryTables,
    Weights,
    layer,
    layer_weights,
    norm,
    rotary,
)
from cgconvert.model.matrix_id import MatrixId

__all__ = ["MatrixSample", "sensitivities"]

BATCH = 8
"""Windows in one backward pass."""

SAMPLED_ROWS = 512
"""Rows of a matrix that stand for all of it."""


@dataclass(frozen=True)
class MatrixSample:
    """Some rows of one matrix, with the inputs it met and the gradients at its outputs.

    Rows are drawn with a probability that follows the square of their gradients, and the gradients
    of a drawn row are divided by the root of how often it is expected to be drawn. Errors of
    different rows are independent, so the expected loss of the sample is the loss of the matrix.

    Of the embedding, which has no inputs, the rows are all those that occur in the text, and
    `inputs` are their positions in `rows`, int64 [windows, T].

    Attributes:
        name: The matrix.
        shape: The shape of the whole matrix.
        rows: Numbers of the sampled rows, int64 [rows].
        weight: The sampled rows, float32 [rows, columns].
        inputs: float32 [windows, T, columns].
        gradients: float32 [windows, T, rows]; of the embedding [windows, T, columns].
    """

    name: MatrixId
    shape: tuple[int, int]
    rows: torch.Tensor
    weight: torch.Tensor
    inputs: torch.Tensor
    gradients: torch.Tensor

    @classmethod
    def draw(
        cls,
        name: MatrixId,
        weight: torch.Tensor,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        generator: torch.Generator,
    ) -> MatrixSample:
        """Sample rows of a whole matrix [rows, columns] and its gradients [windows, T, rows]."""
        rows, scale = draw_rows(gradients.square().sum((0, 1)), generator)
        shape = (weight.shape[0], weight.shape[1])
        return cls(name, shape, rows, weight[rows], inputs, gradients[..., rows] * scale)

    @property
    def is_embedding(self) -> bool:
        return self.inputs.dtype == torch.int64

    def loss(self, candidate: torch.Tensor) -> float:
        """The mean KL divergence, in nats a token, with `candidate` [rows, columns] in place of
        `weight` and everything else unchanged."""
        error = candidate - self.weight
        if self.is_embedding:
            change = (error[self.inputs] * self.gradients).sum((1, 2))
        else:
            change = ((self.gradients @ error) * self.inputs).sum((1, 2))
        return float(change.double().square().sum()) / 2 / self.gradients[..., 0].numel()


def draw_rows(
    shares: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw at most SAMPLED_ROWS rows, each with a probability that follows its share [rows].

    Rows are drawn on the CPU, as all random numbers are: a seed means the same on any device.

    Returns the row numbers, int64, and what to multiply each one's gradients by, float32.
    """
    device = shares.device
    if len(shares) <= SAMPLED_ROWS:
        return torch.arange(len(shares), device=device), torch.ones(len(shares), device=device)
    p = shares.cpu().double()
    p = p / p.sum().clamp(min=1e-300)
    p = (p + 1e-3 / len(p)) / (1 + 1e-3)  # every row can be drawn
    drawn = torch.multinomial(p, SAMPLED_ROWS, replacement=True, generator=generator)
    rows, times = drawn.unique(return_counts=True)
    scale = (times / (SAMPLED_ROWS * p[rows])).sqrt()
    return rows.to(device), scale.float().to(device)


def sensitivities(
    decoder: Decoder,
    ids: torch.Tensor,
    vocab_size: int,
    visit: Callable[[MatrixSample], None],
    folder: Path,
    progress: Progress,
    device: torch.device = CPU,
    seed: int = 0,
) -> torch.Tensor:
    """Run the model once forwards and once backwards; `visit` sees a sample of each matrix.

    Args:
        decoder: The model.
        ids: Token ids, int64 [windows, T].
        vocab_size: The number of ids the tokenizer has; ids from there on are never drawn.
        visit: Called for the head, then for the layers' matrices from the last layer down, then
            for the embedding.
        folder: Holds what enters each layer, float32 [windows, T, n_embd], one file each, until
            the backward pass has read it.
        progress: Advances by two for each layer.
        device: Computes it.
        seed: Of the drawn ids and rows.

    Returns:
        The gradients at the embedding's output, float32 [windows, T, n_embd].
    """
    g, generator = decoder.geometry, torch.Generator().manual_seed(seed)
    tables = rotary(g, ids.shape[1], device)
    x = read_float32(decoder.wte, device)[ids.to(device)]
    progress.step("measuring sensitivities", 2 * g.n_layer)
    for number in range(g.n_layer):
        weights = layer_weights(decoder, number, device)
        save_file({"x": x.cpu()}, folder / f"entering-{number}.safetensors")
        with torch.no_grad():
            x = torch.cat([_forward(g, weights, part, tables) for part in x.split(BATCH)])
        progress.advance(1)
    gradient, head = _head(decoder, x, vocab_size, generator)
    del weights, x
    visit(head)
    del head
    for number in reversed(range(g.n_layer)):
        path = folder / f"entering-{number}.safetensors"
        weights = layer_weights(decoder, number, device)
        entering = load_file(path)["x"].to(device)
        path.unlink()
        gradient, samples = _backward(g, number, weights, entering, gradient, tables, generator)
        for sample in samples:
            visit(sample)
        progress.advance(1)
    occurring, positions = ids.unique(return_inverse=True)
    rows = read_float32(decoder.wte.rows(occurring.numpy()), device)
    shape = (g.vocab_size, g.n_embd)
    wte = MatrixId("wte")
    visit(MatrixSample(wte, shape, occurring.to(device), rows, positions.to(device), gradient))
    return gradient


def _forward(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> torch.Tensor:
    """The hidden states after a layer, [windows, T, n_embd]."""
    attention, mlp = layer(geometry, weights, x, tables, observe)
    return x + attention + mlp + weights["fc_out_bias"]


def _head(
    decoder: Decoder, x: torch.Tensor, vocab_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, MatrixSample]:
    """The gradient of -log p(y) at the last layer's output, y drawn from the model's own p, and
    the head's sample. At the logits that gradient is p - one_hot(y)."""
    ends = (decoder.ln_f_weight, decoder.ln_f_bias, decoder.head, decoder.head_bias)
    scale, shift, weight, bias = (read_float32(tensor, x.device) for tensor in ends)
    weight, bias = weight[:vocab_size], bias[:vocab_size]
    epsilon = decoder.geometry.layer_norm_epsilon

    def probabilities(part: torch.Tensor) -> torch.Tensor:
        return (norm(part, scale, shift, epsilon) @ weight.t() + bias).softmax(-1)

    shares = torch.zeros(vocab_size, dtype=torch.float64, device=x.device)
    for part in x.split(BATCH):
        p = probabilities(part)
        shares += (p * (1 - p)).sum((0, 1))  # the expectation of (p - one_hot(y))^2
    rows, factor = draw_rows(shares, generator)
    inputs, outputs, gradients = [], [], []
    for part in x.split(BATCH):
        p = probabilities(part)
        drawn = _draw_ids(p.flatten(0, 1), generator)
        slope = p.flatten(0, 1).scatter_add_(1, drawn, torch.full_like(drawn, -1.0, dtype=p.dtype))
        slope = slope.view_as(p)
        part = part.detach().requires_grad_()
        normed = norm(part, scale, shift, epsilon)
        (gradient,) = torch.autograd.grad(normed, part, slope @ weight)
        gradients.append(gradient)
        inputs.append(normed.detach())
        outputs.append(slope[..., rows] * factor)
    shape = (decoder.head.shape[0], decoder.head.shape[1])
    head = MatrixSample(
        MatrixId("head"), shape, rows, weight[rows], torch.cat(inputs), torch.cat(outputs)
    )
    return torch.cat(gradients), head


def _draw_ids(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one id for each row of probabilities [n, ids]: int64 [n, 1].

    torch.multinomial of so many ids takes longer than the matrix product before it.
    """
    total = p.cumsum(1)
    at = torch.rand(len(p), 1, generator=generator).to(p.device) * total[:, -1:]
    return torch.searchsorted(total, at, right=True).clamp_(max=p.shape[1] - 1)


def _backward(
    geometry: Geometry,
    number: int,
    weights: dict[str, torch.Tensor],
    entering: torch.Tensor,
    gradient: torch.Tensor,
    tables: RotaryTables,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Iterator[MatrixSample]]:
    """The gradient at what enters layer `number`, and samples of its matrices.

    To make the samples takes tensors out of `weights`, so that their memory is free again.
    """
    gradients = []
    matrices: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for x, after in zip(entering.split(BATCH), gradient.split(BATCH), strict=True):
        below, batch = _backward_batch(geometry, weights, x, after, tables)
        gradients.append(below)
        for part, pair in batch.items():
            matrices.setdefault(part, []).append(pair)

    def samples() -> Iterator[MatrixSample]:
        for part in list(matrices):  # of a wide model each takes gigabytes
            inputs, slopes = (
                torch.cat(batches) for batches in zip(*matrices.pop(part), strict=True)
            )
            name = MatrixId(part, number)
            yield MatrixSample.draw(name, weights.pop(part), inputs, slopes, generator)

    return torch.cat(gradients), samples()


def _backward_batch(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    after: torch.Tensor,
    tables: RotaryTables,
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The gradient at the layer's input, and each matrix's inputs and gradients at its outputs."""
    x = x.detach().requires_grad_()
    met: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def observe(part: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        met[part] = inputs.detach(), outputs

    y = _forward(geometry, weights, x, tables, observe)
    below, *slopes = torch.autograd.grad(y, [x, *(outputs for _, outputs in met.values())], after)
    return below, {
        part: (inputs, slope)
        for (part, (inputs, _)), slope in zip(met.items(), slopes, strict=True)
    }
