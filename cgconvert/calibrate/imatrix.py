"""Collect an importance matrix: a text goes through the model, the squares of inputs are added up.

The definition is llama-imatrix's (tools/imatrix/imatrix.cpp, collect_imatrix), its chunks being the
windows: each begins at position 0, and every position counts. The head is collected too, as with
its --process-output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from cgconvert.formats.gguf.imatrix import Imatrix, Inputs
from cgconvert.formats.gguf.imatrix_file import encoded
from cgconvert.io.progress import Progress
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU, floats
from cgconvert.model.forward import attend, gelu, norm, rotary
from cgconvert.model.tensor_names import GGUF

__all__ = ["collect"]

WINDOWS = 16
"""Windows of text that go through a layer at once."""


def collect(
    decoder: Decoder,
    windows: torch.Tensor,
    text: str,
    progress: Progress,
    device: torch.device = CPU,
) -> Imatrix:
    """Of ids int64 [windows, T], which are of the text of this name.

    In memory are the weights of a layer, in float32, and the windows' hidden states.
    """
    g, sums = decoder.geometry, _Sums()
    tables = rotary(g, windows.shape[1], device)
    progress.step("collecting the imatrix", g.n_layer + 1)
    with torch.inference_mode():
        states = floats(decoder.wte, device)[windows.to(device)]
        for i, block in enumerate(decoder.layers):
            w = {part: floats(tensor, device) for part, tensor in vars(block).items()}
            for x in states.split(WINDOWS):
                normed = norm(x, w["ln_weight"], w["ln_bias"], g.layer_norm_epsilon)
                x += _layer(w, normed, tables, g.n_head, i, sums)
            progress.advance(1)
        scale, shift = (floats(d, device) for d in (decoder.ln_f_weight, decoder.ln_f_bias))
        for x in states.split(WINDOWS):
            sums.add([GGUF.model["head"]], norm(x, scale, shift, g.layer_norm_epsilon))
        progress.advance(1)
    count = windows.numel()
    inputs = {name: Inputs(total.float().cpu(), count) for name, total in sums.totals.items()}
    found = Imatrix(inputs, (text,), len(windows), windows.shape[1])
    return replace(found, sha256=hashlib.sha256(encoded(found)).hexdigest())


class _Sums:
    """Squares by matrix, float64 [columns]."""

    def __init__(self) -> None:
        self.totals: dict[str, torch.Tensor] = {}

    def add(self, names: list[str], x: torch.Tensor) -> None:
        """Of inputs [..., columns] that all these matrices meet."""
        squares = x.square().flatten(0, -2).sum(0, dtype=torch.float64)
        for name in names:
            self.totals[name] = self.totals.get(name, 0) + squares


def _layer(
    w: Mapping[str, torch.Tensor],
    normed: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    heads: int,
    layer: int,
    sums: _Sums,
) -> torch.Tensor:
    """What the layer adds to the hidden states."""

    def met(parts: str, x: torch.Tensor) -> torch.Tensor:
        sums.add([GGUF.layer[part].format(i=layer) for part in parts.split()], x)
        return x

    met("q k v fc_in", normed)
    q, k, v = ((normed @ w[part].t()).unflatten(-1, (heads, -1)) for part in "qkv")
    context = met("o", attend(q, k, v, *tables).flatten(-2))
    inner = met("fc_out", gelu(normed @ w["fc_in"].t() + w["fc_in_bias"]))
    return context @ w["o"].t() + inner @ w["fc_out"].t() + w["fc_out_bias"]
