"""Reader of `pytorch_model.bin`: torch's zip format, without running anything it says.

The pickle inside names tensors and where their storages lie. It is unpickled with every name
refused but the few that describe tensors, after its opcodes have been gone through one by one;
the numbers themselves are then read straight from the zip's uncompressed members.
Format: torch/serialization.py (_save), torch/_utils.py (_rebuild_tensor_v2).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cgconvert.errors import InputError
from cgconvert.tensor import Stored

__all__ = ["stored_member", "tensors"]

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# What a pickled state dict needs, and nothing that calls, imports or builds anything else.
OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM", "SETITEMS"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE"),
    )
)
MAX_PICKLE_BYTES = 64 << 20
LOCAL_HEADER = struct.Struct("<4s5H3I2H")


# With slots and frozen, so that a BUILD opcode finds nothing in them to set.
@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a state dict, lazily. Raises InputError for anything that is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise InputError(f"{path}: holds {len(pickles)} data.pkl, a torch file holds one")
            root = pickles[0].filename.removesuffix("data.pkl")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise InputError(f"{path}: its data.pkl is too large to be a state dict")
            views = _unpickle(archive.read(pickles[0]), path)
            return {name: _stored(archive, root, path, name, v) for name, v in views.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: not a torch checkpoint: {_guess(path) or error}") from error


def stored_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> int:
    """Byte offset of an uncompressed member's data in the zip file.

    Raises InputError where the member is compressed, encrypted or lies outside the file.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        raise InputError(f"{path}: member {info.filename} is compressed or encrypted")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        raw = file.read(LOCAL_HEADER.size)
        if len(raw) < LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise InputError(f"{path}: member {info.filename} has no local header")
        *_, name_length, extra_length = LOCAL_HEADER.unpack(raw)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > path.stat().st_size:
            raise InputError(f"{path}: member {info.filename} ends outside the file: truncated")
    return start


def _stored(archive: zipfile.ZipFile, root: str, path: Path, name: str, view: _View) -> Stored:
    try:
        info = archive.getinfo(f"{root}data/{view.storage.key}")
    except KeyError as error:
        raise InputError(f"{path}: the data of tensor {name} is missing") from error
    item = view.storage.dtype.itemsize
    if info.file_size != view.storage.count * item:
        raise InputError(
            f"{path}: tensor {name}: its storage has {info.file_size} bytes, "
            f"{view.storage.count * item} are declared"
        )
    dense = tuple(math.prod(view.shape[i + 1 :]) for i in range(len(view.shape)))
    if any(s != d for s, d, n in zip(view.stride, dense, view.shape, strict=True) if n > 1):
        raise InputError(f"{path}: tensor {name} is not contiguous; save it again contiguously")
    if view.offset + math.prod(view.shape) > view.storage.count:
        raise InputError(f"{path}: tensor {name} reaches outside its storage")
    offset = stored_member(archive, info, path) + view.offset * item
    return Stored(path, offset, view.shape, view.storage.dtype, name)


def _unpickle(raw: bytes, path: Path) -> dict[str, _View]:
    _check_opcodes(raw, path)
    try:
        value = _Unpickler(raw, path).load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: its data.pkl is damaged: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: is not a state dict")
    for name, view in value.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            label = name[:80] if isinstance(name, str) else type(name).__name__
            raise InputError(f"{path}: entry {label!r} of its state dict is not a tensor")
    return dict(value)


def _check_opcodes(raw: bytes, path: Path) -> None:
    try:
        end = -1
        for opcode, _, position in pickletools.genops(raw):
            if opcode.name not in OPCODES:
                raise InputError(
                    f"{path}: refused: its pickle uses {opcode.name}, which no state dict needs"
                )
            end = position if position is not None else end
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: its data.pkl is damaged: {error}") from error
    if end != len(raw) - 1:
        raise InputError(f"{path}: refused: bytes follow the end of its pickle")


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        found: Any = _ALLOWED.get((module, name))
        if found is None and module == "torch" and name in STORAGES:
            found = STORAGES[name]
        if found is None:
            raise InputError(
                f"{self.path}: refused: its pickle asks for {module}.{name}, "
                "which is not part of a tensor"
            )
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        if (
            not isinstance(pid, tuple)
            or len(pid) != 5
            or pid[0] != "storage"
            or not isinstance(pid[1], torch.dtype)
            or not isinstance(pid[2], str)
            or not isinstance(pid[4], int)
        ):
            raise InputError(f"{self.path}: its data.pkl describes a storage in an unknown way")
        return _Storage(pid[2], pid[1], pid[4])


class _Rebuild:
    """What a pickle may call. No attributes, so that BUILD cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for something that has none")


class _RebuildTensor(_Rebuild):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _View:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or len(shape) != len(stride):
            raise ValueError("a tensor without a storage")
        if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError("a tensor of an impossible shape")
        return _View(storage, offset, tuple(shape), tuple(stride))


class _RebuildParameter(_Rebuild):
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
}


def _guess(path: Path) -> str:
    """What people most often have instead of the weights."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the real file with 'git lfs pull'"
    if head.lstrip()[:1] == b"<":
        return "it is an HTML page; the download went wrong"
    if head.startswith((b"\x80\x02", b"\x80\x03")):
        return "torch's old format; load and save it again with torch 1.6 or newer"
    return ""
