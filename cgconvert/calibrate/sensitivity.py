"""Sensitivities: how much the model's output changes if one matrix changes, measured by gradients.

Let d be the errors of a matrix's outputs, g the gradient of -log p(y) at these outputs, and y drawn
from the model's own distribution. For small d the KL divergence is half the quadratic form of d
with the Fisher matrix E[g g^T]; for a sequence this is E[(sum over positions of g . d)^2] / 2
(Martens, 2020, arXiv 1412.1193). As d = (Q - W) x, a single backward pass is enough to compute the
loss of any change of any matrix.

The passes go layer by layer: the forward pass stores the hidden states before each layer on disk,
and the backward pass computes the layer again. So the memory depends on the text, not on the number
of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cgconvert.io.progress import Amount, Progress
from cgconvert.lazy import safetensors_torch, torch
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import float64_device, read_float32, torch_device
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
"""The number of windows that go through a layer at once."""

SAMPLED_ROWS = 512
"""The largest number of rows that are sampled from a matrix."""


@dataclass(frozen=True)
class MatrixSample:
    """A sample of the rows of one matrix, with its inputs and the gradients at its outputs.

    Rows are drawn with probabilities proportional to the sum of their squared gradients. The
    gradients of a drawn row are divided by the square root of the expected number of its draws. As
    the errors of different rows are independent, the expected loss of the sample is the loss of the
    matrix.

    For the embedding, which has no inputs, the sample has all rows of the tokens that occur in the
    text, and `inputs` are positions in `rows`.

    Attributes:
        name: The matrix.
        shape: The shape of the full matrix.
        rows: The numbers of the sampled rows, int64 [rows].
        weight: The sampled rows, float32 [rows, columns].
        inputs: float32 [windows, T, columns]; for the embedding int64 [windows, T].
        gradients: float32 [windows, T, rows]; for the embedding [windows, T, columns].
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
        """Sample rows of a matrix.

        Args:
            name: The matrix.
            weight: The full matrix, float32 [rows, columns].
            inputs: float32 [windows, T, columns].
            gradients: float32 [windows, T, rows].
            generator: The source of random numbers.
        """
        rows, scale = draw_rows(gradients.square().sum((0, 1)), generator, gradients.device)
        shape = (weight.shape[0], weight.shape[1])
        return cls(name, shape, rows, weight[rows], inputs, gradients[..., rows] * scale)

    @property
    def is_embedding(self) -> bool:
        """Tell whether the matrix is the embedding, whose inputs are positions."""
        return self.inputs.dtype == torch.int64

    def loss(self, candidate: torch.Tensor) -> float:
        """Estimate the KL divergence, in nats per token, if `candidate` replaced the sampled rows.

        It is half the sum over windows of (sum over positions of g . d)^2, divided by the number of
        tokens (see the module's text). `candidate` is [rows, columns] like `weight`; all else in
        the model stays.
        """
        error = candidate - self.weight
        if self.is_embedding:
            change = (error[self.inputs] * self.gradients).sum((1, 2))
        else:
            change = ((self.gradients @ error) * self.inputs).sum((1, 2))
        changes = change.to(float64_device(change.device)).double()
        return float(changes.square().sum()) / 2 / self.gradients[..., 0].numel()


