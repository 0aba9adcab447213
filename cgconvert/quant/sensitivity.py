"""How much the model's output suffers from each type of each matrix, measured with gradients.

Near the source the KL divergence is half a quadratic form in the errors d of a matrix's outputs, by
the Fisher matrix E[g g^T], g being the gradient of -log p(y) with y drawn from the model's own
distribution. Over a sequence that is E[(sum over positions of g . d)^2] / 2 (Martens, 2020, arXiv
1412.1193), so one backward pass tells the loss of any change of any matrix: d = (Q - W) x.

Layers are taken one at a time, forwards keeping what enters each, backwards computing it again, so
memory follows the text and not the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses

from cgconvert.forward import attend, gelu, norm, rotary
from cgconvert.model import Decoder, Geometry
from cgconvert.stream.progress import Progress

__all__ = ["Matrix", "Name", "sensitivities"]

WINDOWS = 8
"""Sequences in a backward pass at once."""


@dataclass(frozen=True)
class Matrix:
    """One matrix, the inputs it met and the gradients at its outputs.

    `name` is (layer, part) or the part alone; `inputs` [windows, T, columns] and `gradients`
    [windows, T, rows] are float32. Of the embedding, which has no inputs, they are the ids
    [windows, T].
    """

    name: str | tuple[int, str]
    weight: torch.Tensor
    inputs: torch.Tensor
    gradients: torch.Tensor

    def loss(self, other: torch.Tensor) -> float:
        """Mean KL divergence a token, in nats, were the matrix `other` and all else as it is."""
        error = other - self.weight
        if self.inputs.dtype == torch.int64:
            change = (error[self.inputs] * self.gradients).sum((1, 2))
        else:
            change = ((self.gradients @ error) * self.inputs).sum((1, 2))
        return float(change.double().square().sum()) / 2 / self.gradients[..., 0].numel()


Name = str | tuple[int, str]
"""Of a matrix: (layer, part), or the part alone for those that no layer has."""


def sensitivities(
    decoder: Decoder,
    ids: torch.Tensor,
    allowed: int,
    visit: Callable[[Matrix], None],
    progress: Progress,
    seed: int = 0,
) -> torch.Tensor:
    """One pass forwards and one backwards over ids int64 [windows, T]; `visit` sees each matrix.

    Only the first `allowed` ids, those of the tokenizer, are drawn. The drawing is by `seed`.
    Returns the gradients at the embedding's output, float32 [windows, T, n_embd].
    """
    g = decoder.geometry
    tables = rotary(g, ids.shape[1])
    states = [decoder.wte.read().float()[ids]]
    progress.step("measuring sensitivities", 2 * g.n_layer)
    for i in range(g.n_layer):
        w = _weights(decoder, i)
        with torch.no_grad():
            after = [_layer(g, w, x, tables)[0] for x in states[i].split(WINDOWS)]
        states.append(torch.cat(after))
        progress.advance(1)
    gradient, head = _head(decoder, states.pop(), allowed, seed)
    visit(head)
    for i in reversed(range(g.n_layer)):
        w, entering = _weights(decoder, i), states.pop()
        gradient, matrices = _backward(g, i, w, entering, gradient, tables)
        for matrix in matrices:
            visit(matrix)
        progress.advance(1)
    visit(Matrix("wte", decoder.wte.read().float(), ids, gradient))
    return gradient


Tables = tuple[torch.Tensor, torch.Tensor]
Weights = Mapping[str, torch.Tensor]


def _weights(decoder: Decoder, i: int) -> dict[str, torch.Tensor]:
    return {part: tensor.read().float() for part, tensor in vars(decoder.blocks[i]).items()}


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
    decoder: Decoder, x: torch.Tensor, allowed: int, seed: int
) -> tuple[torch.Tensor, Matrix]:
    """The gradient at the last layer's output, of -log p of ids drawn from the model's own p."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = decoder.ln_f_weight.read().float(), decoder.ln_f_bias.read().float()
    weight, bias = decoder.head.read().float(), decoder.head_bias.read().float()
    inputs, outputs, gradients = [], [], []
    for part in x.split(WINDOWS):
        part = part.detach().requires_grad_()
        normed = norm(part, scale, shift, decoder.geometry.layer_norm_epsilon)
        logits = (normed @ weight.t() + bias)[..., :allowed]
        p = logits.detach().softmax(-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
        (back,) = torch.autograd.grad(logits, part, p - _one_hot(drawn, p))
        gradients.append(back)
        inputs.append(normed.detach())
        outputs.append(F.pad(p - _one_hot(drawn, p), (0, len(weight) - allowed)))
    return torch.cat(gradients), Matrix("head", weight, torch.cat(inputs), torch.cat(outputs))


def _one_hot(drawn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like).flatten(0, 1).scatter_(1, drawn, 1.0).view_as(like)


def _backward(
    g: Geometry,
    i: int,
    w: Weights,
    entering: torch.Tensor,
    gradient: torch.Tensor,
    tables: Tables,
) -> tuple[torch.Tensor, Iterator[Matrix]]:
    """The gradient at what enters layer `i`, and its matrices."""
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
    matrices = (
        Matrix((i, part), w[part], torch.cat(inputs), torch.cat(slopes))
        for part, (inputs, slopes) in met.items()
    )
    return torch.cat(below), matrices
