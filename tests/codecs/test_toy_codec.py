"""A codec of one class and one line in the table of types is written, read and verified.

The class is ggml's Q5_0, which the package does not have: GGUF and gguf-py know its number and its
size, so that its bytes can be read back by another program.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cgconvert import embedded
from cgconvert.calibrate.budget import Budget, check_budget
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.block_layout import BlockParams, blocks_first, float16_columns
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.codecs.search.scale import ScaleSearch
from cgconvert.formats.gguf import reader
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.writer import plan
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import StoredTensor
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.weights import check_weights
from cgconvert.write.execute import execute

FC_IN = "blk.*.ffn_up.weight"


class Q5_0(BlockCodec):  # noqa: N801 - the type's name
    """22 bytes: a float16 d, 32 fifth bits, low four bits; weight = d * (code - 16)."""

    name = "Q5_0"
    block_size = sub_block_size = 32
    block_bytes = 22
    max_code, zero_point = 31, 16
    search = ScaleSearch((-16.0, -15.0, -17.0), (-16.0, -15.0, -17.0))

    def pack(self, params: BlockParams) -> torch.Tensor:
        codes = blocks_first(params.codes)
        fifth = (codes >> 4).reshape(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
        low = codes[:, :16] & 15 | codes[:, 16:] << 4
        return torch.cat([self.scale_bytes(params), fifth.sum(2, dtype=torch.uint8), low], 1)

    def unpack(self, packed: torch.Tensor) -> BlockParams:
        (d,) = float16_columns(packed, 0, 2)
        low = torch.cat([packed[:, 6:] & 15, packed[:, 6:] >> 4], 1)
        fifth = packed[:, 2:6, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return BlockParams.without_sub_blocks((low | fifth.flatten(1) << 4).t(), d)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return read(str(embedded.path()))


@pytest.fixture
def artefact(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model with its first MLP matrices in the new type."""
    monkeypatch.setitem(ENCODINGS, "Q5_0", Q5_0())
    path = tmp_path / "model.gguf"
    execute(plan(checkpoint, path, type="Q8_0", fixed=[(FC_IN, "Q5_0")]))
    return path


def test_stored_blocks_decode_as_gguf_py(artefact: Path) -> None:
    tensors = reader.tensors(artefact, read_header(artefact))
    new = [t for t in gguf.GGUFReader(artefact).tensors if t.tensor_type.name == "Q5_0"]
    assert len(new) > 1
    for tensor in new:
        stored = tensors[tensor.name]
        assert isinstance(stored, QuantizedTensor)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(stored.read().numpy(), expected)


def test_any_bytes_pack_to_the_same_again() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (50, 22), generator=generator).byte()
    packed[:, 1] = 0x24  # a finite scale
    assert torch.equal(Q5_0().pack(Q5_0().unpack(packed)), packed)


def _swap_nibbles(rows: torch.Tensor) -> None:
    codes = rows[:, 6:22]
    codes.copy_(codes >> 4 | codes << 4)


def _double_scale(rows: torch.Tensor) -> None:
    rows[:, :2] = (rows[:, :2].clone().view(torch.float16) * 2).view(torch.uint8)


@pytest.mark.parametrize("change", [None, _swap_nibbles, _double_scale])
def test_verification_accepts_stored_blocks_and_sees_changed_ones(
    change: Callable[[torch.Tensor], None] | None, artefact: Path, checkpoint: Checkpoint
) -> None:
    if change is not None:
        name = FC_IN.replace("*", "0")
        tensor = reader.tensors(artefact, read_header(artefact))[name]
        assert isinstance(tensor, QuantizedTensor)
        (stored,) = tensor.arrays
        assert isinstance(stored, StoredTensor)
        rows = stored.read()
        change(rows)
        with artefact.open("r+b") as file:
            file.seek(stored.offset)
            file.write(rows.numpy().tobytes())
    checks, errors = check_weights(artefact, "gguf", checkpoint.decoder)
    verdicts = {check.name: check.verdict for check in checks}
    assert verdicts.pop("weights.error") == (Verdict.PASS if change is None else Verdict.FAIL)
    assert set(verdicts.values()) == {Verdict.PASS}
    assert {error.type for error in errors} == {"float32", "Q8_0", "Q5_0"}


def test_calibration_takes_it_for_matrices_that_ask_for_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODINGS, "Q5_0", Q5_0())
    check_budget(checkpoint, Budget(bpw=5.5, fixed=[("*.weight", "Q5_0")]))
