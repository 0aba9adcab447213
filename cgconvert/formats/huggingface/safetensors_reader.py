"""Reader of safetensors files, one or many with an index.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here and not by the
library because the library accepts duplicate keys, and maps the file unless it is new enough to
be asked not to.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from cgconvert.errors import InputError
from cgconvert.io.strict_json import parse_json
from cgconvert.model.tensor import Stored

__all__ = ["tensors"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

MAX_HEADER_BYTES = 4 << 20
"""A shard of 35,000 tensors has as much; the library allows 100 MB, which take GBs to parse."""
MAX_DIMENSIONS = 8
MAX_BYTES = 1 << 60


def tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of one file, lazily.

    Raises InputError where the header does not describe the file exactly: every byte of the data
    belongs to one tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: not a safetensors file, or truncated: its header would have "
                    f"{length} bytes, the file has {size}"
                )
            header = _parse(file.read(length), path)
            if "__metadata__" in header and not isinstance(header.pop("__metadata__"), dict):
                raise InputError(f"{path}: its __metadata__ is not an object")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    start, placed = 8 + length, {}
    for name, entry in header.items():
        placed[name] = _tensor(path, start, name, entry)
    _check_cover(path, placed, start, size)
    return placed


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_json(raw.decode("utf-8"), f"{path}: not a safetensors file: its header")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a safetensors file: its header is not UTF-8") from error


def _tensor(path: Path, start: int, name: str, entry: Any) -> Stored:
    try:
        dtype = DTYPES[entry["dtype"]]
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: tensor {name!r} has a header that makes no sense") from error
    if len(shape) > MAX_DIMENSIONS or not all(
        type(n) is int and 0 <= n < MAX_BYTES for n in (*shape, begin, end)
    ):
        raise InputError(f"{path}: tensor {name!r} has an impossible shape or place")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{path}: tensor {name!r} has shape {list(shape)} but {end - begin} bytes of data"
        )
    return Stored(path, start + begin, shape, dtype, name)


def _check_cover(path: Path, placed: dict[str, Stored], start: int, size: int) -> None:
    position = start
    for tensor in sorted(placed.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            fault = "overlaps another" if tensor.offset < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {tensor.name!r} {fault}")
        position += tensor.nbytes
    if position != size:
        what = "is truncated" if position > size else "has trailing bytes"
        raise InputError(f"{path}: {what}: its header describes {position} bytes, it has {size}")
