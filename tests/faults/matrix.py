"""What a case of the fault matrix is, and which commands it goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARTEFACT", "COMMANDS", "CONVERTING", "SOURCE", "Case", "Damage", "rotated"]

Damage = Callable[[Path], object]
"""Breaks the input at this path, which is a copy."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("inspect", "{given}"),
    "to-hf": ("to-hf", "{given}", "-o", "out"),
    "to-phi": ("to-hf", "{given}", "--layout", "phi", "-o", "out"),
    "to-onnx": ("to-onnx", "{given}", "-o", "out"),
    "to-onnx-fp16": ("to-onnx", "{given}", "--dtype", "float16", "-o", "out"),
    "to-gguf": ("to-gguf", "{given}", "-o", "out.gguf"),
    "quantize": ("quantize", "{given}", "--bits", "8", "-o", "out.gguf"),
    "quantize-onnx": (
        "quantize",
        "{given}",
        "--bits",
        "4",
        "--format",
        "onnx",
        "--effort",
        "fast",
        "-o",
        "out",
    ),
    "reference": ("verify", "sound.gguf", "--reference", "{given}"),
    "verify": ("verify", "{given}", "--reference", "sound"),
    "generate": ("generate", "{given}", "def f(x):", "--max-new-tokens", "2"),
    "genai": ("generate", "{given}", "x", "--runtime", "onnxruntime-genai"),
    "run": ("run", "{given}"),
}
"""{given} is the input; sound and sound.gguf are a source and an artefact without a fault."""

CONVERTING = ("to-gguf", "to-hf", "to-onnx", "quantize", "to-phi", "quantize-onnx")
SOURCE = ("inspect", *CONVERTING, "reference")
"""Commands that read a source."""
ARTEFACT = ("inspect", "verify", "generate")


@dataclass(frozen=True)
class Case:
    """A fault: the kind of input it is in, what breaks it, and what has to be said of it.

    `says` is a regular expression for the one line on stderr, which has `file` in it. `code` is
    the exit code; `codes` those of single commands that differ.
    """

    kind: str
    damage: Damage
    says: str
    file: str = "source"
    commands: tuple[str, ...] = SOURCE
    code: int = 3
    codes: Mapping[str, int] | None = None

    def expected(self, command: str) -> int:
        return (self.codes or {}).get(command, self.code)


def rotated(case: Case, number: int, most: int) -> tuple[str, ...]:
    """The first of a case's commands and some of the others, different ones for each number."""
    first, *others = case.commands
    start = number % max(1, len(others))
    return (first, *(others[start:] + others[:start])[: most - 1])
