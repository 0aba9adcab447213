"""Reader of safetensors files, one or many with an index.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here and not by the
library because the library maps the file, and accepts duplicate keys.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from cgconvert.errors import InputError
from cgconvert.tensor import Stored

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

MAX_HEADER_BYTES = 100_000_000  # the library's own limit


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
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    header.pop("__metadata__", None)
    start, found = 8 + length, {}
    for name, entry in header.items():
        found[name] = _tensor(path, start, name, entry)
    _check_cover(path, found, start, size)
    return found


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{path}: {twice!r} stands twice in the header")
        return dict(pairs)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: not a safetensors file: its header is not an object")
    return header


def _tensor(path: Path, start: int, name: str, entry: Any) -> Stored:
    try:
        dtype = DTYPES[entry["dtype"]]
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: tensor {name!r} has a header that makes no sense") from error
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{path}: tensor {name!r} has shape {list(shape)} but {end - begin} bytes of data"
        )
    return Stored(path, start + begin, shape, dtype, name)


def _check_cover(path: Path, found: dict[str, Stored], start: int, size: int) -> None:
    position = start
    for tensor in sorted(found.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            fault = "overlaps another" if tensor.offset < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {tensor.name!r} {fault}")
        position += tensor.nbytes
    if position != size:
        what = "is truncated" if position > size else "has trailing bytes"
        raise InputError(f"{path}: {what}: its header describes {position} bytes, it has {size}")
