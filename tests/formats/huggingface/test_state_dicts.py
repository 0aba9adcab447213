"""Checkpoints as training loops save them convert to the same bytes as the plain model."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.testing import synthetic
from cgconvert.write.execute import execute
from tests.conftest import SMALL
from tests.support import plans

NAME = "model"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    small_state: synthetic.RandomState,
    tokenizer_folder: Path,
) -> Path:
    """The model as transformers saves it."""
    folder = tmp_path_factory.mktemp("plain")
    return synthetic.write("safetensors", small_state, SMALL, folder, NAME, tokenizer_folder)


@pytest.fixture(scope="module")
def state(plain: Path) -> State:
    return load_file(plain / "model.safetensors")


@pytest.fixture(scope="module")
def plain_bytes(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_bytes(read(str(plain)), tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    """A folder with the configuration and tokenizer of the model, without weights."""
    folder = tmp_path / "source" / NAME
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


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


Wrap = Callable[[State], Any]

WRAPPED: dict[str, Wrap] = {
    "plain": dict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "loss": 0.5},
    "model": lambda s: {"model": s, "step": 100},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "module": lambda s: {"module": s, "global_steps": 100, "dp_world_size": 8},
    "net": lambda s: {"net": OrderedDict(s)},
    "params": lambda s: {"version": 1, "params": s},
    "one in another": lambda s: {"state_dict": {"model": s}, "hyper_parameters": {"lr": 0.1}},
    "three deep": lambda s: {"a": {"b": {"model": s}}},
    "with all of a training state": lambda s: {"model": s, **training_state()},
    "training state before": lambda s: {**training_state(), "model": s},
    "an optimizer as an object": lambda s: {"model": s, "optimizer": optimizer()},
    "in a tuple": lambda s: (s, training_state()["optimizer"], 3),
    "in a list in a dictionary": lambda s: {"models": [s], "losses": [0.5, 0.25]},
    "twice the same": lambda s: {"model": s, "state_dict": s},
    "other numbers among the tensors": lambda s: {**s, "epoch": 3, "_extra_state": None},
    "a small model beside": lambda s: {"model": s, "critic": {"weight": torch.ones(3)}},
    "DataParallel": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: prefixed(s, "module._orig_mod."),
    "both the other way round": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), **training_state()},
    "Lightning, compiled": lambda s: {"state_dict": prefixed(s, "model._orig_mod.")},
    "Lightning Fabric": lambda s: {"model": prefixed(s, "_forward_module.module.")},
    "a prefix of its own": lambda s: {"state_dict": prefixed(s, "policy.net.")},
    "base_model": lambda s: prefixed(s, "base_model.model."),
    "FSDP": lambda s: {
        f"_fsdp_wrapped_module.{name.replace('.attn.', '._fsdp_wrapped_module.attn.')}": tensor
        for name, tensor in s.items()
    },
    "activation checkpointing": lambda s: {
        name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): tensor
        for name, tensor in s.items()
    },
    "the decoder's names without transformer": lambda s: {
        name.removeprefix("transformer."): tensor for name, tensor in s.items()
    },
    "the decoder in a module, the head beside": lambda s: {
        name.replace("transformer.", "backbone."): tensor for name, tensor in s.items()
    },
    "parameters": lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()},
    "parameters with attributes": lambda s: {
        n: tagged(torch.nn.Parameter(t)) for n, t in s.items()
    },
    "tensors with attributes": lambda s: {n: tagged(t.clone()) for n, t in s.items()},
}


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.tensor_parallel = False  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_and_prefixed_state_dicts(
    kind: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    torch.save(WRAPPED[kind](state), source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert checkpoint.notes == ()
    assert gguf_bytes(checkpoint, tmp_path) == plain_bytes


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_of_pickle(
    protocol: int, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    wrapped = {"model": prefixed(state, "module."), **training_state()}
    torch.save(wrapped, source / "pytorch_model.bin", pickle_protocol=protocol)
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_in_safetensors(
    prefix: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    save_file(prefixed(state, prefix), source / "model.safetensors")
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


def test_prefixes_in_shards(state: State, source: Path, plain_bytes: bytes, tmp_path: Path) -> None:
    synthetic._sharded(
        prefixed(state, "module."), source, "pytorch_model-{:05}-of-00002.bin",
        "pytorch_model.bin", torch.save,
    )  # fmt: skip
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


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


TWO_MODELS: dict[str, tuple[Wrap, str]] = {
    "model and ema": (
        lambda s: {"model": s, "ema": {n: t * 2 for n, t in s.items()}},
        "'model', 'ema'",
    ),
    "plain and wrapped": (lambda s: {**s, "best": {n: t * 2 for n, t in s.items()}}, "'', 'best'"),
    "two prefixes": (
        lambda s: {**prefixed(s, "model."), **prefixed(s, "ema.")},
        "begin with 'ema.', 'model.'",
    ),
    "a policy and its reference": (
        lambda s: {"state_dict": {**s, **prefixed(s, "ref_model.")}},
        "'', 'ref_model.'",
    ),
    "one name twice": (lambda s: {**s, **prefixed(s, "_orig_mod.")}, "are names of one tensor"),
}


@pytest.mark.parametrize("kind", TWO_MODELS)
def test_two_models_in_a_file_are_refused(kind: str, state: State, source: Path) -> None:
    wrap, message = TWO_MODELS[kind]
    torch.save(wrap(state), source / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        read(str(source))


HEAD, WTE, BIAS = "lm_head.weight", "transformer.wte.weight", "lm_head.bias"


def test_tied_heads(state: State, source: Path, plain: Path, tmp_path: Path) -> None:
    """Left out, left out with its bias, or under two names: the head is the embedding."""
    tied = {**state, HEAD: state[WTE]}
    save_file({name: t.clone() for name, t in tied.items()}, source / "model.safetensors")
    expected = gguf_bytes(read(str(source)), tmp_path)
    (source / "model.safetensors").unlink()
    edit_config(source, tie_word_embeddings=True)
    without_head = {name: t for name, t in tied.items() if name != HEAD}
    kinds: dict[str, tuple[Any, int]] = {
        "under two names": (tied, 0),
        "left out": (without_head, 1),
        "the embedding left out": ({n: t for n, t in tied.items() if n != WTE}, 1),
        "left out, with a prefix": (prefixed(without_head, "module."), 1),
    }
    for kind, (saved, count) in kinds.items():
        torch.save(saved, source / "pytorch_model.bin")
        checkpoint = read(str(source))
        assert gguf_bytes(checkpoint, tmp_path) == expected, kind
        assert len(checkpoint.notes) == count, checkpoint.notes
        assert all("share one matrix" in note for note in checkpoint.notes)
    torch.save({n: t for n, t in without_head.items() if n != BIAS}, source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert not checkpoint.decoder.head_bias.read().any()
    assert "lm_head.bias is not stored: it is zero" in checkpoint.notes[1]


def test_tied_weights_that_differ_are_read_as_transformers_does(state: State, source: Path) -> None:
    from transformers import AutoModelForCausalLM

    edit_config(source, tie_word_embeddings=True)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    checkpoint = read(str(source))
    assert "are stored and differ: both are kept" in checkpoint.notes[0]
    model = AutoModelForCausalLM.from_pretrained(source)
    loaded = model.state_dict()
    assert torch.equal(loaded[HEAD].half(), checkpoint.decoder.head.read())
    assert torch.equal(loaded[WTE].half(), checkpoint.decoder.wte.read())


@pytest.mark.parametrize("without", [{HEAD}, {HEAD, BIAS}])
def test_a_head_left_out_is_read_as_transformers_does(
    without: set[str], state: State, source: Path
) -> None:
    from transformers import AutoModelForCausalLM

    edit_config(source, tie_word_embeddings=True)
    saved = {name: t for name, t in state.items() if name not in without}
    save_file(saved, source / "model.safetensors", metadata={"format": "pt"})
    decoder = read(str(source)).decoder
    loaded = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert torch.equal(loaded[HEAD].half(), decoder.head.read())
    assert torch.equal(loaded[BIAS].half(), decoder.head_bias.read())


def test_a_tied_model_saved_by_transformers(source: Path) -> None:
    from transformers import AutoModelForCausalLM, CodeGenConfig

    edit_config(source, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(CodeGenConfig.from_pretrained(source))
    model.save_pretrained(source)
    assert HEAD not in load_file(source / "model.safetensors")
    head = read(str(source)).decoder.head.read()
    assert torch.equal(head, model.get_input_embeddings().weight)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    assert torch.equal(read(str(source)).decoder.head.read(), head)


@pytest.mark.parametrize("layout", ["phi", "gptj"])
def test_prefixes_and_wrappers_of_other_layouts(
    layout: str, plain: Path, source: Path, tmp_path: Path
) -> None:
    shutil.rmtree(source)
    execute(plans.to_hf(read(str(plain)), source, layout=layout))
    (source / "cgconvert.json").unlink()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(tmp_path / "model.safetensors")
    shutil.copytree(source, tmp_path / "expected")
    (tmp_path / "model.safetensors").rename(tmp_path / "expected" / "model.safetensors")
    expected = read(str(tmp_path / "expected")).decoder
    bare = {name.split(".", 1)[1] if "lm_head" not in name else name: tensor
            for name, tensor in tensors.items()}  # fmt: skip
    for saved in ({"model": prefixed(tensors, "module.")}, prefixed(tensors, "model."), bare):
        torch.save(saved, source / "pytorch_model.bin")
        decoder = read(str(source)).decoder
        assert torch.equal(decoder.head.read(), expected.head.read())
        for layer, other in zip(decoder.layers, expected.layers, strict=True):
            assert torch.equal(layer.qkv.read(), other.qkv.read())
            assert torch.equal(layer.fc_out_bias.read(), other.fc_out_bias.read())


def test_a_head_that_safetensors_left_out(state: State, source: Path) -> None:
    """save_model stores one of two names of a tensor, and the other in the metadata."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in {**state, HEAD: state[WTE]}.items():
                module = self
                for part in name.split(".")[:-1]:
                    if not hasattr(module, part):
                        module.add_module(part, torch.nn.Module())
                    module = getattr(module, part)
                module.register_buffer(name.split(".")[-1], tensor)

    save_model(Model(), str(source / "model.safetensors"))
    assert len(load_file(source / "model.safetensors")) == len(state) - 1
    decoder = read(str(source)).decoder
    assert torch.equal(decoder.head.read(), state[WTE])
    assert torch.equal(decoder.wte.read(), state[WTE])


