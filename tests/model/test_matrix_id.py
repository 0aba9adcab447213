"""Addresses of matrices: their tensors, their names, and their keys in files."""

from __future__ import annotations

from cgconvert.model.decoder import Geometry
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN, GGUF, PHI
from cgconvert.testing import synthetic

GEOMETRY = Geometry(
    n_layer=2, n_embd=32, n_head=4, rotary_dim=4, n_positions=16, vocab_size=50, mp_num=4
)


def test_all_lists_every_matrix_once_in_the_order_of_the_model() -> None:
    state = synthetic.RandomState(GEOMETRY)
    decoder = CODEGEN.decoder(GEOMETRY, {n: InMemoryTensor(state[n]) for n in state}, "test")
    matrices = MatrixId.all(GEOMETRY.n_layer)
    assert [matrix.key for matrix in matrices] == [
        "wte",
        *("0.q", "0.k", "0.v", "0.o", "0.fc_in", "0.fc_out"),
        *("1.q", "1.k", "1.v", "1.o", "1.fc_in", "1.fc_out"),
        "head",
    ]
    assert matrices[9].tensor(decoder) is decoder.layers[1].v
    assert matrices[-1].tensor(decoder) is decoder.head
    two_dimensional = [
        tensor
        for owner in (decoder, *decoder.layers)
        for tensor in vars(owner).values()
        if len(getattr(tensor, "shape", ())) == 2
    ]
    assert len(two_dimensional) == len(matrices)
    addressed = {id(matrix.tensor(decoder)) for matrix in matrices}
    assert addressed == {id(tensor) for tensor in two_dimensional}


def test_a_key_gives_the_matrix_back() -> None:
    for matrix in MatrixId.all(12):
        assert MatrixId.from_key(matrix.key) == matrix


def test_names_are_those_of_the_layout() -> None:
    assert MatrixId("head").name(GGUF) == "output.weight"
    assert MatrixId("fc_out", 11).name(GGUF) == "blk.11.ffn_down.weight"
    assert MatrixId("o", 3).name(PHI) == "model.layers.3.self_attn.dense.weight"
