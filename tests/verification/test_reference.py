"""The reference against transformers' own CodeGen, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgconvert.errors import InputError
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.testing.configurations import codegen_config
from cgconvert.testing.synthetic import RandomState
from cgconvert.verification import reference as module
from cgconvert.verification.metrics import relative_error
from cgconvert.verification.reference import Reference

SHAPES = {"350M": (64, 32), "2B": (80, 64), "6B": (256, 64)}  # 16B has the head of 6B


def geometry(size: str = "350M", n_head: int = 4, n_layer: int = 2) -> Geometry:
    head_dim, rotary_dim = SHAPES[size]
    return Geometry(n_layer, head_dim * n_head, n_head, rotary_dim, 192, 300, 4)


def decoder(state: Mapping[str, torch.Tensor], g: Geometry) -> Decoder:
    return CODEGEN.decoder(g, {name: InMemoryTensor(t) for name, t in state.items()}, "test")


def transformers_logits(
    state: Mapping[str, torch.Tensor], g: Geometry, sequence: list[int]
) -> np.ndarray:
    model = CodeGenForCausalLM(CodeGenConfig(**codegen_config(g, torch.float32))).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([sequence])).logits[0].numpy()
    return logits


def sequences(g: Geometry) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, g.vocab_size, length).tolist() for length in (1, 3, 192, 50)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_logits_equal_transformers(size: str, sharpness: float) -> None:
    g = geometry(size)
    state = dict(RandomState(g, seed=1, sharpness=sharpness))
    inputs = sequences(g)
    for logits, sequence in zip(Reference(decoder(state, g)).logits(inputs), inputs, strict=True):
        assert logits.shape == (len(sequence), g.vocab_size)
        assert logits.dtype == np.float32
        assert relative_error(transformers_logits(state, g, sequence), logits) <= 1e-5


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    g = geometry()
    d = decoder(dict(RandomState(g)), g)
    whole = Reference(d).logits(sequences(g))
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * g.n_embd * 7)
    for before, after in zip(whole, Reference(d).logits(sequences(g)), strict=True):
        assert relative_error(before, after) < 2e-6


class Counted(LazyTensor):
    """Says how many elements were read at once at most, and in all."""

    def __init__(self, source: LazyTensor, sizes: list[int]) -> None:
        self.source, self.sizes = source, sizes
        self.shape, self.dtype = source.shape, source.dtype

    @property
    def parents(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    def read(self, rows: slice = slice(None), cols: slice = slice(None)) -> torch.Tensor:
        values = self.source.read(rows, cols)
        self.sizes.append(values.numel())
        return values


def test_a_matrix_is_read_once_and_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    g = geometry()
    sizes: list[int] = []
    tensors = {n: Counted(InMemoryTensor(t), sizes) for n, t in RandomState(g).items()}
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * g.n_embd * 16)
    Reference(CODEGEN.decoder(g, tensors, "test")).logits(sequences(g))
    assert max(sizes) <= 16 * g.n_embd
    assert sum(sizes) <= g.parameters  # every row once; of the embedding only the rows that are fed


def test_source_weights_are_rounded_to_float16_or_left_alone() -> None:
    g = geometry()
    wide = dict(RandomState(g, dtype=torch.float32))
    half = {name: tensor.half() for name, tensor in wide.items()}
    inputs = [[1, 2, 3]]
    rounded = Reference(decoder(wide, g)).logits(inputs)[0]
    assert np.array_equal(rounded, Reference(decoder(half, g)).logits(inputs)[0])
    assert not np.array_equal(
        rounded, Reference(decoder(wide, g), weight_dtype=None).logits(inputs)[0]
    )


def test_the_layer_norm_epsilon_is_the_geometrys() -> None:
    g = replace(geometry(), layer_norm_epsilon=1e-2)
    state = dict(RandomState(g))
    logits = Reference(decoder(state, g)).logits([[5, 6, 7]])[0]
    assert relative_error(transformers_logits(state, g, [5, 6, 7]), logits) <= 1e-5
    assert relative_error(transformers_logits(state, geometry(), [5, 6, 7]), logits) > 1e-3


@pytest.mark.parametrize(
    ("sequence", "words"),
    [([], "0 tokens"), ([1] * 193, "193 tokens"), ([1, 300], "300"), ([-1], "-1")],
)
def test_bad_sequences_are_refused(sequence: list[int], words: str) -> None:
    g = geometry()
    with pytest.raises(InputError, match=words):
        Reference(decoder(dict(RandomState(g)), g)).logits([sequence])
