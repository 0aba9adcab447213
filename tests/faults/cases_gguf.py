"""Broken and hostile GGUF files: what llama.cpp and gguf-py crash on, and what they would obey."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from tests.faults.cases_zip import change_bytes, pack
from tests.faults.matrix import Case, Damage
from tests.support.gguf_bytes import file_start, metadata_entry, string

__all__ = ["BY_HEADERS", "GGUFS"]

GGUF = ("inspect", "verify", "generate", "to-hf", "quantize")
BY_HEADERS = {"verify": 4}
"""`verify` reads such a file, reports what is wrong with it, and exits with 4."""


def change_value(key: bytes, kind: str, value: Any, skip: int = 4) -> Damage:
    """Write a value under a metadata key; `skip` is 4, or 0 to write over the type instead."""

    def change(data: bytearray) -> None:
        pack(data, data.index(string(key)) + 8 + len(key) + skip, kind, value)

    return change_bytes("", change)


def replace_by_pipe(path: Path) -> None:
    """Put a named pipe in the place of the file."""
    path.unlink()
    os.mkfifo(path)


def add_entries(*pairs: bytes) -> Damage:
    """Add metadata entries, and one that pads them, so that tensors stay aligned."""

    def change(data: bytearray) -> None:
        more = b"".join(pairs)
        filler = -(len(more) + len(metadata_entry(b"general.filler", 8, string(b"")))) % 32
        more += metadata_entry(b"general.filler", 8, string(b"x" * filler))
        pack(data, 16, "<Q", struct.unpack_from("<Q", data, 16)[0] + len(pairs) + 1)
        data[24:24] = more

    return change_bytes("", change)


def write_file(raw: bytes) -> Damage:
    return lambda path: path.write_bytes(raw)


def change_tensor_info(
    name: bytes, offset: int, kind: int | None = None, shape: int | None = None
) -> Damage:
    """Add to the offset of a two-dimensional tensor; replace its type or its first dimension."""

    def change(data: bytearray) -> None:
        place = data.index(string(name)) + 8 + len(name) + 4
        if shape is not None:
            pack(data, place, "<Q", shape)
        if kind is not None:
            pack(data, place + 16, "<I", kind)
        (old,) = struct.unpack_from("<Q", data, place + 20)
        pack(data, place + 20, "<Q", old + offset)

    return change_bytes("", change)


def gguf_case(damage: Damage, message: str = "not a valid GGUF file", **options: Any) -> Case:
    return Case("gguf", damage, message, "source.gguf", **({"commands": GGUF} | options))


def runtime_case(damage: Damage, message: str) -> Case:
    """A file that `generate` refuses to run and whose headers `verify` reports."""
    return gguf_case(damage, message, commands=("generate", "verify"), codes=BY_HEADERS)


def number_case(key: bytes, number: int, message: str) -> Case:
    return gguf_case(change_value(key, "<I", number), message, codes=BY_HEADERS)


WTE = b"token_embd.weight"
GGUFS: dict[str, Case] = {
    "empty": gguf_case(write_file(b"")),
    "git-lfs pointer": gguf_case(
        write_file(b"version https://git-lfs.github.com/spec/v1\n"), "it is a git-lfs pointer"
    ),
    "magic only": gguf_case(write_file(b"GGUF")),
    "43 bytes": gguf_case(
        write_file(file_start(0, 1) + metadata_entry(b"k", 9, struct.pack("<IQ", 9, 1 << 60))[:19])
    ),
    "2^63 tensors": gguf_case(write_file(file_start(1 << 63, 0))),
    "2^63 entries": gguf_case(write_file(file_start(0, 1 << 63))),
    "a key of 2^63": gguf_case(write_file(file_start(0, 1) + struct.pack("<Q", 1 << 63) + b"k")),
    "a string of 2^40": gguf_case(
        write_file(file_start(0, 1) + metadata_entry(b"k", 8, struct.pack("<Q", 1 << 40)))
    ),
    "an array of 2^62": gguf_case(
        write_file(file_start(0, 1) + metadata_entry(b"k", 9, struct.pack("<IQ", 10, 1 << 62)))
    ),
    "arrays in arrays": gguf_case(
        write_file(
            file_start(0, 1)
            + string(b"k")
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 100_000
        )
    ),
    "four million strings": gguf_case(
        write_file(
            file_start(0, 1)
            + metadata_entry(b"k", 9, struct.pack("<IQ", 8, 4_000_000))
            + bytes(32_000_000)
        )
    ),
    "big-endian": gguf_case(change_bytes("", lambda d: pack(d, 4, ">I", 3))),
    "version 1": gguf_case(change_bytes("", lambda d: pack(d, 4, "<I", 1))),
    "truncated": gguf_case(lambda p: os.truncate(p, p.stat().st_size - 100)),
    "cut in its header": gguf_case(lambda p: os.truncate(p, 5000)),
    "trailing bytes": gguf_case(change_bytes("", lambda d: d + b"x" * 64)),
    "an offset beyond the file": gguf_case(change_tensor_info(WTE, 1 << 60)),
    "overlap": gguf_case(change_tensor_info(b"output.weight", -64)),
    "an offset that is not aligned": gguf_case(change_tensor_info(b"output.weight", 1)),
    "an unknown type": gguf_case(change_tensor_info(WTE, 0, kind=99)),
    "a shape that overflows": gguf_case(change_tensor_info(WTE, 0, shape=1 << 60)),
    "another shape": gguf_case(change_tensor_info(WTE, 0, shape=32), "is at offset|shape|is \\["),
    "a tensor twice": gguf_case(
        change_bytes("", lambda d: d.replace(b"blk.0.attn_q.bias", b"blk.0.attn_k.bias"))
    ),
    "a key twice": gguf_case(
        change_bytes("", lambda d: d.replace(string(b"general.type"), string(b"general.name")))
    ),
    "another architecture": gguf_case(
        change_bytes("", lambda d: d.replace(string(b"phi2"), string(b"phi3"))),
        "architecture",
        codes=BY_HEADERS,
    ),
    "a million layers": number_case(b"phi2.block_count", 1_000_000, "layers do not fit"),
    "no heads": number_case(b"phi2.attention.head_count", 0, "head_count is 0"),
    "heads that do not divide": number_case(b"phi2.attention.head_count", 3, "head_count"),
    "a context of 2^31": number_case(b"phi2.context_length", (1 << 31) - 1, "n_positions"),
    "a width for text": gguf_case(
        change_value(b"phi2.embedding_length", "<I", 7, skip=0), "GGUF|embedding"
    ),
    "an end of text beyond the tokens": gguf_case(
        change_value(b"tokenizer.ggml.eos_token_id", "<I", 1 << 20),
        "eos_token_id is",
        codes=BY_HEADERS,
    ),
    "a tokenizer of another kind": gguf_case(
        change_bytes("", lambda d: d.replace(string(b"gpt-2"), string(b"llama"))),
        "CodeGen's is 'gpt-2'",
        codes=BY_HEADERS,
    ),
    "token types of 8 bits": gguf_case(
        change_value(b"tokenizer.ggml.token_type", "<I", 1), "GGUF|token_type"
    ),
    "a pipe": gguf_case(replace_by_pipe, "no such|no checkpoint|not an artefact"),
    "half a GGUF, half a pickle": gguf_case(
        write_file(b"GGUF" + b"\x80\x02cos\nsystem\n(X\1\0\0\0atR.")
    ),
    "an alignment of 8 bits": gguf_case(
        add_entries(metadata_entry(b"general.alignment", 0, b"\x20"))
    ),
    "keys that llama.cpp obeys": runtime_case(
        add_entries(metadata_entry(b"phi2.rope.scaling.type", 8, string(b"endless"))),
        "is not CodeGen's",
    ),
    "a template that is no text": gguf_case(
        add_entries(metadata_entry(b"tokenizer.chat_template", 4, struct.pack("<I", 7))),
        "tokenizer.chat_template is not a text",
        codes={"verify": 4},  # settings compare it before a runtime is asked
    ),
    "a template without end": gguf_case(
        add_entries(metadata_entry(b"tokenizer.chat_template", 8, string(b"{" * (1 << 20) + b"{"))),
        "more than 1,048,576 characters",
        commands=("generate",),
    ),
    "parts that lie elsewhere": gguf_case(
        add_entries(metadata_entry(b"split.count", 2, struct.pack("<H", 2))),
        "is one part of a model that is split",
        commands=("generate",),
    ),
    "a name that drives a terminal": Case(
        "gguf",
        add_entries(metadata_entry(b"general.author", 8, string(b"\x1b]0;x\x07"))),
        "",
        "",
        ("inspect",),
        0,
    ),
}