def draw_rows(
    row_weights: torch.Tensor, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw at most SAMPLED_ROWS rows, with probabilities proportional to `row_weights` [rows].

    All random numbers are drawn on the CPU, so that a seed gives the same ones for any device.

    Returns the row numbers, int64, and the factor of each row's gradients, float32, on `device`.
    """
    count = len(row_weights)
    if count <= SAMPLED_ROWS:
        return torch.arange(count, device=device), torch.ones(count, device=device)
    p = row_weights.cpu().double()
    p = p / p.sum().clamp(min=1e-300)
    p = (p + 1e-3 / len(p)) / (1 + 1e-3)  # above 0, so that every row can be drawn
    drawn = torch.multinomial(p, SAMPLED_ROWS, replacement=True, generator=generator)
    rows, draws = drawn.unique(return_counts=True)
    factors = (draws / (SAMPLED_ROWS * p[rows])).sqrt()
    return rows.to(device), factors.float().to(device)


def sensitivities(
    decoder: Decoder,
    ids: torch.Tensor,
    vocab_size: int,
    visit: Callable[[MatrixSample], None],
    folder: Path,
    progress: Progress,
    device: torch.device | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Run the model forwards and backwards once, and pass a sample of each matrix to `visit`.

    Args:
        decoder: The model.
        ids: The token ids, int64 [windows, T].
        vocab_size: The number of ids that the tokenizer has; only these are drawn as y.
        visit: Called for the head, then for the layers' matrices from the last layer to the first,
            then for the embedding.
        folder: The folder for the hidden states before each layer, float32 [windows, T, n_embd].
            Each file is deleted when the backward pass has read it.
        progress: Advances by two for each layer.
        device: The device of all computations.
        seed: The seed of the drawn ids and rows.

    Returns:
        The gradients at the embedding's output, float32 [windows, T, n_embd].
    """
    device = device or torch_device("cpu")
    g, generator = decoder.geometry, torch.Generator().manual_seed(seed)
    tables = rotary(g, ids.shape[1], device)
    x = read_float32(decoder.wte, device)[ids.to(device)]
    progress.step("measuring sensitivities", Amount(2 * g.n_layer, "layers"))
    for number in range(g.n_layer):
        weights = layer_weights(decoder, number, device)
        safetensors_torch.save_file({"x": x.cpu()}, folder / f"entering-{number}.safetensors")
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
        # A copy, because Windows removes no file whose memory is mapped.
        states = safetensors_torch.load_file(path)["x"].to(device, copy=True)
        path.unlink()
        gradient, samples = _backward(g, number, weights, states, gradient, tables, generator)
        for sample in samples:
            visit(sample)
        progress.advance(1)
    rows, positions = ids.unique(return_inverse=True)
    weight = read_float32(decoder.wte.rows(rows.numpy()), device)
    shape = (g.vocab_size, g.n_embd)
    wte = MatrixId("wte")
    visit(MatrixSample(wte, shape, rows.to(device), weight, positions.to(device), gradient))
    return gradient


def _forward(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    tables: RotaryTables,
    observe: Observer | None = None,
) -> torch.Tensor:
    """Compute the hidden states after a layer from those before it, [windows, T, n_embd]."""
    attention, mlp = layer(geometry, weights, x, tables, observe)
    return x + attention + mlp + weights["fc_out_bias"]


def _head(
    decoder: Decoder, x: torch.Tensor, vocab_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, MatrixSample]:
    """Draw an id y for each position from the model's own p, and sample the head.

    Args:
        decoder: The model.
        x: The hidden states after the last layer, float32 [windows, T, n_embd].
        vocab_size: The number of ids that can be drawn.
        generator: The source of random numbers.

    Returns:
        The gradient of -log p(y) at `x`, and the sample of the head. At the logits, this gradient
        is p - one_hot(y).
    """
    tensors = (decoder.ln_f_weight, decoder.ln_f_bias, decoder.head, decoder.head_bias)
    scale, shift, weight, bias = (read_float32(tensor, x.device) for tensor in tensors)
    weight, bias = weight[:vocab_size], bias[:vocab_size]
    epsilon = decoder.geometry.layer_norm_epsilon

    def probabilities(part: torch.Tensor) -> torch.Tensor:
        return (norm(part, scale, shift, epsilon) @ weight.t() + bias).softmax(-1)

    sums = float64_device(x.device)
    row_weights = torch.zeros(vocab_size, dtype=torch.float64, device=sums)
    for part in x.split(BATCH):
        p = probabilities(part)
        row_weights += (p * (1 - p)).sum((0, 1)).to(sums)  # the expectation of (p - one_hot(y))^2
    rows, factors = draw_rows(row_weights, generator, x.device)
    inputs, logit_gradients, gradients = [], [], []
    for part in x.split(BATCH):
        p = probabilities(part)
        y = _draw_ids(p.flatten(0, 1), generator)
        minus_one = torch.full_like(y, -1.0, dtype=p.dtype)
        logit_gradient = p.flatten(0, 1).scatter_add_(1, y, minus_one).view_as(p)
        part = part.detach().requires_grad_()
        normed = norm(part, scale, shift, epsilon)
        (gradient,) = torch.autograd.grad(normed, part, logit_gradient @ weight)
        gradients.append(gradient)
        inputs.append(normed.detach())
        logit_gradients.append(logit_gradient[..., rows] * factors)
    shape = (decoder.head.shape[0], decoder.head.shape[1])
    head = MatrixSample(
        MatrixId("head"), shape, rows, weight[rows], torch.cat(inputs), torch.cat(logit_gradients)
    )
    return torch.cat(gradients), head


def _draw_ids(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one id for each row of probabilities p [n, ids]; returns int64 [n, 1].

    It inverts the cumulative distribution, because torch.multinomial takes longer for so many ids
    than the matrix product that computes them.
    """
    cumulative = p.cumsum(1)
    drawn = torch.rand(len(p), 1, generator=generator).to(p.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True).clamp_(max=p.shape[1] - 1)


def _backward(
    geometry: Geometry,
    number: int,
    weights: dict[str, torch.Tensor],
    states: torch.Tensor,
    gradient: torch.Tensor,
    tables: RotaryTables,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Iterator[MatrixSample]]:
    """Go backwards through layer `number`.

    Args:
        geometry: The geometry of the model.
        number: The number of the layer.
        weights: The tensors of the layer. Each is removed when its sample is made, so that its
            memory can be used again.
        states: The hidden states before the layer, float32 [windows, T, n_embd].
        gradient: The gradient at the hidden states after the layer, of the same shape.
        tables: The rotary tables.
        generator: The source of random numbers.

    Returns:
        The gradient at `states`, and the samples of the layer's matrices.
    """
    gradients = []
    matrices: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    batches = zip(states.split(BATCH), gradient.split(BATCH), strict=True)
    for x, output_gradient in batches:
        input_gradient, pairs = _backward_batch(geometry, weights, x, output_gradient, tables)
        gradients.append(input_gradient)
        for part, pair in pairs.items():
            matrices.setdefault(part, []).append(pair)

    def samples() -> Iterator[MatrixSample]:
        for part in list(matrices):  # removed one by one, as each takes gigabytes in a wide model
            inputs, output_gradients = (
                torch.cat(tensors) for tensors in zip(*matrices.pop(part), strict=True)
            )
            name = MatrixId(part, number)
            yield MatrixSample.draw(name, weights.pop(part), inputs, output_gradients, generator)

    return torch.cat(gradients), samples()


def _backward_batch(
    geometry: Geometry,
    weights: Weights,
    x: torch.Tensor,
    output_gradient: torch.Tensor,
    tables: RotaryTables,
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Go backwards through a layer with one batch; arguments as for `_backward`.

    Returns the gradient at `x`, and for each matrix its inputs and the gradients at its outputs.
    """
    x = x.detach().requires_grad_()
    observed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def observe(part: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        observed[part] = inputs.detach(), outputs

    y = _forward(geometry, weights, x, tables, observe)
    tensors = [x, *(outputs for _, outputs in observed.values())]
    input_gradient, *gradients = torch.autograd.grad(y, tensors, output_gradient)
    return input_gradient, {
        part: (inputs, gradient)
        for (part, (inputs, _)), gradient in zip(observed.items(), gradients, strict=True)
    }
