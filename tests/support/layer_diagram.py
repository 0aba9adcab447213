"""The diagram of the layers in docs/design.md, made from the import contract in pyproject.toml.

python -m tests.support.layer_diagram      writes it into docs/design.md
"""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

__all__ = ["diagram", "layers", "written_diagram"]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "design.md"
BLOCK = re.compile(r"(?<=```mermaid\n).*?(?=\n```)", re.DOTALL)


def layers() -> list[list[str]]:
    """The members of each layer of the contract, from the top layer to the lowest."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "layers")
    return [
        [member.strip(" ()") for member in re.split("[|:]", layer)] for layer in contract["layers"]
    ]


def diagram() -> str:
    """The layers as a Mermaid flowchart: an arrow leads from each layer to the one below it."""
    rows = [layer for layer in layers() if layer != ["__main__"]]
    lines = ["flowchart TD"]
    lines += [f"    {' & '.join(above)} --> {' & '.join(below)}" for above, below in pairwise(rows)]
    return "\n".join(lines)


def written_diagram() -> str:
    """The diagram that the document has."""
    match = BLOCK.search(DOCUMENT.read_text("utf-8"))
    return match[0] if match else ""


def main() -> None:
    """Write the diagram into the document."""
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(BLOCK.sub(lambda _: diagram(), text, count=1), "utf-8")


if __name__ == "__main__":
    main()
