"""The parts of the fault matrix: a case with its expected message, and the commands to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ARTEFACT_COMMANDS",
    "COMMANDS",
    "CONVERT_COMMANDS",
    "SOURCE_COMMANDS",
    "Case",
    "Damage",
    "commands_for",
]

Damage = Callable[[Path], object]
"""A function that damages the input at a path, which is a copy of a valid one."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("inspect", "{input}"),
    "to-hf": ("to-hf", "{input}", "-o", "out"),
    "to-phi": ("to-hf", "{input}", "--layout", "phi", "-o", "out"),
    "to-onnx": ("to-onnx", "{input}", "-o", "out"),
    "to-onnx-fp16": ("to-onnx", "{input}", "--dtype", "float16", "-o", "out"),
    "to-gguf": ("to-gguf", "{input}", "-o", "out.gguf"),
    "quantize": ("quantize", "{input}", "--bits", "8", "-o", "out.gguf"),
    "quantize-onnx": (
        "quantize",
        "{input}",
        "--bits",
        "4",
        "--format",
        "onnx",
        "--effort",
        "fast",
        "-o",
        "out",
    ),
    "reference": ("verify", "valid.gguf", "--reference", "{input}"),
    "verify": ("verify", "{input}", "--reference", "valid"),
    "generate": ("generate", "{input}", "def f(x):", "--max-new-tokens", "2"),
    "genai": ("generate", "{input}", "x", "--runtime", "onnxruntime-genai"),
    "run": ("run", "{input}"),
}
"""Arguments by name; {input} is the damaged input, valid and valid.gguf lie beside it undamaged."""

CONVERT_COMMANDS = ("to-gguf", "to-hf", "to-onnx", "quantize", "to-phi", "quantize-onnx")
SOURCE_COMMANDS = ("inspect", *CONVERT_COMMANDS, "reference")
"""Commands that read a checkpoint to convert."""
ARTEFACT_COMMANDS = ("inspect", "verify", "generate")


@dataclass(frozen=True)
class Case:
    """A damaged input, and what every command that reads it must report.

    `kind` names the valid input that `damage` changes. `message` is a regular expression for the
    single line on stderr, which contains `file`. `code` is the expected exit code; `codes` holds
    the commands whose exit code differs.
    """

    kind: str
    damage: Damage
    message: str
    file: str = "source"
    commands: tuple[str, ...] = SOURCE_COMMANDS
    code: int = 3
    codes: Mapping[str, int] | None = None

    def expected(self, command: str) -> int:
        """Return the exit code that this command must end with."""
        return (self.codes or {}).get(command, self.code)


def commands_for(case: Case, number: int, limit: int) -> tuple[str, ...]:
    """Return at most `limit` of a case's commands: the first one, then a choice that `number` sets.

    Cases with consecutive numbers get different commands, so that all of them are run often.
    """
    first, *remaining = case.commands
    start = number % max(1, len(remaining))
    return (first, *(remaining[start:] + remaining[:start])[: limit - 1])
