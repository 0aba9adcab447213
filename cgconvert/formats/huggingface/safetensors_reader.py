"""Reader of one safetensors file.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here and not by the
library, because the library accepts duplicate keys, and its older versions always map the file into
memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.reading import open_regular, spend
from cgconvert.io.stand_ins import check_head
from cgconvert.io.strict_json import parse_json
from cgconvert.io.system.regular_files import size_of
from cgconvert.model.dtype import TORCH_DTYPES
from cgconvert.model.tensor import StoredTensor

__all__ = ["shared_names", "tensors"]

DTYPES = {
    name: TORCH_DTYPES[torch_name]
    for name, torch_name in {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "U16": "uint16",
        "U32": "uint32",
        "U64": "uint64",
        "C64": "complex64",
    }.items()
}
"""The format's types. Weights are accepted in F64, F32, F16 and BF16 only; the others occur in
buffers, and in files that another library quantized."""

SUB_BYTE_TYPES = ("F4", "F6_E2M3", "F6_E3M2")

MAX_HEADER_BYTES = 4 << 20
"""The header of a shard of 35,000 tensors. The library allows 100 MB, which take GBs to parse."""
MAX_DIMENSIONS = 8
MAX_BYTES = 1 << 60


def tensors(path: Path) -> dict[str, StoredTensor]:
    """Read all tensors of one file, lazily, by name.

    Raises InputError if the header does not describe the file exactly, so that every byte of the
    data belongs to exactly one tensor.
    """
    check_head(path)
    header, data_start, size = _read_header(path)
    header.pop("__metadata__", None)
    stored = {name: _tensor(path, data_start, name, entry) for name, entry in header.items()}
    _check_coverage(path, stored, data_start, size)
    return stored


def shared_names(path: Path) -> dict[str, str]:
    """Read which names were left out because their tensor is stored under another name.

    safetensors.torch.save_model writes them into the metadata: the name left out, and the name of
    the tensor that is stored. Raises InputError as `tensors` does.
    """
    header, _, _ = _read_header(path)
    metadata = header.get("__metadata__", {})
    return {name: stored for name, stored in metadata.items() if name not in header
            and isinstance(stored, str) and stored in header}  # fmt: skip


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, the offset of the data behind it, and the size of the file, in bytes.

    Raises InputError.
    """
    with open_regular(path) as file:
        size = size_of(file.fileno())
        try:
            start = file.read(8)
            if start.startswith(b"PK\3\4"):
                raise InputError(
                    f"{path}: not a safetensors file but a zip archive, as torch.save writes it; "
                    "rename it so that its name ends in .bin"
                )
            length = int.from_bytes(start, "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: not a safetensors file, or truncated: its header would be longer "
                    f"than the file, which has {size} bytes, or than any is; fetch it again"
                )
            spend(path, "bytes", length)
            raw = file.read(length)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    header = _parse(raw, path)
    spend(path, "parts", len(header))
    if not isinstance(header.get("__metadata__", {}), dict):
        raise InputError(f"{path}: its __metadata__ is not an object")
    return header, 8 + length, size


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON of a header. Raises InputError."""
    try:
        return parse_json(raw.decode("utf-8"), f"{path}: not a safetensors file: its header")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a safetensors file: its header is not UTF-8") from error


def _tensor(path: Path, data_start: int, name: str, entry: Any) -> StoredTensor:
    """Read the header entry of one tensor; offsets in it count from `data_start`."""
    if isinstance(entry, dict) and entry.get("dtype") in SUB_BYTE_TYPES:
        raise InputError(
            f"{path}: is quantized ({entry['dtype']}): tensor {name!r} is stored as "
            f"{entry['dtype']}, and type {entry['dtype']} is not supported; convert the original "
            "weights from which these were made"
        )
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
    return StoredTensor(path, data_start + begin, shape, dtype, name)


def _check_coverage(
    path: Path, stored: dict[str, StoredTensor], data_start: int, size: int
) -> None:
    """Check that the tensors cover the data of a file of `size` bytes without gap or overlap."""
    position = data_start
    for tensor in sorted(stored.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            fault = "overlaps another" if tensor.offset < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {tensor.name!r} {fault}")
        position += tensor.nbytes
    if position != size:
        problem = "is truncated" if position > size else "has trailing bytes"
        raise InputError(f"{path}: {problem}: its header describes {position} bytes, it has {size}")
