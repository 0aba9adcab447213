"""A small random checkpoint, and functions that put errors into its model or its files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from tokenizers import pre_tokenizers

from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry, Layer
from cgconvert.model.tensor import InMemoryTensor, LazyTensor, StoredTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.model.tokenizer import END_OF_TEXT, AddedToken, Tokenizer
from cgconvert.testing.configurations import codegen_config
from cgconvert.testing.synthetic import RandomState

GEOMETRY = Geometry(
    n_layer=3, n_embd=256, n_head=4, rotary_dim=32, n_positions=96, vocab_size=320, mp_num=4
)


def tokenizer() -> Tokenizer:
    """A tokenizer of single bytes, two merges, the end of text and the white-space runs."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate([*letters, "se", "sel"])}
    end = AddedToken(len(vocabulary), END_OF_TEXT, True)
    base = Tokenizer.from_parts(vocabulary, [("s", "e"), ("se", "l")], [end])
    return base.with_whitespace_runs()


def checkpoint(path: Path, geometry: Geometry = GEOMETRY, sharpness: float = 3.0) -> Checkpoint:
    state = dict(RandomState(geometry, seed=3, sharpness=sharpness))
    state["lm_head.bias"][tokenizer().size :] = -9  # rows that no token has do not win
    weights = path / "weights.bin"
    weights.write_bytes(b"stands for the source's file")
    return Checkpoint(
        name="codegen-test-mono",
        path=path,
        layout="torch",
        config=codegen_config(geometry, torch.float16),
        decoder=CODEGEN.decoder(geometry, {n: InMemoryTensor(t) for n, t in state.items()}, "test"),
        tokenizer=tokenizer(),
        files=(weights,),
        origin={"given": "somewhere"},
    )


# Changes of a model, for tests/mutations.


def change_layer(change: Callable[[Layer], Layer], layer: int = 1) -> Callable[[Decoder], Decoder]:
    def apply(d: Decoder) -> Decoder:
        blocks = list(d.layers)
        blocks[layer] = change(blocks[layer])
        return replace(d, layers=tuple(blocks))

    return apply


def exchange_rows(tensor: LazyTensor, first: int, second: int) -> LazyTensor:
    index = np.arange(tensor.shape[0])
    index[[first, second]] = index[[second, first]]
    return tensor.rows(index)


# Changes of written files, as a disk or an editor may make them.


def rewrite_array(stored: StoredTensor, change: Callable[[torch.Tensor], None]) -> None:
    """Change an array of a file in place."""
    numbers = stored.read()
    change(numbers)
    with stored.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write(numbers.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def stored_arrays(tensor: LazyTensor) -> tuple[StoredTensor, ...]:
    """Return the arrays a tensor is stored in: itself, its coded rows, or codes and scales."""
    if isinstance(tensor, QuantizedTensor):
        files = [array for array in tensor.arrays if isinstance(array, StoredTensor)]
        assert len(files) == len(tensor.arrays)
        return tuple(files)
    assert isinstance(tensor, StoredTensor)
    return (tensor,)


def rescale_block(tensor: LazyTensor, row: int, factor: float) -> None:
    """Multiply the first value of a row, or the scale of its first block if it is quantized."""

    def change(numbers: torch.Tensor) -> None:
        numbers[row, 0] *= factor

    def change_coded(rows: torch.Tensor) -> None:
        scale = rows[row, :2].clone().view(torch.float16) * factor
        rows[row, :2] = scale.view(torch.uint8)

    stored = stored_arrays(tensor)
    if isinstance(tensor, QuantizedTensor) and len(stored) == 1:
        rewrite_array(stored[0], change_coded)
    else:
        rewrite_array(stored[isinstance(tensor, QuantizedTensor)], change)


def swap_rows(tensor: LazyTensor, first: int, second: int) -> None:
    def change(rows: torch.Tensor) -> None:
        rows[[first, second]] = rows[[second, first]]

    for stored in stored_arrays(tensor):
        rewrite_array(stored, change)


def flip_bit(tensor: LazyTensor) -> None:
    """Flip the lowest bit of one number, or of one code."""

    def change(numbers: torch.Tensor) -> None:
        numbers.view(torch.uint8).reshape(-1)[8] ^= 1

    rewrite_array(stored_arrays(tensor)[0], change)


def change_epsilon(artefact: Path, format: str) -> None:  # noqa: A002
    """Change the layer norm epsilon from 1e-5 to 1e-6 where the runtime reads it."""
    if format == "huggingface":
        path = artefact / "config.json"
        config = json.loads(path.read_text())
        key = next(key for key in config if key.startswith("layer_norm_eps"))
        path.write_text(json.dumps(config | {key: 1e-6}))
    elif format == "gguf":
        raw = artefact.read_bytes()
        key = b"phi2.attention.layer_norm_epsilon" + struct.pack("<I", 6)
        old, new = (key + struct.pack("<f", value) for value in (1e-5, 1e-6))
        assert raw.count(old) == 1
        artefact.write_bytes(raw.replace(old, new))
    else:
        (path,) = (artefact / "onnx").glob("*.onnx")
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 1e-6
        path.write_bytes(model.SerializeToString())
