"""What a path holds, if it is something cgconvert writes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.huggingface import weight_files as weights
from cgconvert.write.manifest import Manifest, find_manifest

__all__ = ["OUT", "Artefact", "find_all", "identify"]

OUT = Path("out")
"""Where artefacts go without -o."""


@dataclass(frozen=True)
class Artefact:
    """A folder (huggingface, onnx) or file (gguf) and its manifest where it has one."""

    path: Path
    format: str
    manifest: Manifest | None

    @property
    def type(self) -> str:
        """What most of its bytes are stored as, read from its headers and not its manifest.

        Raises InputError where they are broken.
        """
        return _TYPES[self.format](self.path)

    @property
    def name(self) -> str:
        """What the model in it is called."""
        return self.manifest.name if self.manifest else self.path.stem


def identify(path: Path) -> Artefact:
    """Tell an artefact's format from its files. Raises InputError where it is none."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    kind = _format(path)
    if kind is None:
        raise InputError(
            f"{path}: not an artefact; expected a folder that to-hf or to-onnx wrote, or a .gguf"
        )
    return Artefact(path, kind, find_manifest(path))


def find_all(folder: Path) -> list[Artefact]:
    """Every artefact below a folder (or the folder itself), in order of its path."""
    found: list[Artefact] = []
    for here, folders, files in os.walk(folder):  # which follows no links to folders
        if _format(Path(here)) is not None:
            found.append(identify(Path(here)))
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(here, name) for name in files if not name.startswith(".")]
        found += [identify(path) for path in paths if _format(path) is not None]
    return sorted(found, key=lambda artefact: artefact.path)


def _most(sizes: Iterable[tuple[str, int]]) -> str:
    total: Counter[str] = Counter()
    for kind, nbytes in sizes:
        total[kind] += nbytes
    return total.most_common(1)[0][0] if total else "empty"


def _huggingface_type(path: Path) -> str:
    tensors = weights.read(weights.find(path)[1]).values()
    return _most((str(t.dtype).removeprefix("torch."), t.nbytes) for t in tensors)


def _onnx_type(path: Path) -> str:
    from cgconvert.formats.onnx import reader as onnx

    return onnx.type_of(onnx.find_graph(path))


def _gguf_type(path: Path) -> str:
    from cgconvert.formats.gguf import header as gguf_header

    header = gguf_header.read_header(path)
    return _most((tensor.type, tensor.nbytes) for tensor in header.tensors)


_TYPES: Mapping[str, Callable[[Path], str]] = {
    "huggingface": _huggingface_type,
    "onnx": _onnx_type,
    "gguf": _gguf_type,
}


def _format(path: Path) -> str | None:
    if path.is_file():
        return "gguf" if path.suffix == ".gguf" else None
    if any((path / "onnx").glob("*.onnx")):
        return "onnx"
    weights = (*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json"))
    return "huggingface" if (path / "config.json").is_file() and weights else None
