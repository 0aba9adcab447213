"""GGUF files of other programs: split by gguf's own writer, packed, or made by llama.cpp."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.read import describe, read
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor_names import CODEGEN, named_tensors
from tests.support.gguf_models import converted

Change = Callable[[str, np.ndarray], dict[str, np.ndarray]]


def copied(source: Path, target: Path, change: Change | None = None, **options: Any) -> Path:
    """Write a GGUF again with gguf's own writer, which can split it; returns the first file."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "phi2", **options)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *inner = field.types
        writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    packed: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        packed |= change(tensor.name, tensor.data) if change else {tensor.name: tensor.data}
    for name, data in packed.items():
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(target.parent.glob(f"{target.stem}*.gguf"))


def assert_equal(first: Checkpoint, second: Checkpoint) -> None:
    expected = {t.name: t.tensor for t in named_tensors(first.decoder, CODEGEN, mp_num=4)}
    for name, _, _, tensor in named_tensors(second.decoder, CODEGEN, mp_num=4):
        assert torch.equal(tensor.read(), expected[name].read()), name
    assert first.tokenizer == second.tokenizer


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return converted(tmp_path / "whole")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same model in three files or more."""
    (tmp_path / "split").mkdir()
    copied(whole, tmp_path / "split" / "model.gguf", split_max_tensors=12)
    return sorted((tmp_path / "split").iterdir())


def test_parts_are_read_as_one_model(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    assert len(parts) > 2
    for number, part in enumerate(parts):
        buffer = ctypes.create_string_buffer(500)
        prefix = str(part.parent / "model").encode()
        llama_cpp.llama_split_path(buffer, 500, prefix, number, len(parts))
        assert Path(buffer.value.decode()) == part  # llama.cpp's own name
    expected = read(str(whole))
    for path in (parts[0], parts[-1], parts[0].parent):
        checkpoint = read(str(path))
        assert_equal(expected, checkpoint)
        assert checkpoint.files == tuple(parts)
        assert len(describe(str(path)).tensors) == len(describe(str(whole)).tensors)
    result = cgconvert.to_gguf(parts[0], tmp_path / "again.gguf")
    again = cgconvert.to_gguf(whole, tmp_path / "whole.gguf")
    assert result.path.read_bytes() == again.path.read_bytes()
    assert len(result.manifest.source["files"]) == len(parts)


def test_a_first_part_without_tensors(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    first = copied(
        whole, tmp_path / "split" / "model.gguf", split_max_tensors=20, small_first_shard=True
    )
    assert_equal(read(str(whole)), read(str(first)))


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for path in (parts[0], parts[2]):
        with pytest.raises(InputError, match=rf"{re.escape(str(path))}: is a part .*of which "
                                             r"model-00002-of-\d+\.gguf is missing"):  # fmt: skip
            read(str(path))


def test_a_renamed_part_is_refused(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(InputError, match=r"its name does not say which; rename the parts as"):
        read(str(renamed))


def test_parts_of_different_models(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    swapped = parts[1].read_bytes()
    shutil.copy(parts[2], parts[1])
    with pytest.raises(InputError, match=r"00002-of-.*: is part 2 of \d by its metadata, not 1 of"):
        read(str(parts[0]))
    parts[1].write_bytes(swapped)
    data = parts[0].read_bytes()
    key = b"split.tensors.count\x05\0\0\0"
    position = data.index(key) + len(key)
    parts[0].write_bytes(data[:position] + b"\x07" + data[position + 1 :])
    with pytest.raises(InputError, match=r"its parts have \d+ tensors, split.tensors.count is 7"):
        read(str(parts[0]))


@pytest.mark.parametrize("key", ["split.count", "split.no", "split.tensors.count"])
@pytest.mark.parametrize("value", [[1, 2], "3", 1.5, True, -1, 65535])
def test_metadata_of_parts_that_make_no_sense(
    key: str, value: Any, whole: Path, tmp_path: Path
) -> None:
    """One file that says that it is a part: a false number is an error, or no number."""
    values = {"split.no": 0, "split.count": 1, "split.tensors.count": 26} | {key: value}
    target = tmp_path / "model-00001-of-65535.gguf"
    writer = gguf.GGUFWriter(target, "phi2")
    for name, number in values.items():
        if isinstance(number, list):
            writer.add_array(name, number)
        else:
            kind = {str: "STRING", float: "FLOAT32", bool: "BOOL", int: "INT32"}[type(number)]
            writer.add_key_value(name, number, getattr(gguf.GGUFValueType, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError) as caught:
        read(str(target))
    if (key, value) == ("split.count", 65535):
        assert "model-00002-of-65535.gguf, model-00003-of-65535.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_split_model_is_no_artefact_to_run(parts: list[Path]) -> None:
    merge = r"merge the parts with 'llama-gguf-split --merge model-00001-of-\d+\.gguf model-merged"
    with pytest.raises(InputError, match=merge):
        next(cgconvert.stream_generate(parts[0], "x"))
    with pytest.raises(InputError, match=merge):
        cgconvert.verify(parts[1], reference="codegen-tiny-mono")


def test_packed_q_k_and_v(whole: Path, tmp_path: Path) -> None:
    """Other converters store one tensor, as the first files of phi2 had."""
    kept: dict[str, list[np.ndarray]] = {}

    def pack(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        match = re.fullmatch(r"(blk\.\d+)\.attn_([qkv])\.(weight|bias)", name)
        if match is None:
            return {name: data}
        packed = kept.setdefault(f"{match[1]}.attn_qkv.{match[3]}", [])
        packed.append(data)
        name = f"{match[1]}.attn_qkv.{match[3]}"
        return {name: np.concatenate(packed)} if len(packed) == 3 else {}

    target = copied(whole, tmp_path / "packed.gguf", pack)
    assert "blk.1.attn_qkv.weight" in {tensor.name for tensor in gguf.GGUFReader(target).tensors}
    assert_equal(read(str(whole)), read(str(target)))


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_a_file_that_llama_quantize_wrote(kind: str, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "quantized.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = {"F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
                        "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16}[kind]  # fmt: skip
    code = llama_cpp.llama_model_quantize(
        str(whole).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    assert code == 0
    checkpoint, expected = read(str(target)), read(str(whole))
    assert checkpoint.tokenizer == expected.tokenizer
    head = expected.decoder.head.read().float()
    rounded = head.bfloat16().float() if kind == "BF16" else head
    assert torch.equal(checkpoint.decoder.head.read().float(), rounded)
