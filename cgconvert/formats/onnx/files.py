"""Find the graphs in a folder of ONNX, and the folder of their configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path

from cgconvert.errors import InputError, first_few

__all__ = ["GRAPH_FOLDER", "artefacts", "find_graph", "folder_of", "graphs"]

SUFFIX = ".onnx"
GRAPH_FOLDER = "onnx"
"""The subfolder in which transformers.js and optimum expect graphs."""


def graphs(path: Path) -> list[Path]:
    """List the graphs of a folder (in onnx/, else at its root), or the file itself."""
    if path.is_file():
        return [path] if path.suffix == SUFFIX else []
    return sorted((path / GRAPH_FOLDER).glob(f"*{SUFFIX}")) or sorted(path.glob(f"*{SUFFIX}"))


def folder_of(graph: Path) -> Path:
    """Return the folder of a graph's configuration and tokenizer: its own, or that above onnx/."""
    folder = graph.parent
    if folder.name == GRAPH_FOLDER:
        return folder.parent
    # "onnx/model.onnx" as seen from within the folder onnx is "model.onnx".
    return folder / ".." if folder.resolve().name == GRAPH_FOLDER else folder


def artefacts(path: Path) -> list[Path]:
    """List the artefacts that a path stands for.

    A folder with one graph is an artefact, of which the graph and its folder onnx/ are parts. In a
    folder with several graphs each graph is one.
    """
    named = graphs(path)
    if not named:
        return []
    folder = folder_of(named[0])
    return [folder] if len(graphs(folder)) == 1 else named


def find_graph(path: Path) -> Path:
    """Return the only .onnx file of a folder (in onnx/, else at its root), or the file itself.

    Raises InputError if there is none or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    files = graphs(path)
    if len(files) == 1:
        return files[0]
    if files:
        names = first_few([str(file) for file in files], 6, separator=", ")
        raise InputError(f"{path}: has several graphs, give the path of one: {names}")
    raise InputError(f"{path}: no .onnx file in it or in its folder onnx")
