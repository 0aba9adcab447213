"""Verification: what passes, what is caught, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.formats import huggingface
from cgconvert.model import CODEGEN, Block, Decoder, Geometry, split_rows
from cgconvert.runtimes.runtime import Runtime
from cgconvert.stream.execute import execute
from cgconvert.stream.plan import Plan
from cgconvert.synthetic import RandomState, codegen_config
from cgconvert.tensor import InMemory, LazyTensor, Zeros
from cgconvert.tokenizer import END_OF_TEXT, AddedToken, Tokenizer
from cgconvert.verify import reference as reference_module
from cgconvert.verify.checks import run_checks
from cgconvert.verify.evidence import Evidence, witness
from cgconvert.verify.reference import Reference
from cgconvert.verify.report import as_json, as_table, write_report
from cgconvert.verify.thresholds import TABLE, thresholds_for
from cgconvert.verify.verdict import Check, Verdict, at_least, at_most, overall
from cgconvert.verify.verify import run, verify

GEOMETRY = Geometry(
    n_layer=3, n_embd=256, n_head=4, rotary_dim=32, n_positions=160, vocab_size=320, mp_num=4
)
LOOSEST_FLOAT = ("gguf", "F16")


def tokenizer() -> Tokenizer:
    """Bytes, the end of text and the white-space runs: no merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = AddedToken(256, END_OF_TEXT, True)
    return Tokenizer.from_parts({c: n for n, c in enumerate(letters)}, [], [end]).with_whitespace_runs()


def checkpoint(path: Path, geometry: Geometry = GEOMETRY, sharpness: float = 3.0) -> Checkpoint:
    state = RandomState(geometry, seed=3, sharpness=sharpness)
    weights = path / "weights.bin"
    weights.write_bytes(b"stands for the source's file")
    return Checkpoint(
        name="codegen-test-mono",
        path=path,
        layout="torch",
        config=codegen_config(geometry, torch.float16),
        decoder=CODEGEN.decoder(geometry, {n: InMemory(t) for n, t in state.items()}, "test"),
        tokenizer=tokenizer(),
        files=(weights,),
    )


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return checkpoint(tmp_path)


class StandIn(Runtime):
    """A runtime that is the reference itself, so that the checks meet no noise but their own."""

    name = "stand-in"
    device = "cpu"

    def __init__(self, model: Checkpoint) -> None:
        self.model = model
        self.reference = Reference(model.decoder)
        self.cache: list[int] = []

    @classmethod
    def open(cls, path: Path, device: str = "cpu", threads: int | None = None) -> StandIn:
        return cls(checkpoint(path))

    @property
    def n_positions(self) -> int:
        return self.model.geometry.n_positions

    @property
    def end_of_text(self) -> int:
        return self.model.tokenizer.end_of_text

    def reset(self) -> None:
        self.cache = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.cache += ids
        return self.reference.logits([self.cache])[0][-len(ids) :]

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode(ids)


def evidence(runtime: Runtime, source: Checkpoint) -> Evidence:
    return witness(run(runtime, source, new_tokens=24), Reference(source.decoder), source.tokenizer)


def failed(seen: Evidence, row: tuple[str, str] = LOOSEST_FLOAT) -> set[str]:
    checks = run_checks(seen, thresholds_for(*row, torch.float32))
    return {check.name for check in checks if check.verdict == Verdict.FAIL}


# Planted mistakes: a model, as a writer would have got it wrong.


def on_block(change: Callable[[Block], Block], layer: int = 1) -> Callable[[Decoder], Decoder]:
    def apply(d: Decoder) -> Decoder:
        blocks = list(d.blocks)
        blocks[layer] = change(blocks[layer])
        return replace(d, blocks=tuple(blocks))

    return apply


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    return InMemory(tensor.read().float() * factor)


def regrouped(d: Decoder) -> Decoder:
    """qkv_proj taken apart as if it were packed in 2 groups."""
    g = d.geometry
    index = split_rows(g.n_embd, 2)
    blocks = []
    for block in d.blocks:
        packed = block.packed(4)
        q, k, v = (packed.rows(rows) for rows in index)
        blocks.append(replace(block, q=q, k=k, v=v))
    return replace(d, blocks=tuple(blocks))


def exchanged(tensor: LazyTensor, first: int, second: int) -> LazyTensor:
    index = np.arange(tensor.shape[0])
    index[[first, second]] = index[[second, first]]
    return tensor.rows(index)


def no_last_layer(d: Decoder) -> Decoder:
    return replace(
        d, geometry=replace(d.geometry, n_layer=d.geometry.n_layer - 1), blocks=d.blocks[:-1]
    )


MISTAKES: dict[str, Callable[[Decoder], Decoder]] = {
    "rotary in halves": Decoder.half_split,
    "k and v exchanged": on_block(lambda b: replace(b, k=b.v, v=b.k)),
    "q and k exchanged": on_block(lambda b: replace(b, k=b.q, q=b.k)),
    "groups of another mp_num": regrouped,
    "a bias dropped": on_block(
        lambda b: replace(b, fc_in_bias=Zeros(b.fc_in_bias.shape, torch.float16))
    ),
    "the head's bias dropped": lambda d: replace(
        d, head_bias=Zeros(d.head_bias.shape, torch.float16)
    ),
    "an MLP scaled": on_block(lambda b: replace(b, fc_out=scaled(b.fc_out, 1.05))),
    "epsilon": lambda d: replace(d, geometry=replace(d.geometry, layer_norm_epsilon=1e-6)),
    "rotary base": lambda d: replace(d, geometry=replace(d.geometry, rotary_base=500000.0)),
    "rotary over half its width": lambda d: replace(d, geometry=replace(d.geometry, rotary_dim=16)),
    "no last layer": no_last_layer,
    "layers exchanged": lambda d: replace(d, blocks=(d.blocks[1], d.blocks[0], *d.blocks[2:])),
    "out_proj transposed": on_block(lambda b: replace(b, o=b.o.T)),
    "two embedding rows exchanged": lambda d: replace(d, wte=exchanged(d.wte, 70, 71)),
    "two rows of the head exchanged": lambda d: replace(d, head=exchanged(d.head, 70, 71)),
    "vocabulary shifted by one": lambda d: replace(
        d, head=d.head.rows(np.roll(np.arange(d.head.shape[0]), 1))
    ),
    "last norm left out": lambda d: replace(
        d, ln_f_weight=InMemory(torch.ones(d.geometry.n_embd))
    ),
}


def test_the_right_model_passes_and_the_reference_excuses_nothing(source: Checkpoint) -> None:
    seen = evidence(StandIn(source), source)
    checks = {check.name: check for check in run_checks(seen, thresholds_for("onnx", "float32", torch.float32))}
    assert not [c for c in checks.values() if c.verdict == Verdict.FAIL]
    assert checks["generation"].detail == "48 of 48 tokens as the reference"
    assert checks["logits.kl_mean"].value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught_in_the_logits(name: str, source: Checkpoint) -> None:
    wrong = replace(source, decoder=MISTAKES[name](source.decoder))
    assert {"logits.kl_mean", "logits.nmse"} <= failed(evidence(StandIn(wrong), source))
