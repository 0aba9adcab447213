"""imatrix files: both formats, what is written read back, and llama.cpp quantizing with it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cgconvert.errors import OutputError, UsageError
from cgconvert.formats.gguf.imatrix import Imatrix, encoded, read_imatrix, write_imatrix
from tests.support import ggml
from tests.support.gguf_models import converted, random_checkpoint
from tests.support.imatrices import collected, legacy, llama_quantize

DECODER = random_checkpoint(64).decoder


def means(imatrix: Imatrix) -> dict[str, np.ndarray]:
    """What llama-quantize makes of a file."""
    return {
        name: np.ascontiguousarray(inputs.squares.numpy() / np.float32(inputs.count))
        for name, inputs in imatrix.inputs.items()
    }


def test_a_written_imatrix_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    written = write_imatrix(path, collected())
    imatrix = read_imatrix(path, DECODER)
    assert (imatrix.file, imatrix.sha256) == ("imatrix.gguf", collected().sha256)
    assert (written.file, written.sha256) == (imatrix.file, imatrix.sha256)
    assert (imatrix.datasets, imatrix.chunks, imatrix.chunk_size) == (("noise",), 2, 64)
    assert imatrix.inputs.keys() == collected().inputs.keys()
    for name, inputs in collected().inputs.items():
        assert torch.equal(imatrix.inputs[name].squares, inputs.squares)
        assert imatrix.inputs[name].count == inputs.count == 128
    assert path.read_bytes() == encoded(imatrix)  # the same numbers are the same bytes
    assert [p.name for p in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_an_imatrix_file_has_the_layout_of_llama_imatrix(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", collected())
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert {k: v for k, v in values.items() if not k.startswith("GGUF.")} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["noise"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 64,
    }
    stems = sorted(collected().inputs)
    assert [t.name for t in reader.tensors] == [
        f"{stem}.{part}" for stem in stems for part in ("in_sum2", "counts")
    ]
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}
    first = reader.tensors[0]
    assert np.array_equal(first.data.ravel(), collected().inputs[stems[0]].squares.numpy())


@pytest.mark.parametrize("tail", [True, False])
def test_the_older_file_format_reads_the_same(tmp_path: Path, tail: bool) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(collected(), tail=tail))
    imatrix = read_imatrix(path, DECODER)
    assert (imatrix.chunks, imatrix.datasets) == ((2, ("noise",)) if tail else (0, ()))
    for name in collected().inputs:
        ours, theirs = imatrix.importance(name), collected().importance(name)
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_entries_of_newer_versions_are_ignored(tmp_path: Path) -> None:
    """Sums of inputs and other statistics beside those that are used."""
    path = tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a", "b"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 64)
    for name, inputs in collected().inputs.items():
        writer.add_tensor(f"{name}.in_sum", -inputs.squares.numpy())
        writer.add_tensor(f"{name}.in_sum2", inputs.squares.numpy()[None])
        writer.add_tensor(f"{name}.counts", np.array([[128]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    imatrix = read_imatrix(path, DECODER)
    assert imatrix.datasets == ("a", "b")
    for name, inputs in collected().inputs.items():
        assert torch.equal(imatrix.inputs[name].squares, inputs.squares)


def test_llama_cpp_quantizes_with_a_written_imatrix(tmp_path: Path) -> None:
    """Its bytes are those of its own C for these weights and this importance."""
    write_imatrix(tmp_path / "i.gguf", collected())
    importance = means(read_imatrix(tmp_path / "i.gguf", DECODER))
    source, target = converted(tmp_path, "F32"), tmp_path / "theirs.gguf"
    llama_quantize(source, target, "Q4_K_S", importance)
    stored = {t.name: t for t in gguf.GGUFReader(target).tensors}
    weights = {t.name: t for t in gguf.GGUFReader(source).tensors}
    for name in ("blk.1.attn_q.weight", "blk.1.ffn_up.weight", "output.weight"):
        rows, kind = np.ascontiguousarray(weights[name].data), stored[name].tensor_type.name
        expected = ggml.quantize(kind, rows, importance[name])
        assert np.array_equal(stored[name].data, expected), name
        assert not np.array_equal(expected, ggml.quantize(kind, rows)), name


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists"):
        write_imatrix(path, collected())
    assert path.read_bytes() == b"precious"
    path.unlink()
    write_imatrix(path, collected())
    assert read_imatrix(path, DECODER).sha256 == collected().sha256
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_imatrix(tmp_path / "file" / "imatrix.gguf", collected())
