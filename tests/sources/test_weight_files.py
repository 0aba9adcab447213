"""One rule says which files hold the weights, by their names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.sources.weight_files import (
    choose_weights,
    explain_no_weights,
    list_names,
    shard_names,
)

TRAINER_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt",
                 "training_args.bin", "trainer_state.json", "config.json")  # fmt: skip

CHOSEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "safetensors before torch": (
        ("pytorch_model.bin", "model.safetensors"), ("model.safetensors",)
    ),
    "an index": (
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json",),
    ),
    "a torch index": (("pytorch_model.bin.index.json",), ("pytorch_model.bin.index.json",)),
    "an adapter beside": (("adapter_model.safetensors", "pytorch_model.bin"),
                          ("pytorch_model.bin",)),
    "a checkpoint beside": (("checkpoint-500/model.safetensors", "pytorch_model.bin"),
                            ("pytorch_model.bin",)),
    "another name": (("weights.safetensors", "adapter_model.safetensors"),
                     ("weights.safetensors",)),
    "shards without an index": (("m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors"),
                                ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")),
    "pt": (("model.pt", "optimizer.pt"), ("model.pt",)),
    "pth": (("model.pth", "rng_state.pth"), ("model.pth",)),
    "ckpt": (("epoch=3-step=100.ckpt",), ("epoch=3-step=100.ckpt",)),
    "a Trainer's checkpoint": (("pytorch_model.bin", *TRAINER_STATE), ("pytorch_model.bin",)),
    "the last checkpoint of a run": (
        ("checkpoint-500/model.safetensors", "checkpoint-1500/model.safetensors",
         "checkpoint-900/model.safetensors", "checkpoint-2000/optimizer.pt", "runs/events"),
        ("checkpoint-1500/model.safetensors",),
    ),
    "a DeepSpeed checkpoint with its whole model": (
        ("latest", "zero_to_fp32.py", "global_step9/mp_rank_00_model_states.pt",
         "global_step10/mp_rank_00_model_states.pt",
         "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("global_step10/mp_rank_00_model_states.pt",),
    ),
    "a DeepSpeed step alone": (
        ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("mp_rank_00_model_states.pt",),
    ),
    "DeepSpeed in the last checkpoint of a run": (
        ("checkpoint-5/global_step5/mp_rank_00_model_states.pt", "checkpoint-5/config.json"),
        ("checkpoint-5/global_step5/mp_rank_00_model_states.pt",),
    ),
    "a whole model of FSDP": (
        ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"),
        ("pytorch_model_fsdp.bin",),
    ),
    "a folder of accelerate": (
        ("model.safetensors", "model_1.safetensors", "optimizer.bin", "sampler.bin"),
        ("model.safetensors",),
    ),
    "a GGUF beside": (("config.json", "model.pt", "model.gguf"), ("model.pt",)),
    "a folder called pytorch_model.bin": (
        ("pytorch_model.bin/pytorch_model.bin", "config.json", "zero_to_fp32.py"),
        ("pytorch_model.bin/pytorch_model.bin",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOSEN)
def test_weights_are_chosen_by_name(kind: str) -> None:
    names, expected = CHOSEN[kind]
    weights = choose_weights(reversed(names))
    assert weights is not None
    assert (weights.files or (weights.index,)) == expected
    assert explain_no_weights(()) == ""


NOT_CHOSEN: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), ""),
    "a training state alone": (TRAINER_STATE, "state of a training run only"),
    "an adapter alone": (("adapter_model.bin", "adapter_config.json"), "only an adapter"),
    "several": (("a.pt", "b.pt"), r"several weight files \(a.pt, b.pt\); give the path"),
    "several checkpoints of Lightning": (("last.ckpt", "best.ckpt"), "several weight files"),
    "a shard missing": (("model-00001-of-00003.safetensors",), "but lacks model-00002-of-00003"),
    "ZeRO 3": (
        ("latest", "zero_to_fp32.py", "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt",
         "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "DeepSpeed ZeRO.*'python zero_to_fp32.py . merged'",
    ),
    "ZeRO 3 in a run": (
        ("checkpoint-7/zero_to_fp32.py", "checkpoint-7/latest"),
        "^checkpoint-7 is a DeepSpeed ZeRO",
    ),
    "tensor-parallel ranks": (
        ("global_step5/mp_rank_00_model_states.pt", "global_step5/mp_rank_01_model_states.pt"),
        "split over tensor-parallel ranks",
    ),
    "Megatron": (("iter_0000100/mp_rank_00/model_optim_rng.pt",), "Megatron"),
    "a rank of Megatron": (("model_optim_rng.pt",), "Megatron"),
    "pipelines": (
        ("global_step5/layer_00-model_states.pt", "global_step5/mp_rank_00_model_states.pt",
         "global_step5/layer_01-model_00-model_states.pt"),
        "DeepSpeed's pipelines",
    ),
    "data beside a GGUF": (("model.gguf", "train.bin"), ""),
    "FSDP in a run": (
        ("checkpoint-5/pytorch_model_fsdp_0/__0_0.distcp", "checkpoint-5/config.json"),
        "^checkpoint-5 is a distributed checkpoint.*merge-weights pytorch_model_fsdp_0",
    ),
    "FSDP": (
        ("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/__1_0.distcp"),
        "FSDP.*'accelerate merge-weights pytorch_model_fsdp_0 merged'",
    ),
    "Flax": (("flax_model.msgpack", "config.json"), "Flax only.*from_flax=True"),
    "TensorFlow": (("tf_model.h5",), "TensorFlow only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_CHOSEN)
def test_what_holds_no_weights_is_explained(kind: str) -> None:
    names, message = NOT_CHOSEN[kind]
    assert choose_weights(names) is None
    explanation = explain_no_weights(names)
    assert re.search(message, explanation) if message else explanation == ""
    assert "\n" not in explanation


def test_the_choice_names_the_folder_of_the_configuration() -> None:
    run = choose_weights(["checkpoint-5/pytorch_model.bin.index.json", "checkpoint-5/config.json"])
    assert run is not None
    assert (run.folder, run.index) == ("checkpoint-5", "checkpoint-5/pytorch_model.bin.index.json")
    assert "checkpoint-5, the only checkpoint" in run.note
    deepspeed = choose_weights(["global_step3/mp_rank_00_model_states.pt", "config.json"])
    assert deepspeed is not None
    assert deepspeed.folder == ""
    assert "half precision" in deepspeed.note


def test_listed_names_are_relative_and_bounded_in_depth(tmp_path: Path) -> None:
    for name in ("a.bin", "checkpoint-1/b.bin", "checkpoint-1/global_step1/c.pt", ".cache/d.bin",
                 "1/2/3/e.bin"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors").mkdir()
    assert sorted(list_names(tmp_path)) == [
        "a.bin", "checkpoint-1/b.bin", "checkpoint-1/global_step1/c.pt",
    ]  # fmt: skip


def test_an_index_may_only_name_files_beside_it(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}))
    assert shard_names(index) == ("1.safetensors", "2.safetensors")
    for name in ("../1.safetensors", ".hidden", "a\\b", "x" * 100):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="outside its folder"):
            shard_names(index)
