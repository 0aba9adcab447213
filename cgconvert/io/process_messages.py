"""Messages between two processes: JSON values, with arrays as plain bytes behind them.

Nothing is pickled: what a process of a runtime sends is read as text and numbers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np

__all__ = ["Channel", "receive", "send"]

MAX_TEXT_BYTES = 1 << 28
ARRAY = "array"
"""The key of an object that stands for an array; its value is the array's number."""

TYPES = ("float32", "int64")


class Channel(Protocol):
    """What is used of multiprocessing's connections."""

    def send_bytes(self, data: Any) -> None:
        """Send one message."""

    def recv_bytes(self, limit: int | None = None) -> bytes:
        """Receive one message."""

    def recv_bytes_into(self, memory: Any) -> int:
        """Receive one message into memory; return its size."""


def send(channel: Channel, value: Any) -> None:
    """Send a value: text, numbers, lists, sets, objects with texts as keys, and arrays in them."""
    arrays: list[np.ndarray] = []
    packed = _pack(value, arrays)
    shapes = [[array.dtype.name, list(array.shape)] for array in arrays]
    channel.send_bytes(json.dumps([packed, shapes]).encode())
    for array in arrays:
        if array.size:
            channel.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def receive(channel: Channel, max_array_bytes: int) -> Any:
    """Receive a value.

    Raises ValueError for what `send` would not send, and if arrays are larger than they may be.
    """
    packed, shapes = json.loads(channel.recv_bytes(MAX_TEXT_BYTES))
    arrays = []
    for dtype, shape in shapes:
        if dtype not in TYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array of an unknown type")
        if math.prod(shape) * np.dtype(dtype).itemsize > max_array_bytes:
            raise ValueError("an array that is too large")
        array = np.empty(shape, dtype)
        memory = array.reshape(-1).view(np.uint8).data
        if array.size and channel.recv_bytes_into(memory) != array.nbytes:
            raise ValueError("an array that is too short")
        arrays.append(array)
    return _unpack(packed, arrays)


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """Replace arrays in a value by their numbers."""
    match value:
        case np.ndarray():
            arrays.append(value)
            return {ARRAY: len(arrays) - 1}
        case np.integer():
            return int(value)
        case Mapping():
            return {"object": [[key, _pack(entry, arrays)] for key, entry in value.items()]}
        case str() | None | bool() | int() | float():
            return value
        case Sequence() | Set():
            return [_pack(entry, arrays) for entry in value]
        case _:
            raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack(packed: Any, arrays: list[np.ndarray]) -> Any:
    """Put arrays back in place of their numbers."""
    match packed:
        case {"object": entries}:
            return {key: _unpack(entry, arrays) for key, entry in entries}
        case {"array": number}:
            return arrays[number]
        case list():
            return [_unpack(entry, arrays) for entry in packed]
        case _:
            return packed
