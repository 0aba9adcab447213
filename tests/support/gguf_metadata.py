"""Copies of GGUF files with other metadata, written by gguf-py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

__all__ = ["change_metadata"]


def change_metadata(
    path: Path, output: Path, changes: Mapping[str, tuple[Any, gguf.GGUFValueType] | None]
) -> None:
    """Copy a file with other entries: a value and its type by key, None for an entry to drop.

    The type of a list is that of its items.
    """
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(output, "phi2")
    for field in reader.fields.values():
        if field.name in changes or field.name.startswith("GGUF."):
            continue
        if field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), *field.types[:2])
    for key, entry in changes.items():
        if entry is None:
            continue
        value, kind = entry
        if isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, kind)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
