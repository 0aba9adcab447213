"""Folders and files as training programs leave them: names, checkpoints, parts."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from tests.conftest import SMALL
from tests.support.state_dicts import (
    NAME,
    State,
    gguf_bytes,
    training_state,
)

FILES: dict[str, tuple[str, ...]] = {
    "pt": ("model.pt",),
    "pth": ("model.pth", "optimizer.pth"),
    "ckpt": ("last.ckpt",),
    "bin of another name": ("codegen.bin", "training_args.bin"),
    "the Trainer's state beside": (
        "pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin",
    ),
    "a state of training before, by name": ("model.pt", "adapter_model.bin", "a_optim_states.pt"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_names_of_files(
    kind: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    weights, *others = FILES[kind]
    torch.save(state, source / weights)
    for name in others:
        torch.save({"state": training_state()["optimizer"]}, source / name)
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes
    assert gguf_bytes(read(str(source / weights)), tmp_path) == plain_bytes
    assert read(str(source)).layout == "torch"


def test_safetensors_of_another_name(
    state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    save_file(state, source / "codegen-finetuned.safetensors")
    save_file({"lora": torch.ones(1)}, source / "adapter_model.safetensors")
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


def test_several_weight_files_have_to_be_chosen_from(state: State, source: Path) -> None:
    for name in ("epoch=1.ckpt", "epoch=2.ckpt"):
        torch.save(state, source / name)
    with pytest.raises(InputError, match=r"several weight files \(epoch=1.ckpt, epoch=2.ckpt\)"):
        read(str(source))
    assert read(str(source / "epoch=2.ckpt")).geometry == SMALL


def test_checkpoints_of_the_trainer(
    state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    """The folder is a source, and so is the run, of which the last checkpoint is read."""
    run = tmp_path / "run"
    for step in (500, 1500, 1000):
        folder = run / f"checkpoint-{step}"
        shutil.copytree(source, folder)
        factor = 1 if step == 1500 else 2
        save_file({n: t * factor for n, t in state.items()}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            torch.save(training_state(), folder / name)
        (folder / "trainer_state.json").write_text("{}")
    checkpoint = read(str(run))
    assert checkpoint.notes == (
        f"{run}: the weights are those of checkpoint-1500, the last of 3 in the folder",
    )
    (tmp_path / "last").mkdir()
    (run / "checkpoint-1500").rename(tmp_path / "last" / NAME)
    assert gguf_bytes(read(str(tmp_path / "last" / NAME)), tmp_path) == plain_bytes
    assert "checkpoint-1000, the last of 2" in read(str(run)).notes[0]
    assert read(str(run / "checkpoint-500")).notes == ()


def test_the_tokenizer_of_the_run_serves_its_checkpoints(
    state: State, source: Path, tokenizer_folder: Path
) -> None:
    folder = source / "checkpoint-5"
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    save_file(state, folder / "model.safetensors")
    (source / "config.json").unlink()
    for path in (source, folder):
        assert read(str(path)).tokenizer == read(str(tokenizer_folder)).tokenizer


def deepspeed(state: State, folder: Path, tag: str = "global_step9") -> Path:
    """Write a checkpoint of ZeRO 2 with its whole model in half precision."""
    (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(tag)
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    content: dict[str, Any] = {
        "module": state, "buffer_names": [], "optimizer": None, "lr_scheduler": None,
        "param_shapes": [OrderedDict((n, t.shape) for n, t in state.items())],
        "sparse_tensor_module_names": set(), "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.14.0", "global_steps": 9, "dp_world_size": 2, "frozen_param_shapes": None,
    }  # fmt: skip
    path = folder / tag / "mp_rank_00_model_states.pt"
    torch.save(content, path)
    torch.save({}, folder / tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return path


def test_the_whole_model_of_deepspeed(
    state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    path = deepspeed(state, source)
    checkpoint = read(str(source))
    assert gguf_bytes(checkpoint, tmp_path) == plain_bytes
    assert "DeepSpeed's copy in half precision" in checkpoint.notes[0]
    for place in (path, path.parent):
        assert torch.equal(read(str(place)).decoder.wte.read(), state["transformer.wte.weight"])


def test_divided_weights_of_deepspeed_name_the_script(state: State, source: Path) -> None:
    path = deepspeed(state, source)
    part = path.rename(path.with_name("zero_pp_rank_0_mp_rank_00_model_states.pt"))
    for place in (source, part.parent, part):
        with pytest.raises(InputError, match=r"DeepSpeed ZeRO.*'python zero_to_fp32\.py \. merg"):
            read(str(place))
    # What the Trainer of some versions wrote beside: names without numbers.
    torch.save({name: t.new_zeros(0) for name, t in state.items()}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no numbers.*ZeRO 3; run 'python zero_to_fp32"):
        read(str(source))


def test_a_distributed_checkpoint_of_fsdp_names_the_command(source: Path) -> None:
    (source / "pytorch_model_fsdp_0").mkdir()
    (source / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(InputError, match=r"FSDP.*'accelerate merge-weights pytorch_model_fsdp_0"):
        read(str(source))