def test_a_head_left_out_without_the_flag_is_missing(state: State, source: Path) -> None:
    bare = {
        name.removeprefix("transformer."): t for name, t in state.items() if "lm_head" not in name
    }
    torch.save(bare, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lm_head\.weight is missing: it is a decoder without"):
        read(str(source))
    edit_config(source, tie_word_embeddings=True)
    assert torch.equal(read(str(source)).decoder.head.read(), state[WTE])


@pytest.mark.parametrize("rows", [4032, 4160])
def test_a_resized_vocabulary(rows: int, state: State, source: Path, tmp_path: Path) -> None:
    """The weights count where config.json has the old size."""
    resized = dict(state)
    for name in (WTE, HEAD, BIAS):
        extra = state[name][: max(0, rows - len(state[name]))]
        resized[name] = torch.cat([state[name][:rows], extra])
    torch.save(resized, source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert checkpoint.geometry.vocab_size == rows
    assert f"have {rows} rows, config.json says vocab_size 4096" in checkpoint.notes[0]
    before = gguf_bytes(checkpoint, tmp_path)
    edit_config(source, vocab_size=rows)
    checkpoint = read(str(source))
    assert checkpoint.notes == ()
    assert gguf_bytes(checkpoint, tmp_path) == before


def test_rows_that_differ_among_themselves_are_refused(state: State, source: Path) -> None:
    torch.save({**state, WTE: state[WTE][:4050]}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"wte\.weight 4050, lm_head\.weight 4096.*resize them"):
        read(str(source))


BUFFERS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "masks": (
        {"attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).expand(1, 1, 8, 8),
         "attn.masked_bias": torch.tensor(-1e9), "attn.causal_mask": torch.ones(8, 8).T}, ""
    ),
    "masks in other types": (
        {"attn.bias": torch.tril(torch.ones(8, 8, dtype=torch.uint8))[None, None],
         "attn.causal_mask": torch.ones(1).expand(1, 1, 8, 8).half()}, ""
    ),
    "tables": (
        {"attn.embed_positions": torch.ones(8, 16)[:, ::2],
         "attn.rotary_emb.inv_freq": torch.ones(16, dtype=torch.float64)},
        "left out: embed_positions, rotary_emb.inv_freq",
    ),
    "GPT-Neo's names": ({"attn.attention.bias": torch.ones(1, 1, 4, 4)}, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", BUFFERS)
def test_old_buffers_are_left_out(
    kind: str, state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    buffers, note = BUFFERS[kind]
    saved = {
        **state,
        **{f"transformer.h.{i}.{n}": tensor for i in range(2) for n, tensor in buffers.items()},
    }
    torch.save({"model": prefixed(saved, "module.")}, source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert len(checkpoint.notes) == bool(note)
    assert all(note in text for text in checkpoint.notes)
    assert gguf_bytes(checkpoint, tmp_path) == plain_bytes
    (source / "pytorch_model.bin").unlink()
    save_file({n: t.contiguous().clone() for n, t in saved.items()}, source / "model.safetensors")
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


def test_a_value_head_is_left_out_with_a_note(
    state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 256), "v_head.summary.bias": torch.ones(1)}
    torch.save({**state, **head}, source / "pytorch_model.bin")
    checkpoint = read(str(source))
    assert "value head" in checkpoint.notes[0]
    assert gguf_bytes(checkpoint, tmp_path) == plain_bytes


def test_numbers_in_another_order(
    state: State, source: Path, plain_bytes: bytes, tmp_path: Path
) -> None:
    """Transposed matrices, columns of wider ones, and rows of taller ones."""
    wide = {n: torch.cat([t, t], 1)[:, : t.shape[1]] for n, t in state.items() if "fc_in.w" in n}
    turned = {n: t.T.contiguous().T for n, t in state.items() if "fc_out.w" in n}
    tall = torch.cat([state[HEAD], state[HEAD]])[: len(state[HEAD])]
    both = {n: torch.cat([t, t]).T.contiguous().T[: len(t)] for n, t in state.items()
            if "out_proj" in n}  # fmt: skip
    torch.save({**state, **wide, **turned, **both, HEAD: tall}, source / "pytorch_model.bin")
    assert gguf_bytes(read(str(source)), tmp_path) == plain_bytes


def test_mixed_types(state: State, source: Path, plain_bytes: bytes, tmp_path: Path) -> None:
    types = (torch.float32, torch.float64, torch.float16)
    mixed = {name: t.to(types[i % 3]) for i, (name, t) in enumerate(state.items())}
    torch.save({**mixed, BIAS: state[BIAS].bfloat16()}, source / "pytorch_model.bin")
    checkpoint = read(str(source))
    for i, layer in enumerate(checkpoint.decoder.layers):
        name = f"transformer.h.{i}.mlp.fc_in.weight"
        assert torch.equal(layer.fc_in.read().half(), state[name])
    torch.save(mixed, source / "pytorch_model.bin")
    assert gguf_bytes(read(str(source)), tmp_path)[:1000] == plain_bytes[:1000]


FOREIGN: dict[str, tuple[str, tuple[str, ...], str]] = {
    "gpt2": (
        "gpt2", ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"),
        r"is GPT-2 \(model_type 'gpt2'\), no model of CodeGen's family .*convert_hf_to_gguf\.py",
    ),
    "gpt_neo": (
        "gpt_neo", ("transformer.wte.weight", "transformer.h.0.attn.attention.q_proj.weight"),
        r"is GPT-Neo \(model_type 'gpt_neo'\).*'optimum-cli export onnx'",
    ),
    "gpt_neox": (
        "gpt_neox", ("gpt_neox.layers.0.attention.query_key_value.weight",), "GPT-NeoX",
    ),
    "llama": (
        "llama", ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        r"is a Llama, .*\(model_type 'llama'\)",
    ),
    "llama, as Meta has it": ("llama", ("layers.0.attention.wq.weight",), "is a Llama"),
    "starcoder": (
        "gpt_bigcode", ("transformer.h.0.attn.c_attn.weight", "transformer.wpe.weight"),
        "StarCoder",
    ),
    "opt": ("opt", ("model.decoder.layers.0.self_attn.k_proj.weight",), "is OPT"),
    "bloom": ("bloom", ("transformer.h.0.self_attention.query_key_value.weight",), "is BLOOM"),
    "CodeT5": ("t5", ("encoder.block.0.layer.0.SelfAttention.q.weight",), "is T5 or CodeT5"),
    "llama, called a CodeGen": (
        "codegen", ("model.layers.0.self_attn.q_proj.weight",),
        r"is Llama or a relative \(tensor model\.layers\.0\.self_attn\.q_proj\.weight, model",
    ),
    "GPT-J, called a CodeGen": (
        "codegen", ("transformer.wte.weight", "transformer.h.0.attn.q_proj.weight"),
        "of GPT-J .* says model_type 'codegen'; change it to 'gptj'",
    ),
    "a CodeGen, called a GPT-J": (
        "gptj", ("transformer.wte.weight", "transformer.h.0.attn.qkv_proj.weight"),
        "of CodeGen .*; change it to 'codegen'",
    ),
    "an adapter that is not merged": (
        "codegen",
        ("base_model.model.transformer.h.0.attn.qkv_proj.base_layer.weight",
         "base_model.model.transformer.h.0.attn.qkv_proj.lora_A.default.weight"),
        "an adapter that is not merged",
    ),
    "FSDP's flat parameters": (
        "codegen", ("_fsdp_wrapped_module._flat_param",), "FSDP's flat parameters",
    ),
    "nothing known": ("codegen", ("a.weight", "b.weight"), "its tensors are a.weight, b.weight"),
    "a classifier": (
        "codegen",
        ("score.weight", "transformer.wte.weight", "transformer.h.0.attn.qkv_proj.weight"),
        r"is a classifier \(score.weight\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models_are_called_by_their_name(kind: str, suffix: str, source: Path) -> None:
    declared, names, message = FOREIGN[kind]
    edit_config(source, model_type=declared)
    tensors = {name: torch.ones(4, 4) for name in names}
    if suffix == "bin":
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        read(str(source))
    assert "mp_num" not in str(caught.value)


def test_a_model_type_left_out_is_named(state: State, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    del config["model_type"]
    (source / "config.json").write_text(json.dumps(config))
    save_file(state, source / "model.safetensors")
    with pytest.raises(InputError, match=r"has no model_type, such as codegen, gptj, .*`mp_num`"):
        read(str(source))
    names = ("transformer.wte.weight", "transformer.h.0.attn.q_proj.weight")
    save_file({name: torch.ones(4, 4) for name in names}, source / "model.safetensors")
    with pytest.raises(InputError, match=r"of GPT-J .* has no model_type; change it to 'gptj'"):
        read(str(source))


def test_a_prefix_of_some_names_only_is_named(state: State, source: Path) -> None:
    mixed = {("module." if ".h.1." in name else "") + name: t for name, t in state.items()}
    torch.save(mixed, source / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"(transformer\.h\.1\.[\w.]+) is missing, and module\.\1 is there: only"
    ):
        read(str(source))


def test_missing_and_unknown_tensors_say_what_to_do(state: State, source: Path) -> None:
    changes: dict[str, State] = {
        "bias is missing; fetch the model again, or save": {
            name: tensor for name, tensor in state.items() if name != "lm_head.bias"
        },
        "loss.weight is not a CodeGen tensor; save the state dict without": {
            **state, "loss.weight": torch.ones(4)
        },
    }  # fmt: skip
    for message, changed in changes.items():
        save_file(dict(changed), source / "model.safetensors")
        with pytest.raises(InputError, match=message):
            read(str(source))


def test_a_wrong_number_of_layers_is_named(state: State, source: Path) -> None:
    save_file(state, source / "model.safetensors")
    for n_layer, fault in ((1, "h.1.* is not a CodeGen tensor"), (3, "h.2.* is missing")):
        edit_config(source, n_layer=n_layer)
        message = rf"{fault}: the number of layers is 2 in the weights and {n_layer} in the conf"
        with pytest.raises(InputError, match=message):
            read(str(source))


def test_a_shard_alone_is_called_a_part(state: State, source: Path) -> None:
    shard = {name: tensor for name, tensor in state.items() if ".h.1." in name}
    path = source / "model-00002-of-00003.safetensors"
    save_file(shard, path)
    with pytest.raises(
        InputError, match=r"h\.1\.attn.* and no .*, so it is a part of a model only"
    ):
        read(str(path))
    with pytest.raises(InputError, match=r"has model-00002-of.*, but lacks model-00001-of-00003"):
        read(str(source))


def test_a_file_with_the_suffix_of_the_other_kind_is_named(state: State, source: Path) -> None:
    path = source / "pytorch_model.bin"
    save_file(state, path)
    with pytest.raises(InputError, match=r"it is a safetensors file; rename it so .*\.safetensors"):
        read(str(source))
    path.rename(source / "model.safetensors")
    read(str(source))
    torch.save(state, source / "model.safetensors")
    with pytest.raises(
        InputError, match=r"a zip archive, as torch.save writes it; rename it .*\.bin"
    ):
        read(str(source))


def test_programs_and_whole_models_are_called_so(state: State, source: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.save(layer, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds a whole model .*save model\.state_dict\(\)"):
        read(str(source))
    torch.jit.script(layer).save(source / "pytorch_model.bin")
    with pytest.raises(InputError, match="is a TorchScript archive"):
        read(str(source))
    torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="torch's old format"):
        read(str(source))
    torch.save({n: t.to("meta") for n, t in state.items()}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="tensors without data"):
        read(str(source))
