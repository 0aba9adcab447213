"""peft merges a source's adapter itself, and so catches what cgconvert's own merge gets wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cgconvert.formats.adapter import merge as merging
from cgconvert.formats.adapter.config import AdapterConfig, read_config
from cgconvert.formats.read import ReadOptions, read
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.witness.checks import check_source
from tests.formats.adapter.adapters import change_config, save_adapter
from tests.verification.witness.test_sources import ask


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


def verdicts(base: Path, *adapters: Path) -> dict[str, Verdict]:
    source = read(str(base), ReadOptions(adapter=adapters))
    return {check.name: check.verdict for check in check_source(ask(source))}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_right_merges_pass(file: str, base: Path, tmp_path: Path) -> None:
    """One adapter with all that adapters have, and a second one on it."""
    first = save_adapter(
        base, tmp_path / "first", target_modules=["qkv_proj", "fc_in", "wte"], bias="all",
        use_rslora=True, alpha_pattern={"fc_in": 9}, modules_to_save=["lm_head"],
    )  # fmt: skip
    second = save_adapter(base, tmp_path / "second", target_modules="all-linear")
    if file.endswith(".bin"):
        torch.save(load_file(first / "adapter_model.safetensors"), first / file)
        (first / "adapter_model.safetensors").unlink()
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy(base / name, first)
    assert verdicts(base, first, second)["witness.logits"] == Verdict.PASS
    assert Verdict.FAIL not in verdicts(base, first, second).values()


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "scaling of another rank": lambda patch: patch.setattr(
        AdapterConfig, "scaling_of", lambda self, _: self.alpha / (self.rank + 1)
    ),
    "scaling that is not rank-stabilized": lambda patch: patch.setattr(
        merging, "read_config",
        lambda folder: replace(read_config(folder), is_rank_stabilized=False),
    ),
    "no product": lambda patch: patch.setattr(
        merging, "LowRankUpdate", lambda base, *_: base
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_wrong_merge_fails(
    mistake: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(base, tmp_path / "lora", target_modules=["fc_in"], use_rslora=True)
    PLANTED[mistake](monkeypatch)
    assert verdicts(base, folder)["witness.logits"] == Verdict.FAIL


def test_a_pattern_of_the_adapter_is_not_matched(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "lora", target_modules=["fc_in"])
    change_config(folder, target_modules="(.*)*fc_in")
    source = read(str(base), ReadOptions(adapter=(folder,)))
    (check,) = (c for c in check_source(ask(source)) if c.name == "witness.logits")
    assert check.verdict == Verdict.INFO
    assert "a pattern chooses the modules of its adapter" in check.detail
