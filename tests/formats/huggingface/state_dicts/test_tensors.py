"""Tied heads, resized vocabularies, old buffers, and numbers stored in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from tests.support.state_dicts import (
    BIAS,
    HEAD,
    WTE,
    State,
    edit_config,
    gguf_bytes,
    prefixed,
)


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
