"""The places of the files of a training run."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ARCHIVE", "is_step"]

ARCHIVE = Path("model/0.npz")
"""The weights of a step, in its folder."""


def is_step(folder: Path) -> bool:
    """Return whether this folder is one step of a training run."""
    return (folder / ARCHIVE).is_file()
