"""GGUF files as sources, and headers whose word is not to be taken."""

from __future__ import annotations

import functools
import random
import re
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from cgconvert.errors import InputError
from cgconvert.formats.gguf import reader
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.writer import plan
from cgconvert.formats.read import read as read_source
from cgconvert.model.tensor_names import GGUF
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.write.execute import execute
from tests.support.gguf_bytes import file_start, metadata_entry, string, tensor_entry
from tests.support.gguf_models import converted, random_checkpoint


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return functools.partial(converted, tmp_path_factory.mktemp("gguf"))


@pytest.mark.parametrize("type_", ["F32", "F16"])
def test_source_comes_back_bit_by_bit(
    type_: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    path, original = convert(type_, 80), random_checkpoint(80)
    again = read_source(str(path))
    assert (again.name, again.layout, again.files) == (original.name, "gguf", (path,))
    assert again.geometry == replace(original.geometry, mp_num=0)
    assert again.tokenizer == original.tokenizer
    for part in GGUF.model:
        assert _same(getattr(again.decoder, part), getattr(original.decoder, part)), part
    for ours, theirs in zip(again.decoder.layers, original.decoder.layers, strict=True):
        for part in GGUF.layer:
            assert _same(getattr(ours, part), getattr(theirs, part)), part
    output = tmp_path / "again.gguf"
    execute(plan(again, output, type=type_))
    assert output.read_bytes() == path.read_bytes()


def _same(ours: object, theirs: object) -> bool:
    return torch.equal(ours.read().half(), theirs.read())  # type: ignore[attr-defined]


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0", "Q4_1", "Q3_K", "Q4_K_M", "Q5_K", "BF16"])
def test_stored_weights_are_decoded(type_: str, convert: Callable[..., Path]) -> None:
    path = convert(type_)
    tensors = reader.tensors(path, read_header(path))
    for tensor in gguf.GGUFReader(path).tensors:
        ours = tensors[tensor.name]
        theirs = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(ours.read().float(), theirs), tensor.name
        assert torch.equal(ours.read(slice(3, 9)).float(), theirs[3:9])
    q = reader.decoder(path).layers[1].q
    assert torch.equal(q.read(slice(5, 70), slice(7, 90)), q.read()[5:70, 7:90])


def test_a_quantized_file_is_no_source(convert: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"is quantized \(Q8_0\): convert from its source"):
        read_source(str(convert("Q8_0")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"phi2.rope.freq_base", b"phi2.rope.freq_bass", "rope.freq_base is None"),
        (b"phi2.block_count", b"phi2.block_cuont", "block_count is None"),
        (b"tokenizer.ggml.pre", b"tokenizer.ggml.per", "tokenizer.ggml.pre is None"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.margen", "merges is not a list"),
        (b"tokenizer.ggml.token_type", b"tokenizer.ggml.token_tipe", "token_type does not"),
        (b"token_embd.weight", b"token_embd.weighs", "token_embd.weight is missing"),
        (b"blk.1.attn_q.weight", b"blk.3.attn_q.weight", "blk.1.attn_q.weight is missing"),
        (
            b"\x04\0\0\0\0\0\0\0phi2",
            b"\x04\0\0\0\0\0\0\0phi3",
            "is Phi-3 (general.architecture 'phi3')",
        ),
    ],
)
def test_missing_tensors_are_named(
    old: bytes, new: bytes, message: str, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    path = tmp_path / "changed.gguf"
    data = convert().read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        reader.read(path, "x")
    assert "\n" not in str(caught.value)


def test_biases_that_codegen_has_not(tmp_path: Path, convert: Callable[..., Path]) -> None:
    path = tmp_path / "phi.gguf"
    data = bytearray(convert().read_bytes())
    tensor = next(t for t in read_header(convert()).tensors if t.name == "blk.1.attn_k.bias")
    data[tensor.offset : tensor.offset + 4] = struct.pack("<f", 0.5)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"blk.1.attn_k.bias is not zero"):
        reader.read(path, "x")


# Headers that lie


def padded(header: bytes, data: int = 128) -> bytes:
    return header + bytes(-len(header) % 32 + data)


UINT8 = metadata_entry(b"k", 0, b"\1")
HOSTILE = {
    "empty": b"",
    "magic only": b"GGUF",
    "version 1": file_start(0, 0, 1),
    "version 4": file_start(0, 0, 4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors beyond counting": file_start(1 << 62, 0),
    "pairs beyond counting": file_start(0, 1 << 62),
    "pairs that are not there": file_start(0, 3) + UINT8,
    "key length": file_start(0, 1) + struct.pack("<Q", 1 << 63) + b"k",
    "empty key": file_start(0, 1) + metadata_entry(b"", 0, b"\1"),
    "key not ASCII": file_start(0, 1) + metadata_entry("ключ".encode(), 0, b"\1"),
    "key twice": file_start(0, 2) + UINT8 * 2,
    "unknown value type": file_start(0, 1) + metadata_entry(b"k", 13, b"\1"),
    "string not UTF-8": file_start(0, 1) + metadata_entry(b"k", 8, string(b"\xff\xfe")),
    "string length": file_start(0, 1) + metadata_entry(b"k", 8, struct.pack("<Q", 1 << 40)),
    "array length": file_start(0, 1) + metadata_entry(b"k", 9, struct.pack("<IQ", 0, 1 << 60)),
    "array of strings length": file_start(0, 1)
    + metadata_entry(b"k", 9, struct.pack("<IQ", 8, 1 << 60)),
    "array of arrays": file_start(0, 1) + metadata_entry(b"k", 9, struct.pack("<IQ", 9, 1) * 2),
    "truth value": file_start(0, 1) + metadata_entry(b"k", 7, b"\2"),
    "array of truth values": file_start(0, 1)
    + metadata_entry(b"k", 9, struct.pack("<IQ", 7, 2) + b"\1\2"),
    "alignment 0": file_start(0, 1) + metadata_entry(b"general.alignment", 4, struct.pack("<I", 0)),
    "alignment 24": file_start(0, 1)
    + metadata_entry(b"general.alignment", 4, struct.pack("<I", 24)),
    "alignment 2^31": file_start(0, 1)
    + metadata_entry(b"general.alignment", 4, struct.pack("<I", 1 << 31)),
    "alignment text": file_start(0, 1) + metadata_entry(b"general.alignment", 8, string(b"32")),
    "tensors that are not there": file_start(2, 0) + tensor_entry(b"a"),
    "long name": padded(file_start(1, 0) + tensor_entry(b"a" * 64)),
    "name twice": padded(
        file_start(2, 0) + tensor_entry(b"a") + tensor_entry(b"a", offset=128), 256
    ),
    "no dimensions": padded(file_start(1, 0) + tensor_entry(b"a", ())),
    "five dimensions": padded(file_start(1, 0) + tensor_entry(b"a", (1, 1, 1, 1, 32))),
    "dimension 0": padded(file_start(1, 0) + tensor_entry(b"a", (32, 0))),
    "shape overflows": padded(file_start(1, 0) + tensor_entry(b"a", (1 << 32, 1 << 32))),
    "dimension overflows": padded(file_start(1, 0) + tensor_entry(b"a", ((1 << 64) - 1,))),
    "unknown tensor type": padded(file_start(1, 0) + tensor_entry(b"a", kind=4)),
    "tensor type 2^31": padded(file_start(1, 0) + tensor_entry(b"a", kind=1 << 31)),
    "row not of blocks": padded(file_start(1, 0) + tensor_entry(b"a", (33,), kind=8)),
    "overlap": padded(file_start(2, 0) + tensor_entry(b"a") + tensor_entry(b"b", offset=64), 256),
    "hole": padded(file_start(2, 0) + tensor_entry(b"a") + tensor_entry(b"b", offset=160), 320),
    "offset not aligned": padded(
        file_start(2, 0) + tensor_entry(b"a") + tensor_entry(b"b", offset=129), 260
    ),
    "first offset": padded(file_start(1, 0) + tensor_entry(b"a", offset=32), 192),
    "offset beyond the file": padded(file_start(1, 0) + tensor_entry(b"a", offset=1 << 60)),
    "data cut short": padded(file_start(1, 0) + tensor_entry(b"a"), 127),
    "no data": file_start(1, 0) + tensor_entry(b"a"),
    "bytes that follow": padded(file_start(1, 0) + tensor_entry(b"a"), 129),
    "bytes that follow no tensor": file_start(0, 1) + UINT8 + b"\0",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused_in_time(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[kind])
    before = time.process_time()
    with pytest.raises(InputError, match=r"hostile\.gguf: not a valid GGUF file: [^\n]+$"):
        read_header(path)
    with pytest.raises(InputError):
        LlamaCppRuntime.open(path)
    assert time.process_time() - before < 5


def test_valid_headers_are_read(tmp_path: Path) -> None:
    """The pieces the hostile ones are made of are right where they do not lie."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(
        padded(
            file_start(2, 1)
            + UINT8
            + tensor_entry(b"a", (32, 2), 8)
            + tensor_entry(b"b", (4,), offset=96),
            112,
        )
    )
    header = read_header(path)
    assert header.metadata == {"k": 1}
    first, second = header.tensors
    assert (first.shape, first.type, first.offset) == ((2, 32), "Q8_0", header.data_start)
    assert (second.shape, second.type, second.nbytes) == ((4,), "F32", 16)
    for data in (file_start(0, 0), padded(file_start(1, 0) + tensor_entry(b"a", (3,)), 12)):
        path.write_bytes(data)  # no tensors; and nothing after the last one
        read_header(path)


def test_a_header_of_any_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    numbers = bytes(8 << 20)
    with path.open("wb") as file:
        file.write(file_start(0, 5))
        for n in range(5):
            file.write(metadata_entry(b"k%d" % n, 9, struct.pack("<IQ", 0, len(numbers)) + numbers))
    before = time.process_time()
    with pytest.raises(InputError, match="beyond the 32 MiB a header may have"):
        read_header(path)
    assert time.process_time() - before < 10


def test_damaged_headers_never_crash(tmp_path: Path, convert: Callable[..., Path]) -> None:
    data, path = bytearray(convert().read_bytes()), tmp_path / "damaged.gguf"
    header = read_header(convert())
    chance = random.Random(0)
    for _ in range(300):
        copy = bytearray(data[: header.data_start + 4096])
        names = range(header.data_start - 4000, header.data_start)
        for _ in range(chance.choice([1, 4])):
            place = chance.choice([chance.choice(names), chance.randrange(1500)])
            copy[place] = chance.randrange(256)
        path.write_bytes(copy[: chance.choice([None, chance.randrange(len(copy))])])
        with pytest.raises(InputError):
            reader.read(path, "x")
