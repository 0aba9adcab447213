"""How much the model's output suffers from each type of each matrix, measured with gradients.

Near the source the KL divergence is half a quadratic form in the errors d of a matrix's outputs, by
the Fisher matrix E[g g^T], g being the gradient of -log p(y) with y drawn from the model's own
distribution. Over a sequence that is E[(sum over positions of g . d)^2] / 2 (Martens, 2020, arXiv
1412.1193), so one backward pass tells the loss of any change of any matrix: d = (Q - W) x.

Layers are taken one at a time, forwards keeping on the disk what enters each, backwards computing
it again, so memory follows the text and not the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cgconvert.io.progress import Progress
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import CPU, floats
from cgconvert.model.forward import attend, gelu, norm, rotary

__all__ = ["Matrix", "Name", "sensitivities"]

WINDOWS = 8
"""Sequences in a backward pass at once."""


ROWS = 512
"""Of a matrix, that stand for all of it."""


@dataclass(frozen=True)
class Matrix:
    """Some rows of one matrix, the inputs it met and the gradients at its outputs.

    `name` is (layer, part) or the part alone, `shape` the whole matrix's, `rows` which of its rows
    there are, int64. Rows are drawn by the share that their gradients have in all, those of the
    drawn ones divided by the root of how often they are expected: errors of different rows are
    independent of each other, so the loss of the sample is expected to be that of the whole.
    `inputs` [windows, T, columns] and `gradients` [windows, T, rows] are float32. Of the embedding,
    which has no inputs, they are the places of ids among the rows, int64 [windows, T], and its rows
    are all that occur.
    """

    name: str | tuple[int, str]
    shape: tuple[int, int]
    rows: torch.Tensor
    weight: torch.Tensor
    inputs: torch.Tensor
    gradients: torch.Tensor

    @classmethod
    def sampled(
        cls,
        name: str | tuple[int, str],
        weight: torch.Tensor,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        generator: torch.Generator,
    ) -> Matrix:
        """Of a matrix with all its rows."""
        rows, scale = draw(gradients.square().sum((0, 1)), generator)
        shape = (weight.shape[0], weight.shape[1])
        return cls(name, shape, rows, weight[rows], inputs, gradients[..., rows] * scale)

    def loss(self, other: torch.Tensor) -> float:
        """Mean KL divergence a token, in nats, were the matrix `other` and all else as it is."""
        error = other - self.weight
        if self.inputs.dtype == torch.int64:
            change = (error[self.inputs] * self.gradients).sum((1, 2))
        else:
            change = ((self.gradients @ error) * self.inputs).sum((1, 2))
        return float(change.double().square().sum()) / 2 / self.gradients[..., 0].numel()


def draw(shares: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """At most ROWS rows by their share, int64, and what to multiply each one's gradients by.

    They are drawn on the CPU, as all random numbers are: so a seed means the same on any device.
    """
    device = shares.device
    if len(shares) <= ROWS:
        return torch.arange(len(shares), device=device), torch.ones(len(shares), device=device)
    p = shares.cpu().double()
    p = p / p.sum().clamp(min=1e-300)
    p = (p + 1e-3 / len(p)) / (1 + 1e-3)  # none is impossible
    drawn = torch.multinomial(p, ROWS, replacement=True, generator=generator)
    rows, times = drawn.unique(return_counts=True)
    return rows.to(device), (times / (ROWS * p[rows])).sqrt().float().to(device)


Name = str | tuple[int, str]
"""Of a matrix: (layer, part), or the part alone for those that no layer has."""


def sensitivities(
    decoder: Decoder,
    ids: torch.Tensor,
    allowed: int,
    visit: Callable[[Matrix], None],
    folder: Path,
    progress: Progress,
    device: torch.device = CPU,
    seed: int = 0,
) -> torch.Tensor:
    """One pass forwards and one backwards over ids int64 [windows, T]; `visit` sees each matrix.

    What enters each layer, float32 [windows, T, n_embd], is a file in `folder` meanwhile.
    Only the first `allowed` ids, those of the tokenizer, are drawn. The drawing is by `seed`.
    Returns the gradients at the embedding's output, float32 [windows, T, n_embd].
    """
    g, generator = decoder.geometry, torch.Generator().manual_seed(seed)
    tables = rotary(g, ids.shape[1], device)
    x = floats(decoder.wte, device)[ids.to(device)]
    progress.step("measuring sensitivities", 2 * g.n_layer)
    for i in range(g.n_layer):
        w = _weights(decoder, i, device)
        save_file({"x": x.cpu()}, folder / f"entering-{i}.safetensors")
        with torch.no_grad():
            x = torch.cat([_layer(g, w, part, tables)[0] for part in x.split(WINDOWS)])
        progress.advance(1)
    gradient, head = _head(decoder, x, allowed, generator)
    del w, x
    visit(head)
    del head
    for i in reversed(range(g.n_layer)):
        path = folder / f"entering-{i}.safetensors"
        w, entering = _weights(decoder, i, device), load_file(path)["x"].to(device)
        path.unlink()
        gradient, matrices = _backward(g, i, w, entering, gradient, tables, generator)
        for matrix in matrices:
            visit(matrix)
        progress.advance(1)
    occurring, places = ids.unique(return_inverse=True)
    rows = floats(decoder.wte.rows(occurring.numpy()), device)
    shape = (g.vocab_size, g.n_embd)
    visit(Matrix("wte", shape, occurring.to(device), rows, places.to(device), gradient))
    return gradient


Tables = tuple[torch.Tensor, torch.Tensor]
Weights = Mapping[str, torch.Tensor]


def _weights(decoder: Decoder, i: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {part: floats(tensor, device) for part, tensor in vars(decoder.layers[i]).items()}


def _layer(
    g: Geometry, w: Weights, x: torch.Tensor, tables: Tables
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The layer's output, and each matrix's input and output, by part."""
    normed = norm(x, w["ln_weight"], w["ln_bias"], g.layer_norm_epsilon)
    met = {part: (normed, normed @ w[part].t()) for part in ("q", "k", "v", "fc_in")}
    q, k, v = (met[part][1].unflatten(-1, (g.n_head, -1)) for part in "qkv")
    context = attend(q, k, v, *tables).flatten(-2)
    inner = gelu(met["fc_in"][1] + w["fc_in_bias"])
    met |= {"o": (context, context @ w["o"].t()), "fc_out": (inner, inner @ w["fc_out"].t())}
    return x + met["o"][1] + met["fc_out"][1] + w["fc_out_bias"], met


