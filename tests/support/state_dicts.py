"""State dicts of a small model, and what training programs save beside them."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import random
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgconvert.model.decoder import Checkpoint
from cgconvert.write.execute import execute
from tests.support import plans

NAME = "model"
State = dict[str, torch.Tensor]


def gguf_bytes(checkpoint: Checkpoint, folder: Path) -> bytes:
    path = folder / "model.gguf"
    path.unlink(missing_ok=True)
    execute(plans.to_gguf(checkpoint, path))
    return path.read_bytes()


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def optimizer() -> torch.optim.Optimizer:
    """An optimizer after a step, with states of its own."""
    layer = torch.nn.Linear(4, 4)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    adam.step()
    return adam


def training_state() -> dict[str, Any]:
    """What training loops save beside the model."""
    states = optimizer().state_dict()
    return {
        "epoch": 3, "global_step": 100, "loss": 0.5, "best": None, "done": False, "large": 1 << 90,
        "pytorch-lightning_version": "2.0.0",
        "optimizer": states, "optimizer_states": [states],
        "lr_schedulers": [{"milestones": collections.Counter([1, 2]), "_last_lr": [0.1]}],
        "args": argparse.Namespace(
            lr=1e-4, output=pathlib.PurePosixPath("a/b/c"), device=torch.device("cuda:0"),
            dtype=torch.bfloat16, betas=(0.9, 0.95), started=datetime.datetime(2026, 1, 1),
        ),
        "rng": {
            "python": random.getstate(), "numpy": np.random.get_state(),
            "cpu": torch.get_rng_state(),
        },
        "metrics": collections.defaultdict(dict, {"eval": {"loss": np.float64(0.5)}}),
        "counts": [collections.defaultdict(kind, {"x": kind()}) for kind in (int, str, float)],
        "array": np.arange(6).reshape(2, 3), "count": np.int64(7), "names": {"a", "b"},
        "shapes": [torch.Size([2, 3])], "frozen": frozenset({1}), "complex": 1j, "raw": b"ab",
        "layout": torch.strided, "short": torch.zeros(3, dtype=torch.uint16),
        "queue": collections.deque([1]), "slice": slice(1, 2), "buffer": bytearray(b"x"),
    }  # fmt: skip


HEAD, WTE, BIAS = "lm_head.weight", "transformer.wte.weight", "lm_head.bias"


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.tensor_parallel = False  # type: ignore[attr-defined]
    return tensor
