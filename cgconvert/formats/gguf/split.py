"""A model that llama-gguf-split has cut into several files: read all of them as one.

The first file has the metadata, and each file has some of the tensors.
Format: llama.cpp, src/llama.cpp (llama_split_path), src/llama-model-loader.cpp.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cgconvert.errors import InputError, first_few
from cgconvert.formats.gguf.header import GgufHeader, read_header

__all__ = ["part_of", "parts_of_one_model", "read_model_header", "refuse_split"]

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"

_PART = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def read_model_header(path: Path) -> tuple[GgufHeader, tuple[Path, ...]]:
    """Parse the header of a model: of its only file, or of all its parts as one.

    Args:
        path: The file, or any part.

    Returns:
        The header, whose tensors know their files, and these files.

    Raises:
        InputError: A file is broken, a part is missing, or the parts are not of one model.
    """
    header = read_header(path)
    count = _integer(header, COUNT)
    if count is None or count < 2:
        return header, (path,)
    paths = _part_paths(path, count)
    headers = [header if part == path else read_header(part) for part in paths]
    for number, (part, its_header) in enumerate(zip(paths, headers, strict=True)):
        place = (_integer(its_header, NUMBER), _integer(its_header, COUNT))
        if place != (number, count):
            raise InputError(
                f"{part}: is part {place[0]} of {place[1]} by its metadata, not {number} of "
                f"{count}: fetch or split it again"
            )
    tensors = [tensor for its_header in headers for tensor in its_header.tensors]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise InputError(f"{paths[0]}: two of its parts have the same tensor")
    total = _integer(headers[0], TENSORS)
    if total != len(tensors):
        raise InputError(
            f"{paths[0]}: its parts have {len(tensors)} tensors, {TENSORS} is {total!r}: they are "
            "not of one model"
        )
    return replace(headers[0], tensors=tuple(tensors)), paths


def refuse_split(path: Path, header: GgufHeader) -> None:
    """Raise InputError if a file is a part of a model, where a whole model is needed."""
    if (_integer(header, COUNT) or 0) > 1:
        raise InputError(
            f"{path}: is one part of a model that is split; {_merge_advice(path)} and give that"
        )


def parts_of_one_model(names: list[str]) -> bool:
    """Whether these are the names of parts of one model, by the names alone."""
    matches = [_PART.fullmatch(name) for name in names]
    models = {(match["model"], match["count"]) if match else None for match in matches}
    return len(models) == 1 and None not in models


def part_of(name: str) -> str | None:
    """The name of the model of which a file is a part, by its name alone; None if it is none."""
    match = _PART.fullmatch(name)
    return match["model"] if match else None


def _integer(header: GgufHeader, key: str) -> int | None:
    """Return a number of the metadata; None if it is not there or no integer."""
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Return the paths of all parts, which lie beside each other under llama.cpp's names."""
    name = _PART.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise InputError(
            f"{path}: is one of {count} parts of a model, and its name does not say which; rename "
            f"the parts as llama-gguf-split names them: model-00001-of-{count:05}.gguf, ..."
        )
    paths = [
        path.with_name(f"{name['model']}-{number:05}-of-{name['count']}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise InputError(
            f"{path}: is a part of a model of {count} files, of which "
            f"{first_few(missing, 3, separator=', ')} is missing; fetch it too"
        )
    return tuple(paths)


def _merge_advice(path: Path) -> str:
    """Say how parts are merged into one file."""
    name = _PART.fullmatch(path.name)
    first = f"{name['model']}-00001-of-{name['count']}.gguf" if name else path.name
    whole = f"{name['model'] if name else path.stem}-merged.gguf"
    return f"merge the parts with 'llama-gguf-split --merge {first} {whole}'"
