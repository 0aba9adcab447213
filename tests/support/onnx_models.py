"""Small random models as ONNX artefacts, and their logits by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgconvert import embedded
from cgconvert.formats.onnx.reader import find_graph
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import ReadOptions, read
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.testing import configurations, synthetic
from cgconvert.write.execute import execute

THREADS = 2
LENGTHS = (40, 17, 3)

# Head sizes 64, 80 and 256, as the family has them.
GEOMETRIES = {
    64: Geometry(2, 256, 4, rotary_dim=32, n_positions=128, vocab_size=4096, mp_num=4),
    80: Geometry(2, 320, 4, rotary_dim=64, n_positions=128, vocab_size=4096, mp_num=4),
    256: Geometry(1, 1024, 4, rotary_dim=64, n_positions=128, vocab_size=4096, mp_num=4),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "model": {},
    "model_fp16": {"dtype": "float16"},
    "model_int8": {"bits": 8},
    "model_q4": {"bits": 4},
    "model_cuda": {"dtype": "float16", "target": "cuda"},
    "model_cuda_q4": {"dtype": "float16", "target": "cuda", "bits": 4},
    "model_js": {"client": "transformers.js"},
    "model_q4f16": {"bits": 4, "dtype": "float16", "symmetric": True},
}


@dataclass
class Model:
    """A checkpoint, the same model in transformers, and a folder of artefacts made from it."""

    checkpoint: Checkpoint
    theirs: Any  # a CodeGenForCausalLM, whose `generate` has no types
    folder: Path

    def artefact(self, kind: str) -> Path:
        output = self.folder / kind
        if not output.exists():
            execute(plan(self.checkpoint, output, **VARIANTS[kind]))
        return output

    def graph(self, kind: str) -> Path:
        return find_graph(self.artefact(kind))

    def prompts(self) -> list[list[int]]:
        rng = np.random.default_rng(0)
        return [rng.integers(0, 4000, size=n).tolist() for n in LENGTHS]

    def logits(self, ids: list[int]) -> np.ndarray:
        return logits_of(self.theirs, ids)


def logits_of(model: CodeGenForCausalLM, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def transformers_model(decoder: Decoder) -> CodeGenForCausalLM:
    g = decoder.geometry
    config = CodeGenConfig(**configurations.codegen_config(g, torch.float32))
    model: CodeGenForCausalLM = CodeGenForCausalLM(config).eval()
    state = {name: getattr(decoder, part) for part, name in CODEGEN.model.items()}
    for i, block in enumerate(decoder.layers):
        for part, name in CODEGEN.layer.items():
            state[name.format(i=i)] = block.packed(4) if part == "qkv" else getattr(block, part)
    model.load_state_dict({name: tensor.read().float() for name, tensor in state.items()})
    return model


def make(geometry: Geometry, folder: Path, gain: float = 1) -> Model:
    """Make a random model; `gain` multiplies the output matrices of attention and MLP."""
    # Sharp attention: if q and k were small, errors in rotary positions would not show.
    state: Mapping[str, torch.Tensor] = synthetic.RandomState(geometry, seed=1, sharpness=4)
    last = ("out_proj.weight", "fc_out.weight")
    if gain != 1:
        state = {n: (t.float() * gain).half() if n.endswith(last) else t for n, t in state.items()}
    name = "codegen-small-mono"
    path = synthetic.write("safetensors", state, geometry, folder, name, embedded.path())
    checkpoint = read(str(path), ReadOptions())
    return Model(checkpoint, transformers_model(checkpoint.decoder), folder)


def relative_error(candidate: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(candidate - reference) / np.linalg.norm(reference))


def copy(small: Model, tmp_path: Path) -> Path:
    """Copy the float32 artefact, to be changed."""
    source, target = small.artefact("model"), tmp_path / "copy"
    (target / "onnx").mkdir(parents=True)
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
    return target
