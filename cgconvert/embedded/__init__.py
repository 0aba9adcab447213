"""The model that ships inside the package: small, real CodeGen, trained on Python source."""

from __future__ import annotations

from pathlib import Path

NAME = "codegen-tiny-mono"


def path() -> Path:
    """Return the folder of the embedded model, in the Hub's layout, inside the package.

    Raises FileNotFoundError where the installation left the model out.
    """
    folder = Path(__file__).resolve().parent / NAME
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the embedded model is missing: {folder}")
    return folder