def _head(
    decoder: Decoder, x: torch.Tensor, allowed: int, generator: torch.Generator
) -> tuple[torch.Tensor, Matrix]:
    """The gradient at the last layer's output, of -log p of ids drawn from the model's own p."""
    ends = (decoder.ln_f_weight, decoder.ln_f_bias, decoder.head, decoder.head_bias)
    scale, shift, weight, bias = (floats(tensor, x.device) for tensor in ends)
    weight, bias, eps = weight[:allowed], bias[:allowed], decoder.geometry.layer_norm_epsilon

    def probabilities(part: torch.Tensor) -> torch.Tensor:
        return (norm(part, scale, shift, eps) @ weight.t() + bias).softmax(-1)

    shares = torch.zeros(allowed, dtype=torch.float64, device=x.device)
    for part in x.split(WINDOWS):
        p = probabilities(part)
        shares += (p * (1 - p)).sum((0, 1))  # what (p - one_hot(y))^2 is expected to be
    rows, factor = draw(shares, generator)
    inputs, outputs, gradients = [], [], []
    for part in x.split(WINDOWS):
        p = probabilities(part)
        drawn = _sampled(p.flatten(0, 1), generator)
        slope = p.flatten(0, 1).scatter_add_(1, drawn, torch.full_like(drawn, -1.0, dtype=p.dtype))
        slope = slope.view_as(p)
        part = part.detach().requires_grad_()
        normed = norm(part, scale, shift, eps)
        (back,) = torch.autograd.grad(normed, part, slope @ weight)
        gradients.append(back)
        inputs.append(normed.detach())
        outputs.append(slope[..., rows] * factor)
    shape = (decoder.head.shape[0], decoder.head.shape[1])
    head = Matrix("head", shape, rows, weight[rows], torch.cat(inputs), torch.cat(outputs))
    return torch.cat(gradients), head


def _sampled(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An index for each row of probabilities [n, ids]: int64 [n, 1]. torch.multinomial of so many
    takes longer than the matrix product before it."""
    total = p.cumsum(1)
    at = torch.rand(len(p), 1, generator=generator).to(p.device) * total[:, -1:]
    return torch.searchsorted(total, at, right=True).clamp_(max=p.shape[1] - 1)


def _backward(
    g: Geometry,
    i: int,
    w: dict[str, torch.Tensor],
    entering: torch.Tensor,
    gradient: torch.Tensor,
    tables: Tables,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Iterator[Matrix]]:
    """The gradient at what enters layer `i`, and its matrices, for which `w` is used up."""
    below = []
    met: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for x, after in zip(entering.split(WINDOWS), gradient.split(WINDOWS), strict=True):
        x = x.detach().requires_grad_()
        y, seen = _layer(g, w, x, tables)
        back, *at = torch.autograd.grad(y, [x, *(out for _, out in seen.values())], after)
        below.append(back)
        for (part, (inputs, _)), slope in zip(seen.items(), at, strict=True):
            lists = met.setdefault(part, ([], []))
            lists[0].append(inputs.detach())
            lists[1].append(slope)

    def matrices() -> Iterator[Matrix]:
        for part in list(met):  # of a wide model each takes gigabytes
            inputs, slopes = (torch.cat(some) for some in met.pop(part))
            yield Matrix.sampled((i, part), w.pop(part), inputs, slopes, generator)

    return torch.cat(below), matrices()
