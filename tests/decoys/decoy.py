"""A decoy: what is planted in a right artefact, and how `verify` has to answer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CHECKED", "GGUF", "HARMLESS", "HF", "NAMED", "ONNX", "REFUSED", "Decoy", "Plant", "Trap",
    "all_of", "entry", "file", "second_copy", "trap",
]  # fmt: skip

HF, ONNX, GGUF = "hf-float16", "onnx-float32", "gguf-F16"

CHECKED = "files"
"""The check that fails where a program would load the decoy."""
NAMED = "a warning"
"""The check `files` names it: a warning, and a failure with `strict`."""
HARMLESS = "harmless"
"""Nothing is said; no runtime opens it, and no program loads it."""
REFUSED = "refused"
"""No runtime gets the artefact: reading or admitting it is an error of one line."""

Plant = Callable[[Path], object]
"""Puts a decoy into an artefact at a path: a folder, or a file in a folder of its own."""


@dataclass(frozen=True)
class Decoy:
    """A decoy and the answer to it.

    Attributes:
        name: What it is.
        kind: The artefact that it is planted in.
        plant: Puts it there.
        answer: CHECKED, NAMED, HARMLESS, REFUSED, or the name of another check that fails.
        named: A part of what is said about it.
        graph: The graph that is verified, where the folder has several; "" for the artefact.
    """

    name: str
    kind: str
    plant: Plant
    answer: str = CHECKED
    named: str = ""
    graph: str = ""


class Trap:
    """Makes a file when it is unpickled, beside the folder of decoys."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def trap(name: str) -> Plant:
    """A pickle that makes a file named `ran` outside the artefact when it is loaded."""

    def plant(artefact: Path) -> None:
        path = artefact / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Trap(artefact.parent / "ran")))

    return plant


def file(name: str, content: str | bytes = b"decoy\n") -> Plant:
    """A further file in the folder of the artefact; beside it, if that is a file."""

    def plant(artefact: Path) -> None:
        folder = artefact if artefact.is_dir() else artefact.parent
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return plant


def second_copy(name: str, of: str = "model.safetensors") -> Plant:
    """A copy of one of the artefact's own files under another name, inside or outside it."""

    def plant(artefact: Path) -> None:
        source = artefact / of if artefact.is_dir() else artefact
        folder = artefact if artefact.is_dir() else artefact.parent
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())

    return plant


def entry(name: str, **entries: object) -> Plant:
    """Further entries, or other ones, in a JSON file of the folder."""

    def plant(artefact: Path) -> None:
        path = artefact / name
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | entries, ensure_ascii=False), encoding="utf-8")

    return plant


def all_of(*plants: Plant) -> Plant:
    """Several decoys that belong together."""

    def plant(artefact: Path) -> None:
        for one in plants:
            one(artefact)

    return plant
