"""What lies in a folder of ONNX: the files that belong to a graph, and what was not checked."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.formats.comparison import as_mapping
from cgconvert.formats.huggingface.folder_contents import configuration_files
from cgconvert.formats.huggingface.loader_entries import unchecked_entries
from cgconvert.formats.loader_files import Unchecked, unchecked_files
from cgconvert.formats.onnx.files import find_graph, folder_of, graphs
from cgconvert.formats.onnx.genai_checks import admit_genai_entries
from cgconvert.formats.onnx.reader import stored_tensors
from cgconvert.io.strict_json import read_json

__all__ = ["unchecked"]

GENAI = "genai_config.json"


def unchecked(path: Path, checked: Collection[Path] = ()) -> Unchecked:
    """List what lies in a graph's folder, or stands in its configurations, and was not checked.

    Args:
        path: The graph, or its folder.
        checked: Artefacts that are checked with this one; graphs in the same folder belong to it.

    Raises:
        InputError: A file that has to be read for this is broken.
    """
    graph = find_graph(path)
    folder = folder_of(graph).resolve()
    belonging = {
        candidate.resolve()
        for artefact in (graph, *checked)
        for candidate in graphs(artefact)
        if folder_of(candidate).resolve() == folder
    }
    own = {*configuration_files(folder), GENAI}
    for graph_path in belonging:
        data = {tensor.path for tensor in stored_tensors(graph_path).values()}
        own |= {file.relative_to(folder).as_posix() for file in (graph_path, *data)}
    return (
        unchecked_files(folder, own)
        | unchecked_entries(folder, graph)
        | Unchecked(folder, tuple(_genai_faults(folder, graph.resolve(), belonging)))
    )


def _genai_faults(folder: Path, graph: Path, belonging: Collection[Path]) -> list[str]:
    """Describe what genai_config.json makes onnxruntime-genai load other than the graph."""
    config_path = folder / GENAI
    if not config_path.is_file():
        return []
    model = as_mapping(read_json(config_path).get("model"))
    name = as_mapping(model.get("decoder")).get("filename")
    names = {path.relative_to(folder).as_posix(): path for path in belonging}
    if not isinstance(name, str) or name not in names:
        return [
            f"{GENAI} names the graph {reprlib.repr(name)} (onnxruntime-genai runs that one, not "
            f"{graph.relative_to(folder).as_posix()})"
        ]
    try:
        admit_genai_entries(config_path, names[name])
    except InputError as error:
        fault = str(error).removeprefix(f"{config_path}: ")
        return [f"{GENAI} {fault} (onnxruntime-genai obeys it)"]
    return []
