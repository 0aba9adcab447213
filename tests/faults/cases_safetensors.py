"""Broken and hostile safetensors headers, indexes and JSON files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.faults.matrix import Case, Damage

__all__ = ["SAFETENSORS", "edit_json", "write_file"]

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
NAME = "transformer.ln_f.weight"

Table = dict[str, Any]


def rewrite_file(change: Callable[[bytes, bytes], bytes]) -> Damage:
    """Write the file again from a function of its header and its data."""

    def damage(source: Path) -> None:
        raw = (source / FILE).read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        (source / FILE).write_bytes(change(raw[8 : 8 + length], raw[8 + length :]))

    return damage


def with_header(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def change_header(change: Callable[[Table], object]) -> Damage:
    """Change the header, parsed from JSON."""

    def rewrite(text: bytes, data: bytes) -> bytes:
        table = json.loads(text)
        change(table)
        return with_header(json.dumps(table).encode(), data)

    return rewrite_file(rewrite)


def replace_in_header(old: bytes, new: bytes) -> Damage:
    return rewrite_file(lambda text, data: with_header(text.replace(old, new), data))


def replace_header(text: bytes) -> Damage:
    return rewrite_file(lambda _, data: with_header(text, data))


def change_entry(change: Callable[[Table], object]) -> Damage:
    return change_header(lambda table: change(table[NAME]))


def move_tensor(by: int) -> Damage:
    return change_entry(
        lambda entry: entry.update(data_offsets=[n + by for n in entry["data_offsets"]])
    )


def edit_json(file: str, change: Callable[[Table], object]) -> Damage:
    """Change a parsed JSON file in place, or replace it by what `change` returns."""

    def damage(source: Path) -> None:
        path = source / file
        table = json.loads(path.read_text())
        path.write_text(json.dumps(change(table) or table))

    return damage


def write_file(file: str, content: bytes | str) -> Damage:
    raw = content.encode() if isinstance(content, str) else content
    return lambda source: (source / file).write_bytes(raw)


def header_case(damage: Damage, message: str) -> Case:
    return Case("safetensors", damage, message, FILE)


def truncate_to(size: int) -> Damage:
    return lambda source: os.truncate(source / FILE, size)


def put_in_both_shards(source: Path) -> None:
    """Let both shards hold the same tensors."""
    raw = (source / FIRST).read_bytes()
    (source / SECOND).write_bytes(raw)


def swap_shards(table: Table) -> None:
    places = table["weight_map"]
    for name in places:
        places[name] = SECOND if places[name] == FIRST else FIRST


HEADERS: dict[str, Case] = {
    "empty file": header_case(write_file(FILE, b""), "not a safetensors file"),
    "seven bytes": header_case(write_file(FILE, bytes(7)), "not a safetensors file"),
    "git-lfs pointer": header_case(
        write_file(FILE, b"version https://git-lfs.github.com/x\n"), "it is a git-lfs pointer"
    ),
    "a header of 2^64": header_case(
        rewrite_file(lambda t, d: b"\xff" * 8 + t + d), "its header would be longer"
    ),
    "a header of 101 MB": header_case(
        lambda s: (
            write_file(FILE, struct.pack("<Q", 101 << 20) + b"{")(s),
            truncate_to(102 << 20)(s),
        ),
        "its header would be longer",
    ),
    "a header of 4 MB of nothing": header_case(
        replace_header(b"{" + b'"a":{},' * 550_000 + b'"b":1}'), "duplicate key"
    ),
    "a header of 300,000 names": header_case(
        replace_header(b"{" + b",".join(b'"%x":{}' % i for i in range(300_000)) + b"}"),
        "300,000 parts",
    ),
    "a header cut short": header_case(
        rewrite_file(lambda t, d: struct.pack("<Q", len(t) - 5) + t + d), "not valid JSON"
    ),
    "a header that is no JSON": header_case(replace_header(b"\x80\x02}."), "not UTF-8"),
    "a header that is a list": header_case(replace_header(b"[]"), "not a JSON object"),
    "brackets in brackets": header_case(
        replace_header(b'{"a":' + b"[" * 1_000_000), "not valid JSON"
    ),
    "a number of a million digits": header_case(
        replace_header(b'{"a":' + b"9" * 1_000_000 + b"}"), "JSON"
    ),
    "NaN for an offset": header_case(
        change_entry(lambda e: e.update(data_offsets=[float("nan"), 4])), "NaN"
    ),
    "overlap": header_case(move_tensor(-4), "overlaps another"),
    "hole": header_case(move_tensor(4), "overlaps another|hole"),
    "truncated": header_case(
        lambda s: os.truncate(s / FILE, (s / FILE).stat().st_size - 1), "truncated"
    ),
    "trailing bytes": header_case(
        rewrite_file(lambda t, d: with_header(t, d + b"x")), "trailing bytes"
    ),
    "bytes before the first": header_case(
        rewrite_file(lambda t, d: with_header(t, b"x" * 8 + d)), "trailing bytes"
    ),
    "a name twice": header_case(
        replace_in_header(b"transformer.ln_f.bias", NAME.encode()), "duplicate key"
    ),
    "a shape that overflows": header_case(
        change_entry(lambda e: e.update(shape=[1 << 32, 1 << 32])), NAME
    ),
    "a shape of 100,000 dimensions": header_case(
        change_entry(lambda e: e.update(shape=[1 << 40] * 100_000)), "impossible shape"
    ),
    "a negative shape": header_case(
        change_entry(lambda e: e.update(shape=[-8, -8])), "impossible shape"
    ),
    "half a dimension": header_case(
        change_entry(lambda e: e.update(shape=[64.0])), "impossible shape"
    ),
    "a truth for a dimension": header_case(
        change_entry(lambda e: e.update(shape=[True])), "impossible shape"
    ),
    "text for a dimension": header_case(
        change_entry(lambda e: e.update(shape=["64"])), "impossible shape"
    ),
    "a negative offset": header_case(move_tensor(-(1 << 40)), "impossible shape or place"),
    "an offset beyond the end": header_case(move_tensor(1 << 50), "hole|overlaps"),
    "offsets the wrong way round": header_case(
        change_entry(lambda e: e.update(data_offsets=e["data_offsets"][::-1])), NAME
    ),
    "three offsets": header_case(
        change_entry(lambda e: e.update(data_offsets=[0, 1, 2])), "no sense"
    ),
    "an unknown type": header_case(change_entry(lambda e: e.update(dtype="F8_E9M9")), "no sense"),
    "a type of fewer bytes": header_case(
        change_entry(lambda e: e.update(dtype="F8_E4M3")), "bytes of data"
    ),
    "a type of half a byte": header_case(
        change_entry(lambda e: e.update(dtype="F4")), r"is quantized \(F4\).*not supported"
    ),
    "a list for a type": header_case(change_entry(lambda e: e.update(dtype=["F32"])), "no sense"),
    "text for a tensor": header_case(change_header(lambda t: t.update({NAME: "F32"})), "no sense"),
    "metadata that are none": header_case(
        change_header(lambda t: t.update(__metadata__=[1])), "__metadata__"
    ),
    "a name that drives a terminal": header_case(
        change_header(lambda t: t.update({"\x1b]0;x\x07\n\ud800": 1})), r"\\x1b"
    ),
}


def index_case(damage: Damage, message: str, file: str = INDEX) -> Case:
    return Case("safetensors-sharded", damage, message, file)


def place_in_shard(shard: Any) -> Damage:
    return edit_json(INDEX, lambda t: t["weight_map"].update({NAME: shard}))


INDEXES: dict[str, Case] = {
    "a shard is missing": index_case(lambda s: (s / SECOND).unlink(), "which is not there"),
    "a shard in the parent folder": index_case(
        place_in_shard("../valid/model.safetensors"), "outside"
    ),
    "a shard by an absolute path": index_case(place_in_shard("/etc/passwd"), "outside"),
    "a shard by a Windows path": index_case(place_in_shard("..\\x.safetensors"), "outside"),
    "a hidden shard": index_case(place_in_shard(".safetensors"), "outside"),
    "a number for a shard": index_case(place_in_shard(5), "not text"),
    "a tensor in two shards": index_case(put_in_both_shards, "in another shard too", SECOND),
    "tensors in the other shard": index_case(
        edit_json(INDEX, swap_shards), "which does not contain it"
    ),
    "a tensor that no shard has": index_case(
        edit_json(INDEX, lambda t: t["weight_map"].update(other=FIRST)), "which does not contain it"
    ),
    "no weight_map": index_case(edit_json(INDEX, lambda t: {"metadata": {}}), "no weight_map"),
    "a list for the weight_map": index_case(
        edit_json(INDEX, lambda t: {"weight_map": [1]}), "weight_map"
    ),
}

JSON: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "half": (b'{"n_layer": 1,', "not valid JSON"),
    "a list": (b"[1]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "a key twice": (b'{"n_layer": 1, "n_layer": 2}', "duplicate key in a JSON object, line 1"),
    "a key twice, inside": (b'{"a": {"b": 1, "b": 2}}', "duplicate key in a JSON object, line 1"),
    "NaN": (b'{"layer_norm_epsilon": NaN}', "it contains NaN"),
    "Infinity": (b'{"layer_norm_epsilon": -Infinity}', "it contains -Infinity"),
    "brackets in brackets": (b'{"a":' * 200_000, "not valid JSON"),
    "a number of a million digits": (b'{"n_layer": ' + b"9" * 1_000_000 + b"}", "not valid JSON"),
    "UTF-16": ('{"n_layer": 1}'.encode("utf-16"), "not UTF-8"),
    "bytes of no encoding": (b"\xff\xfe\xfd", "not UTF-8"),
    "5 MB": (b"{" + b" " * (5 << 20) + b"}", "too large"),
    "16 MB of objects": (b'{"a":[' + b"{}," * 5_500_000 + b"{}]}", "too large"),
    "4 MB of objects": (b'{"a":[' + b"{}," * 1_390_000 + b"{}]}", "is missing|model_type"),
}


def config_as_pipe(source: Path) -> None:
    (source / "config.json").unlink()
    os.mkfifo(source / "config.json")


def config_as_folder(source: Path) -> None:
    (source / "config.json").unlink()
    (source / "config.json").mkdir()


SAFETENSORS: dict[str, Case] = {
    **{f"safetensors: {name}": value for name, value in HEADERS.items()},
    **{f"index: {name}": value for name, value in INDEXES.items()},
    **{
        f"config: {name}": Case(
            "safetensors", write_file("config.json", raw), message, "config.json"
        )
        for name, (raw, message) in JSON.items()
    },
    "config: missing": Case(
        "torch", lambda s: (s / "config.json").unlink(), "cannot be read", "config.json"
    ),
    "config: a pipe": Case("torch", config_as_pipe, "not a regular file", "config.json"),
    "config: a folder": Case("torch", config_as_folder, "not a regular file", "config.json"),
}
