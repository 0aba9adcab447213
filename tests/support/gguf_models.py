"""Small random models as GGUF files, and their logits by transformers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from cgconvert import embedded
from cgconvert.formats.gguf.writer import file_name, plan
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.tensor import InMemoryTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.testing import configurations, synthetic
from cgconvert.write.execute import execute

ROWS = 4200
"""Rows of the embedding: more than the embedded tokenizer has ids, so that some are padding."""

# The head sizes and rotary dimensions of the CodeGen models, with four heads and two layers.
GEOMETRIES = {
    head: Geometry(
        n_layer=2, n_embd=4 * head, n_head=4, rotary_dim=rotary, n_positions=256,
        vocab_size=ROWS, mp_num=4,
    )
    for head, rotary in ((64, 32), (80, 64), (256, 64))
}  # fmt: skip

CODE = (
    "def hello(x):\n        return x + 1\n\t\tfoo\n\n\n\n\n"
    + " " * 33
    + "é = '日本語 🙂'\t\t\t\t\t\t\t\t\t\t\t# naïve\r\n"
    + "if x != 'a' and (y <= 3.14) :  # it's , . ! ?\n    pass<|endoftext|>\nclass  A:\n"
)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(embedded.path())


@functools.cache
def random_checkpoint(head: int) -> Checkpoint:
    geometry = GEOMETRIES[head]
    state = synthetic.RandomState(geometry, seed=head, sharpness=4)
    tensors = {name: InMemoryTensor(tensor) for name, tensor in state.items()}
    decoder = CODEGEN.decoder(geometry, tensors, "random")
    return Checkpoint("codegen-9M-multi", Path("random"), "torch", {}, decoder, tokenizer(), ())


@functools.cache
def reference(head: int, ids: tuple[int, ...]) -> np.ndarray:
    """Return float32 logits by transformers, [tokens, ids of the tokenizer]."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    geometry = GEOMETRIES[head]
    state = synthetic.RandomState(geometry, seed=head, sharpness=4)
    config = CodeGenConfig(**configurations.codegen_config(geometry, torch.float32))
    model = CodeGenForCausalLM(config).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    scores: np.ndarray = logits[:, : tokenizer().size].numpy()
    return scores


def prompt() -> tuple[int, ...]:
    return tuple(tokenizer().encode(CODE))


def converted(folder: Path, type: str = "F16", head: int = 64) -> Path:  # noqa: A002
    """Write the random model of a head size into `folder` if it is not there; return its path."""
    checkpoint = random_checkpoint(head)
    output = folder / f"{head}" / file_name(checkpoint, type)
    if not output.exists():
        execute(plan(checkpoint, output, type=type))
    return output
