"""Reader of `pytorch_model.bin`, torch's zip format, without running code that it contains.

The pickle in the archive describes the tensors and names the archive members that contain their
storages; the numbers are read directly from these members. Format: torch/serialization.py (_save).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.huggingface.state_dict import find_state_dict, is_old_buffer
from cgconvert.formats.huggingface.torch_globals import RefusedError, View
from cgconvert.formats.huggingface.torch_pickle import MAX_BYTES, parse
from cgconvert.io.reading import open_regular, read_head, spend
from cgconvert.io.stand_ins import HEAD_BYTES, refuse_stand_in
from cgconvert.io.stored_zip import Member, read_members
from cgconvert.model.tensor import FirstColumns, LazyTensor, StoredTensor, Zeros

__all__ = ["tensors"]

PICKLE = "data.pkl"


def tensors(path: Path) -> dict[str, LazyTensor]:
    """Read all tensors of a state dict, lazily; old buffers are not looked for and appear as zeros.

    Raises InputError if the file is not a torch checkpoint or holds no state dict.
    """
    if problem := _rejection_reason(path):
        raise InputError(f"{path}: not a torch checkpoint: {problem}")
    archive = _members(path)
    pickles = [name for name in archive if name.rpartition("/")[2].lower() == PICKLE]
    if len(pickles) != 1 or not pickles[0].endswith(f"/{PICKLE}"):
        raise InputError(f"{path}: holds {len(pickles)} data.pkl, a torch file holds one")
    root = pickles[0].removesuffix(PICKLE)
    byte_order = archive.get(f"{root}byteorder")
    if (
        byte_order is not None
        and byte_order.size < 16
        and _member_bytes(path, byte_order) != b"little"
    ):
        raise InputError(
            f"{path}: its numbers are not little-endian; save it again on this machine"
        )
    try:
        views = find_state_dict(parse(_member_bytes(path, archive[pickles[0]]), path))
    except RefusedError as error:
        raise InputError(f"{path}: {error}") from error
    return {
        name: Zeros(view.shape, view.storage.dtype)
        if is_old_buffer(name)
        else _stored(archive, root, path, name, view)
        for name, view in views.items()
    }


def _members(path: Path) -> dict[str, Member]:
    """Return the archive's members. Raises InputError, also for a program in TorchScript."""
    try:
        archive = read_members(path)
        is_program = any(name.endswith("/constants.pkl") for name in archive)
    except InputError as error:
        is_program = "/code/__torch__" in str(error)  # TorchScript compresses its code
        if not is_program:
            raise
    if is_program:
        raise InputError(
            f"{path}: is a TorchScript archive, a program; save the state dict of the model instead"
        )
    return archive


def _member_bytes(path: Path, member: Member) -> bytes:
    """Read the pickle or another small member. Raises InputError if it is too large or damaged."""
    if member.size > MAX_BYTES:
        raise InputError(f"{path}: its data.pkl is too large to be a state dict")
    spend(path, "bytes", member.size)
    with open_regular(path) as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if zlib.crc32(data) != member.crc32:
        raise InputError(f"{path}: {member.name} is damaged: its CRC differs; fetch the file again")
    return data


def _stored(
    archive: Mapping[str, Member], root: str, path: Path, name: str, view: View
) -> LazyTensor:
    """Find a tensor's numbers in the archive, whose members lie in the folder `root`.

    Raises InputError if its storage is missing or too short, or if its numbers are in an order
    that is not that of a matrix, a transposed matrix, or columns of one.
    """
    member = archive.get(f"{root}data/{view.storage.key}")
    if member is None:
        raise InputError(f"{path}: the data of tensor {name} is missing")
    dtype = view.storage.dtype
    if member.size != view.storage.count * dtype.itemsize:
        raise InputError(
            f"{path}: tensor {name}: its storage has {member.size} bytes, "
            f"{view.storage.count * dtype.itemsize} are declared"
        )
    last = sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))
    if math.prod(view.shape) and view.offset + last >= view.storage.count:
        raise InputError(f"{path}: tensor {name} reaches outside its storage")
    offset = member.offset + view.offset * dtype.itemsize
    if _is_row_major(view.shape, view.stride):
        return StoredTensor(path, offset, view.shape, dtype, name)
    if len(view.shape) == 2:
        (rows, columns), (row_step, column_step) = view.shape, view.stride
        if column_step == 1 and row_step >= columns:
            return FirstColumns(StoredTensor(path, offset, (rows, row_step), dtype, name), columns)
        if row_step == 1 and column_step == rows:
            return StoredTensor(path, offset, (columns, rows), dtype, name).T
        if row_step == 1 and column_step >= rows:
            stored = StoredTensor(path, offset, (columns, column_step), dtype, name)
            return FirstColumns(stored, rows).T
    raise InputError(f"{path}: tensor {name} is not contiguous; save it again contiguously")


def _is_row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether these strides are those of adjacent numbers, row by row."""
    contiguous = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(
        actual == expected or length <= 1
        for actual, expected, length in zip(stride, contiguous, shape, strict=True)
    )


def _rejection_reason(path: Path) -> str:
    """Return why a file is not a torch checkpoint by its first bytes, "" if it may be one."""
    head = read_head(path, HEAD_BYTES)
    refuse_stand_in(path, head)
    if not head:
        return "the file is empty"
    if head.startswith((b"\x80\x02", b"\x80\x03")):
        return "it has torch's old format; load it and save it again with torch 1.6 or newer"
    if head[8:9] == b"{":
        return "it is a safetensors file; rename it so that its name ends in .safetensors"
    if not head.startswith(b"PK\3\4"):
        return "it is no zip archive; fetch it again"
    return ""
