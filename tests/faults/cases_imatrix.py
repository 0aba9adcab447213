"""imatrix files that are broken, hostile or of another model, with the expected messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from cgconvert.formats.gguf.imatrix import Imatrix, InputStatistics, encoded
from tests.support.imatrices import legacy

__all__ = ["IMATRICES", "MakeFile"]

MakeFile = Callable[[Imatrix], bytes]
"""Returns the bytes of a broken file, made from a valid imatrix of the model."""

Q, DOWN, HEAD = "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"


def change_inputs(
    name: str, change: Callable[[InputStatistics], InputStatistics]
) -> Callable[[Imatrix], Imatrix]:
    """Replace the entry of a matrix."""
    return lambda imatrix: replace(
        imatrix, inputs={**imatrix.inputs, name: change(imatrix.inputs[name])}
    )


def change_value(name: str, number: float) -> Callable[[Imatrix], Imatrix]:
    def change(old_inputs: InputStatistics) -> InputStatistics:
        squares = old_inputs.squares.clone()
        squares[5] = number
        return replace(old_inputs, squares=squares)

    return change_inputs(name, change)


def change_count(name: str, number: int) -> Callable[[Imatrix], Imatrix]:
    return change_inputs(name, lambda old_inputs: replace(old_inputs, count=number))


def double_width(name: str) -> Callable[[Imatrix], Imatrix]:
    return change_inputs(
        name,
        lambda old_inputs: InputStatistics(torch.cat([old_inputs.squares] * 2), old_inputs.count),
    )


def without(*names: str) -> Callable[[Imatrix], Imatrix]:
    return lambda imatrix: replace(
        imatrix, inputs={name: i for name, i in imatrix.inputs.items() if name not in names}
    )


def rename(name: str, new_name: str) -> Callable[[Imatrix], Imatrix]:
    def change(imatrix: Imatrix) -> Imatrix:
        return replace(
            without(name)(imatrix), inputs={**imatrix.inputs, new_name: imatrix.inputs[name]}
        )

    return change


def add_layer(imatrix: Imatrix) -> Imatrix:
    more = {name.replace("blk.0", "blk.1"): i for name, i in imatrix.inputs.items()}
    return replace(imatrix, inputs={**imatrix.inputs, **more})


def gguf_file(change: Callable[[Imatrix], Imatrix]) -> MakeFile:
    return lambda imatrix: encoded(change(imatrix))


def dat_file(change: Callable[[Imatrix], Imatrix]) -> MakeFile:
    return lambda imatrix: legacy(change(imatrix))


def replace_bytes(before: bytes, after: bytes) -> MakeFile:
    """Replace bytes of the GGUF file by as many others."""
    assert len(before) == len(after)
    return lambda imatrix: encoded(imatrix).replace(before, after, 1)


def dat_entry(length: int, name: bytes, calls: int, values: int) -> bytes:
    return struct.pack("<ii", 1, length) + name + struct.pack("<ii", calls, values) + b"\0" * 8


def constant(raw: bytes) -> MakeFile:
    return lambda _: raw


BOTH: Mapping[str, tuple[Callable[[Imatrix], Imatrix], str]] = {
    "NaN": (change_value(Q, float("nan")), rf"1 of {Q}'s 64 values are NaN or infinite"),
    "infinite": (change_value(HEAD, float("inf")), rf"{HEAD}'s 64 values are NaN or infinite"),
    "negative": (change_value(DOWN, -1.0), rf"1 of {DOWN}'s 256 values are negative"),
    "nothing collected": (change_count(Q, 0), rf"{Q} has a count of 0"),
    "another width": (
        double_width(DOWN),
        rf"another model's imatrix: {DOWN} has 512 values, .* has 256 columns",
    ),
    "another width of the head": (double_width(HEAD), rf"{HEAD} has 128 values, .* has 64 columns"),
    "more layers": (add_layer, r"another model's imatrix: the model has no blk\.1\..* and 3 more"),
    "one missing": (without(Q), rf"has none of 1 of the model's 6 matrices: {Q};"),
    "some missing": (
        without(Q, DOWN, "blk.0.attn_v.weight", "blk.0.ffn_up.weight"),
        r"none of 4 of the model's 6 matrices: .* and 1 more",
    ),
}
"""Faults that both file formats can have."""

IMATRICES: Mapping[str, tuple[MakeFile, str]] = {
    **{f"{name}, GGUF": (gguf_file(change), message) for name, (change, message) in BOTH.items()},
    **{f"{name}, .dat": (dat_file(change), message) for name, (change, message) in BOTH.items()},
    "empty": (constant(b""), "is empty"),
    "text": (constant(b"def f(x):\n    return x\n" * 9), "no imatrix, neither GGUF nor .dat"),
    "rubbish": (constant(bytes(range(256)) * 9), "no imatrix, neither GGUF nor .dat"),
    "zeros": (constant(bytes(4096)), "it would have no entries"),
    "GGUF and rubbish": (constant(b"GGUF" + bytes(range(256))), "not a valid GGUF file"),
    "a model": (replace_bytes(b"imatrix", b"adapter"), "GGUF of type 'adapter', not an imatrix"),
    "truncated GGUF": (lambda i: encoded(i)[:-600], "it ends in tensor"),
    "no counts": (
        replace_bytes(Q.encode() + b".counts", Q.encode() + b".countz"),
        "and no .*counts",
    ),
    "no sums": (
        replace_bytes(Q.encode() + b".in_sum2", Q.encode() + b".in_sum3"),
        "and no .*in_sum2",
    ),
    "no number of chunks": (
        replace_bytes(b"chunk_count", b"chunk_kount"),
        "chunk_count is missing",
    ),
    "no texts": (replace_bytes(b"imatrix.datasets", b"imatrix.datazets"), "datasets is missing"),
    "count of NaN": (
        lambda i: encoded(change_count(Q, 1 << 30)(i)).replace(
            struct.pack("<f", 1 << 30), struct.pack("<f", float("nan"))
        ),
        f"{Q} has a count of nan",
    ),
    "without a matrix": (
        lambda i: encoded(i).replace(b".in_sum2", b".in_sumx").replace(b".counts", b".countx"),
        "an imatrix without a matrix",
    ),
    "truncated .dat": (lambda i: legacy(i)[:-700], "it ends inside"),
    "bytes after its end": (lambda i: legacy(i) + b"x", "1 bytes follow its end"),
    "a matrix twice": (
        lambda i: legacy(i).replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"),
        "is there twice",
    ),
    "a negative number of entries": (constant(struct.pack("<i", -1)), "would have no entries"),
    "a name without end": (
        constant(dat_entry(1 << 30, b"x", 1, 2)),
        "would be 1073741824 bytes long",
    ),
    "a name of no length": (constant(dat_entry(0, b"", 1, 2)), "name of entry 0 is empty"),
    "a name of negative length": (constant(dat_entry(-5, b"", 1, 2)), "would be -5 bytes long"),
    "a name that is none": (constant(dat_entry(3, b"\x1b[2", 1, 2)), "is not a name"),
    "values without end": (constant(dat_entry(1, b"x", 1, (1 << 31) - 1)), "it ends inside x's"),
    "a negative number of values": (constant(dat_entry(1, b"x", 1, -8)), "x would have -8 values"),
}
