"""Decoys: the artefact is right, and a program that opens its folder takes something else.

tests/decoys has all kinds; here some of each format stand beside the bugs of conversion.
"""

from __future__ import annotations

from pathlib import Path

from cgconvert.model.decoder import Checkpoint
from tests.decoys.decoy import Plant, all_of, entry, file, second_copy
from tests.decoys.table import CONFIG, TOKENIZER_CONFIG, genai
from tests.mutations.mutation import GGUF, HF, ONNX, Files, Mutation

__all__ = ["DECOYS", "WHERE"]

WHERE = "decoy"
"""The place of all of them; `python -m tests.mutations --only decoy` plants them alone."""

MODEL = ("sharp",)


def planted(plant: Plant) -> Files:
    def change_files(artefact: Path, _: Checkpoint) -> None:
        plant(artefact)

    return change_files


def decoy(name: str, types: tuple[str, ...], plant: Plant) -> Mutation:
    """A decoy for the check `files`; it has nothing to do with weights, so one model is enough."""
    return Mutation(name, WHERE, types, frozenset({"files"}), files=planted(plant), models=MODEL)


def second_graph(name: str) -> Plant:
    """A copy of the only graph, under a name at the root of the folder."""

    def plant(artefact: Path) -> None:
        (graph,) = (artefact / "onnx").glob("*.onnx")
        (artefact / name).write_bytes(graph.read_bytes())

    return plant


def shadowing_data(artefact: Path) -> None:
    """A copy of the graph's data at the root, where a graph that is loaded from memory has it."""
    (data,) = (artefact / "onnx").glob("*.onnx_data")
    (artefact / data.name).write_bytes(data.read_bytes())


def parts(artefact: Path) -> None:
    second_copy(f"{artefact.stem}-00001-of-00002.gguf")(artefact)


DECOYS = (
    decoy(
        "transformers_weights names a second file", HF,
        all_of(entry(CONFIG, transformers_weights="second.safetensors"),
               second_copy("second.safetensors")),
    ),
    decoy("a pickle of weights", HF, file("pytorch_model.bin")),
    decoy(
        "code that auto_map names", HF,
        all_of(entry(CONFIG, auto_map={"AutoModelForCausalLM": "modeling_decoy.Model"}),
               file("modeling_decoy.py")),
    ),
    decoy(
        "fast_tokenizer_files names a second file", (*HF, *ONNX),
        all_of(entry(TOKENIZER_CONFIG, fast_tokenizer_files=["tokenizer.4.0.json"]),
               second_copy("tokenizer.4.0.json", "tokenizer.json")),
    ),
    decoy(
        "a tokenizer's class of another family", (*HF, *ONNX),
        entry(TOKENIZER_CONFIG, tokenizer_class="BertTokenizer"),
    ),
    decoy("a second graph", ONNX, second_graph("decoder_model_merged.onnx")),
    decoy("external data that shadows", ONNX, shadowing_data),
    decoy(
        "genai_config names another graph", ONNX,
        all_of(genai(filename="model.onnx"), second_graph("model.onnx")),
    ),
    decoy("a projector beside the file", GGUF, second_copy("mmproj-F16.gguf")),
    decoy("parts of the file's name", GGUF, parts),
)  # fmt: skip
