"""A vocabulary that was resized without writing its size is no fault of a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgconvert.formats.read import read
from tests.support.fine_tunes import fine_tune
from tests.verification.witness.test_reader_bugs import failed, report_on, witnesses


@pytest.mark.parametrize("change", [-16, 64])
def test_rows_are_counted_in_the_weights(change: int, tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "source")
    path = folder / "model.safetensors"
    state = load_file(path)
    for name in ("transformer.wte.weight", "lm_head.weight", "lm_head.bias"):
        rows = len(state[name]) + change
        state[name] = torch.cat([state[name], state[name][:64]])[:rows].contiguous()
    save_file(state, path, metadata={"format": "pt"})
    source = read(str(folder))
    config = json.loads((folder / "config.json").read_text())
    assert source.geometry.vocab_size == config["vocab_size"] + change
    report = report_on(source, tmp_path)
    assert failed(report) == {}
    assert "the whole model" in witnesses(report)["witness.logits"].detail
