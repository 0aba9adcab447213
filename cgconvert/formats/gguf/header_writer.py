"""The header of a GGUF file as bytes, by gguf's own writer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import gguf
from gguf.gguf_writer import WriterState

__all__ = ["ALIGNMENT", "HeaderWriter", "padded"]

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
"""Each tensor begins at a multiple of so many bytes."""


class HeaderWriter(gguf.GGUFWriter):
    """gguf's writer, into memory: a plan touches no disk. An imatrix has no architecture."""

    def __init__(self, architecture: str | None = None) -> None:
        self._has_architecture = architecture is not None
        super().__init__(None, architecture or "")

    def add_architecture(self) -> None:
        """Called by the constructor of gguf's writer."""
        if self._has_architecture:
            super().add_architecture()

    def open_output_file(self, path: Path | None = None) -> None:
        """Called by `write_header_to_file`."""
        self._buffer = io.BytesIO()
        self.fout = [self._buffer]  # type: ignore[list-item]  # declared as files on a disk
        self.state = WriterState.EMPTY

    def add_values(self, key: str, values: Sequence[str] | Sequence[int]) -> None:
        """Add an array of strings, or of numbers as int32; at least one.

        gguf's own add_array looks at the type of each value, here of a whole vocabulary.
        """
        kinds = gguf.GGUFValueType
        kind = kinds.STRING if isinstance(values[0], str) else kinds.INT32
        self.add_key_value(key, values, kinds.ARRAY, kind)

    def header(self) -> bytes:
        """The bytes of all that was added, to be padded before the data begins."""
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()
        return self._buffer.getvalue()


def padded(size: int) -> int:
    """The least multiple of ALIGNMENT that is no smaller."""
    return -(-size // ALIGNMENT) * ALIGNMENT
