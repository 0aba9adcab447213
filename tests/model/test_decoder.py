"""Row orders on numbered rows, and every tensor used exactly once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.model.decoder import (
    Geometry,
    half_split_row_indices,
    interleaved_row_indices,
    packed_qkv_row_indices,
    qkv_row_indices,
)
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.model.tensor_names import CODEGEN, PHI
from cgconvert.testing import synthetic

G = Geometry(n_layer=2, n_embd=32, n_head=4, rotary_dim=4, n_positions=16, vocab_size=50, mp_num=4)


def tensors(state: synthetic.State) -> dict[str, LazyTensor]:
    return {name: InMemoryTensor(state[name]) for name in state}


def test_split_of_numbered_rows() -> None:
    """n_embd 8 in 4 groups: each group has 2 rows of q, 2 of v, 2 of k, in that order."""
    query, key, value = qkv_row_indices(8, 4)
    assert query.tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert value.tolist() == [2, 3, 8, 9, 14, 15, 20, 21]
    assert key.tolist() == [4, 5, 10, 11, 16, 17, 22, 23]


@pytest.mark.parametrize("mp_num", [1, 2, 4, 8])
def test_packing_undoes_splitting(mp_num: int) -> None:
    stacked = np.concatenate(qkv_row_indices(64, mp_num))
    assert np.array_equal(stacked[packed_qkv_row_indices(64, mp_num)], np.arange(192))


def test_half_split_of_numbered_rows() -> None:
    """2 heads of 6, the first 4 of each rotary: even rows, odd rows, then the rest as they are."""
    assert half_split_row_indices(2, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


@pytest.mark.parametrize(("heads", "size", "rotary"), [(2, 6, 4), (4, 64, 32), (3, 80, 64)])
def test_interleaving_undoes_half_splitting(heads: int, size: int, rotary: int) -> None:
    index = half_split_row_indices(heads, size, rotary)
    assert np.array_equal(
        index[interleaved_row_indices(heads, size, rotary)], np.arange(heads * size)
    )


def test_split_is_what_transformers_computes() -> None:
    """Against the reshapes of transformers' CodeGenAttention.forward, mp_num 4."""
    packed = torch.arange(3 * 32)
    groups = packed.reshape(4, -1)
    query, value, key = torch.split(groups, 32 // 4, dim=-1)
    for index, theirs in zip(qkv_row_indices(32, 4), (query, key, value), strict=True):
        assert index.tolist() == theirs.reshape(-1).tolist()


def test_decoder_gives_back_the_packed_matrix() -> None:
    state = synthetic.RandomState(G)
    decoder = CODEGEN.decoder(G, tensors(state), "test")
    for i, layer in enumerate(decoder.layers):
        packed_matrix = state[f"transformer.h.{i}.attn.qkv_proj.weight"]
        assert torch.equal(layer.packed(4).read(), packed_matrix)


def test_grouping_changes_only_the_order_of_rows() -> None:
    state = synthetic.RandomState(G)
    eight, g8 = synthetic.regroup(state, replace(G, n_head=8, rotary_dim=4), 8)
    original = CODEGEN.decoder(replace(G, n_head=8), tensors(state), "test")
    regrouped = CODEGEN.decoder(g8, tensors(eight), "test")
    for a, b in zip(original.layers, regrouped.layers, strict=True):
        assert torch.equal(a.qkv.read(), b.qkv.read())
        assert torch.equal(b.packed(4).read(), a.packed(4).read())


def phi_tensors(state: synthetic.State) -> dict[str, LazyTensor]:
    decoder = CODEGEN.decoder(G, tensors(state), "test").half_split()
    named: dict[str, LazyTensor] = {n: getattr(decoder, p) for p, n in PHI.model.items()}
    for i, layer in enumerate(decoder.layers):
        named |= {n.format(i=i): getattr(layer, p) for p, n in PHI.layer.items()}
        named |= {n.format(i=i): InMemoryTensor(torch.zeros(32)) for n in PHI.zero_biases}
    return named


def test_phi_tensors_give_the_same_decoder() -> None:
    state = synthetic.RandomState(G)
    original = CODEGEN.decoder(G, tensors(state), "test")
    from_phi = PHI.decoder(replace(G, mp_num=0), phi_tensors(state), "test")
    for a, b in zip(original.layers, from_phi.layers, strict=True):
        assert torch.equal(a.packed(4).read(), b.packed(4).read())


def test_a_phi_bias_that_codegen_has_not_is_refused() -> None:
    named = phi_tensors(synthetic.RandomState(G))
    named[PHI.zero_biases[1].format(i=1)] = InMemoryTensor(torch.ones(32))
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.k_proj\.bias is not zero"):
        PHI.decoder(replace(G, mp_num=0), named, "test")


def test_every_fault_is_listed_at_once() -> None:
    named = tensors(synthetic.RandomState(G))
    del named["lm_head.bias"]
    named["transformer.h.1.mlp.fc_in.bias"] = InMemoryTensor(torch.zeros(7))
    named["transformer.h.9.mlp.fc_in.bias"] = InMemoryTensor(torch.zeros(7))
    with pytest.raises(InputError) as caught:
        CODEGEN.decoder(G, named, "somewhere")
    text = str(caught.value)
    assert text.startswith("somewhere: ")
    assert "lm_head.bias is missing" in text
    assert "h.1.mlp.fc_in.bias is [7], the config says [128]" in text
    assert "h.9.mlp.fc_in.bias is not a CodeGen tensor" in text


def test_old_buffers_are_dropped_by_name() -> None:
    named = tensors(synthetic.RandomState(G))
    named["transformer.h.0.attn.causal_mask"] = InMemoryTensor(torch.ones(4, dtype=torch.bool))
    named["transformer.h.1.attn.masked_bias"] = InMemoryTensor(torch.tensor(-1e9))
    CODEGEN.decoder(G, named, "test")
    named["transformer.h.2.attn.masked_bias"] = InMemoryTensor(torch.tensor(-1e9))
    with pytest.raises(InputError, match=r"h\.2\.attn\.masked_bias is not a CodeGen tensor"):
        CODEGEN.decoder(G, named, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ({"mp_num": 8}, "n_head 4 does not divide into 8 groups"),
        ({"rotary_dim": 10}, "rotary_dim 10 must be even and at most the head size 8"),
        ({"rotary_dim": 3}, "rotary_dim 3 must be even"),
        ({"n_layer": 0}, "n_layer is 0"),
    ],
)
def test_impossible_geometry_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(G, **change)


def test_parameters_count_every_weight() -> None:
    state = synthetic.RandomState(G)
    assert G.parameters == sum(t.numel() for t in state.values())
