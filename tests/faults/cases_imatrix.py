"""imatrix files that are broken, lie, or are another model's, and what has to be said of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from cgconvert.formats.gguf.imatrix import Imatrix, Inputs
from cgconvert.formats.gguf.imatrix_file import encoded
from tests.support.imatrices import legacy

__all__ = ["IMATRICES", "Made"]

Made = Callable[[Imatrix], bytes]
"""The bytes of a broken file, from a sound imatrix of the model."""

Q, DOWN, HEAD = "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"


def inputs(name: str, change: Callable[[Inputs], Inputs]) -> Callable[[Imatrix], Imatrix]:
    """Another entry under a name."""
    return lambda sound: replace(sound, inputs={**sound.inputs, name: change(sound.inputs[name])})


def value(name: str, number: float) -> Callable[[Imatrix], Imatrix]:
    def change(found: Inputs) -> Inputs:
        squares = found.squares.clone()
        squares[5] = number
        return replace(found, squares=squares)

    return inputs(name, change)


def count(name: str, number: int) -> Callable[[Imatrix], Imatrix]:
    return inputs(name, lambda found: replace(found, count=number))


def longer(name: str) -> Callable[[Imatrix], Imatrix]:
    return inputs(name, lambda found: Inputs(torch.cat([found.squares] * 2), found.count))


def without(*names: str) -> Callable[[Imatrix], Imatrix]:
    return lambda sound: replace(
        sound, inputs={name: i for name, i in sound.inputs.items() if name not in names}
    )


def renamed(name: str, other: str) -> Callable[[Imatrix], Imatrix]:
    def change(sound: Imatrix) -> Imatrix:
        return replace(without(name)(sound), inputs={**sound.inputs, other: sound.inputs[name]})

    return change


def deeper(sound: Imatrix) -> Imatrix:
    more = {name.replace("blk.0", "blk.1"): i for name, i in sound.inputs.items()}
    return replace(sound, inputs={**sound.inputs, **more})


def new(change: Callable[[Imatrix], Imatrix]) -> Made:
    return lambda sound: encoded(change(sound))


def old(change: Callable[[Imatrix], Imatrix]) -> Made:
    return lambda sound: legacy(change(sound))


def swapped(before: bytes, after: bytes) -> Made:
    """The GGUF with some bytes for others of the same number."""
    assert len(before) == len(after)
    return lambda sound: encoded(sound).replace(before, after, 1)


def entry(length: int, name: bytes, calls: int, values: int) -> bytes:
    return struct.pack("<ii", 1, length) + name + struct.pack("<ii", calls, values) + b"\0" * 8


def fixed(raw: bytes) -> Made:
    return lambda _: raw


BOTH: Mapping[str, tuple[Callable[[Imatrix], Imatrix], str]] = {
    "NaN": (value(Q, float("nan")), rf"1 of {Q}'s 64 values are NaN or infinite"),
    "infinite": (value(HEAD, float("inf")), rf"{HEAD}'s 64 values are NaN or infinite"),
    "negative": (value(DOWN, -1.0), rf"1 of {DOWN}'s 256 values are negative"),
    "nothing collected": (count(Q, 0), rf"{Q} has a count of 0"),
    "another width": (
        longer(DOWN), rf"another model's imatrix: {DOWN} has 512 values, .* has 256 columns"
    ),
    "another width of the head": (longer(HEAD), rf"{HEAD} has 128 values, .* has 64 columns"),
    "more layers": (deeper, r"another model's imatrix: the model has no blk\.1\..* and 3 more"),
    "one missing": (without(Q), rf"has none of 1 of the model's 6 matrices: {Q};"),
    "some missing": (
        without(Q, DOWN, "blk.0.attn_v.weight", "blk.0.ffn_up.weight"),
        r"none of 4 of the model's 6 matrices: .* and 1 more",
    ),
}  # fmt: skip
"""In either format."""

IMATRICES: Mapping[str, tuple[Made, str]] = {
    **{f"{name}, GGUF": (new(change), says) for name, (change, says) in BOTH.items()},
    **{f"{name}, .dat": (old(change), says) for name, (change, says) in BOTH.items()},
    "empty": (fixed(b""), "is empty"),
    "text": (fixed(b"def f(x):\n    return x\n" * 9), "no imatrix, neither GGUF nor .dat"),
    "rubbish": (fixed(bytes(range(256)) * 9), "no imatrix, neither GGUF nor .dat"),
    "zeros": (fixed(bytes(4096)), "it would have 0 entries"),
    "GGUF and rubbish": (fixed(b"GGUF" + bytes(range(256))), "not a valid GGUF file"),
    "a model": (swapped(b"imatrix", b"adapter"), "GGUF of type 'adapter', not an imatrix"),
    "truncated GGUF": (lambda i: encoded(i)[:-600], "it ends in tensor"),
    "no counts": (swapped(Q.encode() + b".counts", Q.encode() + b".countz"), "and no .*counts"),
    "no sums": (swapped(Q.encode() + b".in_sum2", Q.encode() + b".in_sum3"), "and no .*in_sum2"),
    "no number of chunks": (swapped(b"chunk_count", b"chunk_kount"), "chunk_count is missing"),
    "no texts": (swapped(b"imatrix.datasets", b"imatrix.datazets"), "datasets is missing"),
    "count of NaN": (
        lambda i: encoded(count(Q, 1 << 30)(i)).replace(
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
    "a negative number of entries": (fixed(struct.pack("<i", -1)), "would have -1 entries"),
    "a name without end": (fixed(entry(1 << 30, b"x", 1, 2)), "would be 1073741824 bytes long"),
    "a name of no length": (fixed(entry(0, b"", 1, 2)), "name of entry 0 is empty"),
    "a name of negative length": (fixed(entry(-5, b"", 1, 2)), "would be -5 bytes long"),
    "a name that is none": (fixed(entry(3, b"\x1b[2", 1, 2)), "is not a name"),
    "values without end": (fixed(entry(1, b"x", 1, (1 << 31) - 1)), "it ends inside x's"),
    "a negative number of values": (fixed(entry(1, b"x", 1, -8)), "x would have -8 values"),
}  # fmt: skip
