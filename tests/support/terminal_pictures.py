"""Pictures of the terminal for the documents, from real runs of the built-in model.

    python -m tests.support.terminal_pictures

writes docs/images/*.svg: a conversion, its progress, and `verify` that passes and fails, in
terminals of 80 and of 40 columns. It needs rich and takes some minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.support.terminal import run_in_terminal

__all__ = ["picture"]

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDTHS = 80, 40
NAME = "codegen-tiny-mono"
QUANTIZE = ("quantize", NAME, "--bits", "4", "-o", "model.gguf")


FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Rich's web fonts: a picture needs no network, and the fonts of the system do."""


def picture(raw: str, command: str, columns: int) -> str:
    """Draw what a terminal shows after a command has written `raw`, as SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True)
        shown = Text.from_ansi(raw.replace("\r\n", "\n").rstrip())
        prompt = Text(f"$ {command}", style="bold")
        for line in (*prompt.split(), *shown.split()):  # a terminal wraps at its last column
            for part in line.divide(range(columns, len(line), columns)):
                console.print(part, no_wrap=True)
        console.print()  # browsers cut what hangs below the last line
        svg = console.export_svg(title="cgconvert", theme=MONOKAI, unique_id=f"columns-{columns}")
    return FONT.sub("", svg)


def main() -> None:
    """Make all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for columns in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            draw = Drawing(Path(folder), columns)
            draw.command("dry-run", "to-gguf", NAME, "--type", "Q8_0", "--dry-run")
            draw.command("convert", "to-gguf", NAME, "--type", "Q8_0", "-o", "m.gguf")
            draw.command("verify-pass", "verify", "m.gguf")
            damage(Path(folder) / "m.gguf")
            draw.command("verify-fail", "verify", "m.gguf")
            draw.progress()


class Drawing:
    """Pictures of one width, of commands that run in `folder`."""

    def __init__(self, folder: Path, columns: int) -> None:
        self.folder, self.columns = folder, columns

    def command(self, name: str, *arguments: str) -> None:
        """Run a command to its end and draw it."""
        self._draw(name, arguments, self._run(arguments))

    def progress(self) -> None:
        """Draw a calibration as it stands when the time left is known, and as Ctrl-C leaves it."""
        lengths: list[int] = []

        def interrupt(written: str, terminal: int, process: subprocess.Popen[bytes]) -> None:
            line = written.rsplit("\r", 1)[-1]
            is_drawn = "calibrating" in line and "about" in line and line.endswith("\x1b[K")
            if is_drawn and not lengths:
                lengths.append(len(written))
                os.write(terminal, b"\x03")

        raw = self._run(QUANTIZE, interrupt)
        self._draw("progress", QUANTIZE, raw[: lengths[0]])
        self._draw("interrupted", QUANTIZE, raw)

    def _run(
        self,
        arguments: tuple[str, ...],
        on_output: Callable[[str, int, subprocess.Popen[bytes]], None] | None = None,
    ) -> str:
        session = run_in_terminal(
            [sys.executable, "-m", "cgconvert", *arguments],
            columns=self.columns,
            folder=self.folder,
            on_output=on_output,
            seconds=600,
            env={"PYTHONPATH": str(IMAGES.parents[1])},
        )
        return session.raw

    def _draw(self, name: str, arguments: tuple[str, ...], raw: str) -> None:
        shown = " ".join(["cgconvert", *arguments])
        svg = picture(raw, shown, self.columns)
        (IMAGES / f"{name}-{self.columns}.svg").write_text(svg, "utf-8")


def damage(path: Path) -> None:
    """Change a byte in the middle of a file, as a bad disk or an editor does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


if __name__ == "__main__":
    main()
