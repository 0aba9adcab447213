"""Parts of GGUF files as bytes, to write broken and unusual headers by hand.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian.
"""

from __future__ import annotations

import struct

__all__ = ["file_start", "metadata_entry", "string", "tensor_entry"]


def file_start(tensors: int, entries: int, version: int = 3) -> bytes:
    """The first 24 bytes: magic, version, and the numbers of tensors and metadata entries."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def string(text: bytes) -> bytes:
    """A string with its length in front."""
    return struct.pack("<Q", len(text)) + text


def metadata_entry(key: bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry; `kind` is the number of the value's type."""
    return string(key) + struct.pack("<I", kind) + value


def tensor_entry(
    name: bytes, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    """A tensor's entry; `shape` has the fastest dimension first, `kind` numbers the ggml type."""
    size = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + size + struct.pack("<IQ", kind, offset)
