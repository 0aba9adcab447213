"""A small valid input of every kind, written once; each case damages a copy of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from cgconvert.write.plan import Plan
from tests.support import plans

__all__ = ["GEOMETRY", "INPUT_NAMES", "STATE", "ValidInputs"]

GEOMETRY = Geometry(
    n_layer=1, n_embd=64, n_head=4, rotary_dim=16, n_positions=64, vocab_size=4096, mp_num=4
)
STATE = synthetic.RandomState(GEOMETRY, seed=1, dtype=torch.float32)

INPUT_NAMES: Mapping[str, str] = {
    "torch": "source",
    "torch-sharded": "source",
    "safetensors": "source",
    "safetensors-sharded": "source",
    "jaxformer": "source",
    "tarball": "source.tar.gz",
    "hf": "source",
    "gptj": "source",
    "phi": "source",
    "onnx": "source",
    "onnx-int4": "source",
    "gguf": "source.gguf",
    "adapter": "source",
    "recipe": "recipe.yaml",
}
"""The file or folder name of each kind of input, as it is given on the command line."""

RECIPE = "source: source\nsteps:\n  - to-gguf: {output: out.gguf}\n"

ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "../base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["qkv_proj"],
}
ADAPTER_TENSORS = {
    f"base_model.model.transformer.h.0.attn.qkv_proj.lora_{factor}.weight": torch.full(shape, 0.01)
    for factor, shape in {"A": (2, 64), "B": (192, 2)}.items()
}

_ARTEFACTS: dict[str, Callable[..., Plan]] = {
    "hf": partial(plans.to_hf, dtype="float16"),
    "gptj": partial(plans.to_hf, layout="gptj"),
    "phi": partial(plans.to_hf, layout="phi"),
    "onnx": plans.to_onnx,
    "onnx-int4": partial(plans.to_onnx, bits=4),
    "gguf": plans.to_gguf,
}


class ValidInputs:
    """Writes each input under `folder` when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, kind: str, target: Path) -> Path:
        """Copy the input of this kind into the folder `target`; return the copy's path."""
        original = self.folder / kind
        if not original.exists():
            original.mkdir(parents=True)
            self._write(kind, original)
        shutil.copytree(original, target, dirs_exist_ok=True)
        return target / INPUT_NAMES[kind]

    def _write(self, kind: str, folder: Path) -> None:
        if kind == "recipe":
            self.copy("safetensors", folder)
            (folder / "recipe.yaml").write_text(RECIPE)
        elif kind == "adapter":
            self.copy("safetensors", folder)
            (folder / "source").rename(folder / "base")
            (folder / "source").mkdir()
            (folder / "source" / "adapter_config.json").write_text(json.dumps(ADAPTER))
            save_file(ADAPTER_TENSORS, folder / "source" / "adapter_model.safetensors")
        elif kind in _ARTEFACTS:
            source = read(str(self.copy("safetensors", self.folder / "original")))
            output = folder / INPUT_NAMES[kind]
            execute(_ARTEFACTS[kind](source, output))
        else:
            tokenizer = embedded.path()
            made = synthetic.write(kind, STATE, GEOMETRY, folder, "source", tokenizer)
            made.rename(folder / INPUT_NAMES[kind])
