"""The parts of the documents that are made from the code, and a command that makes them again.

    python -m tests.support.generated_docs

docs/design.md has the diagram of the layers, made from the import contract in pyproject.toml.
CONTRIBUTING.md quotes classes and functions, each under a line `<!-- quoted: FILE NAME -->`.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

__all__ = ["DOCUMENTS", "layers", "with_diagram", "with_quotes"]

ROOT = Path(__file__).resolve().parents[2]
DIAGRAM = re.compile(r"(?<=```mermaid\n).*?(?=\n```)", re.DOTALL)
QUOTE = re.compile(r"(<!-- quoted: (\S+) (\w+) -->\n\n```python\n).*?(?=```)", re.DOTALL)


def layers() -> list[list[str]]:
    """The members of each layer of the contract, from the top layer to the lowest."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "layers")
    return [
        [member.strip(" ()") for member in re.split("[|:]", layer)] for layer in contract["layers"]
    ]


def with_diagram(document: str) -> str:
    """The text with its Mermaid block replaced: an arrow leads from each layer to the one below."""
    rows = [layer for layer in layers() if layer != ["__main__"]]
    arrows = [f"    {' & '.join(upper)} --> {' & '.join(lower)}" for upper, lower in pairwise(rows)]
    return DIAGRAM.sub("\n".join(["flowchart TD", *arrows]), document, count=1)


def with_quotes(document: str) -> str:
    """The text with each quoted class or function replaced by its present source."""
    return QUOTE.sub(lambda match: match[1] + _source(ROOT / match[2], match[3]), document)


def _source(path: Path, name: str) -> str:
    """The source of a top-level class or function, or of the assignment to a name."""
    text = path.read_text("utf-8")
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef(name=defined) | ast.FunctionDef(name=defined):
                pass
            case ast.AnnAssign(target=ast.Name(id=defined)):
                pass
            case _:
                continue
        if defined == name:
            return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
    raise LookupError(f"{path} does not define {name}")


DOCUMENTS: dict[str, Callable[[str], str]] = {
    "docs/design.md": with_diagram,
    "CONTRIBUTING.md": with_quotes,
}
"""Each document, and the function that returns its text with the made parts up to date."""


def main() -> None:
    """Bring the documents up to date."""
    for name, update in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(update(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
