"""What the witness says of right sources of every kind, and of which it says nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgconvert import embedded
from cgconvert.formats.read import ReadOptions, read
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import DType
from cgconvert.sources import hub
from cgconvert.testing import synthetic
from cgconvert.verification.prompts import tokenizer_texts
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.verification.witness import model
from cgconvert.verification.witness.call import Witness, call
from cgconvert.verification.witness.checks import check_source
from tests.formats.adapter.adapters import save_adapter
from tests.mutations.fine_tunes import fine_tune_source
from tests.support.artefacts import write
from tests.support.fine_tunes import CHAT, FIRST_ID, GEOMETRY, fine_tune
from tests.support.slow_tokenizers import gpt2_fine_tune

OPENING = [40, 50, 60]
NEW_TOKENS = 3


def ask(source: Checkpoint, dtype: DType | None = None) -> Witness:
    return call(source, tokenizer_texts(), [OPENING], NEW_TOKENS, dtype, SilentProgress())


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def change_state(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def in_layout(layout: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = synthetic.RandomState(GEOMETRY, seed=5, sharpness=4)
        path = synthetic.write(layout, state, GEOMETRY, folder.parent, folder.name, embedded.path())
        return Path(path)

    return make


def in_dtype(dtype: torch.dtype) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        fine_tune(folder)
        change_state(folder, lambda s: s.update({k: v.to(dtype) for k, v in s.items()}))
        return folder

    return make


def tied(folder: Path) -> Path:
    """A head that is left out because it is the embedding."""
    fine_tune(folder)
    change_state(folder, lambda s: s.pop("lm_head.weight"))
    change_json(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    return folder


def with_buffers(folder: Path) -> Path:
    """The buffers of old transformers."""
    fine_tune(folder)
    mask = torch.ones(1, 1, 128, 128, dtype=torch.bool).tril()
    change_state(folder, lambda s: s.update({"transformer.h.0.attn.causal_mask": mask}))
    return folder


def as_phi(folder: Path) -> Path:
    source = fine_tune(folder.with_name("original"))
    plan = write("hf-phi-float16", read(str(source)), folder.parent)
    return plan.output


def with_tokenizer_json_alone(folder: Path) -> Path:
    fine_tune(folder)
    for name in (
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt",
    ):  # fmt: skip
        (folder / name).unlink(missing_ok=True)
    return folder


def with_everything(folder: Path) -> Path:
    return fine_tune(
        folder,
        tokens=["<eom>", "<|user|>", "<pad>"],
        roles={"eos_token": "<eom>", "pad_token": "<pad>"},
        extra_special=["<|user|>"],
        templates={"default": CHAT, "tool_use": f"{CHAT} "},
        generation={"eos_token_id": [FIRST_ID, FIRST_ID + 1], "do_sample": True, "top_p": 0.9},
        likely=FIRST_ID,
    )


def with_unstored_tokens(folder: Path) -> Path:
    """A configuration that names tokens which no file stores; the texts spell some of them."""
    fine_tune(folder)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    extra = {"additional_special_tokens": ["[INST]"]}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change_json(folder / name, lambda c: c.update(names | extra))
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "safetensors": fine_tune,
    "torch": in_layout("torch"),
    "torch shards": in_layout("torch-sharded"),
    "shards": in_layout("safetensors-sharded"),
    "GPT-J": in_layout("gptj"),
    "float32": in_dtype(torch.float32),
    "bfloat16": in_dtype(torch.bfloat16),
    "a tied head": tied,
    "old buffers": with_buffers,
    "Phi": as_phi,
    "tokenizer.json alone": with_tokenizer_json_alone,
    "tokens that no file stores": with_unstored_tokens,
    "GPT-2's slow tokenizer": gpt2_fine_tune,
    "GPT-2's slow tokenizer with a pad": lambda folder: gpt2_fine_tune(folder, "<pad>"),
    "tokens, roles, templates, settings": with_everything,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_witness_agrees_with_the_readers(kind: str, tmp_path: Path) -> None:
    source = read(str(SOURCES[kind](tmp_path / "source")))
    witness = ask(source)
    assert witness.model, witness.no_model
    assert witness.model.logits.relative_error is not None, witness.model.logits
    assert witness.model.logits.relative_error <= 1e-5
    assert witness.model.continuations
    tokenizer, own = witness.tokenizer, source.tokenizer
    assert tokenizer, witness.no_tokenizer
    for text, (ids, decoded) in tokenizer.texts.items():
        assert list(ids) == own.encode(text)
        assert decoded == text
    ids_by_role = {
        "bos": own.bos_token_id, "eos": own.eos_token_id, "unk": own.unk_token_id,
        "pad": own.pad_token_id,
    }  # fmt: skip
    assert (
        tokenizer.tokens.special_ids.items()
        <= (
            ids_by_role | {k: v for k, v in tokenizer.tokens.special_ids.items() if v is None}
        ).items()
    )
    assert tokenizer.tokens.templates == own.chat_templates
    assert set(witness.stop_ids) == set(source.eos_token_ids)


def test_greedy_text_ends_at_the_sources_own_stop(tmp_path: Path) -> None:
    witness = ask(read(str(with_everything(tmp_path / "source"))))
    assert witness.model
    assert witness.model.continuations
    assert witness.model.continuations[0].ids == (FIRST_ID,)


def test_a_source_without_a_tokenizer_has_gpt2s_with_codegens_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2 = gpt2_fine_tune(tmp_path / "gpt2")
    (gpt2 / "added_tokens.json").unlink()
    monkeypatch.setattr(hub, "fetch_gpt2_tokenizer", lambda: gpt2)
    state = synthetic.RandomState(GEOMETRY, seed=5)
    tarball = synthetic.write("tarball", state, GEOMETRY, tmp_path, "release", None)
    source = read(str(tarball))
    assert source.tokenizer.whitespace_ids
    witness = ask(source)
    assert witness.tokenizer
    assert not witness.tokenizer.is_own
    for text, (ids, _) in witness.tokenizer.texts.items():
        assert list(ids) == source.tokenizer.encode(text)


@pytest.mark.parametrize(
    "type_", ["hf-float16", "hf-phi-float16", "onnx-float32", "onnx-int4", "gguf-F16", "gguf-Q4_0"]
)
def test_a_right_artefact_of_a_fine_tune_passes(type_: str, tmp_path: Path) -> None:
    source = fine_tune_source(tmp_path / "source")
    plan = write(type_, source, tmp_path)
    report = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=4, threads=1)
    assert not [check for check in report.checks if check.verdict == Verdict.FAIL]
    judged = {c.name for c in report.checks if c.verdict == Verdict.PASS}
    assert judged >= {
        "witness.logits", "witness.special_tokens", "witness.chat_template", "witness.sampling",
        "witness.tokenizer", "witness.stop_ids", "witness.generation",
    }  # fmt: skip


def as_gguf(folder: Path) -> Checkpoint:
    return read(str(write("gguf-F16", read(str(fine_tune(folder))), folder.parent).output))


def as_onnx(folder: Path) -> Checkpoint:
    return read(str(write("onnx-float32", read(str(fine_tune(folder))), folder.parent).output))


def with_own_code(folder: Path) -> Checkpoint:
    fine_tune(folder)
    change_json(folder / "config.json", lambda c: c.update(auto_map={"AutoConfig": "a.B"}))
    return read(str(folder), ReadOptions(mp_num=4))


def with_other_groups(folder: Path) -> Checkpoint:
    return read(str(fine_tune(folder)), ReadOptions(mp_num=2))


def with_adapter(folder: Path) -> Checkpoint:
    """An adapter whose modules a pattern chooses; test_adapters has those that peft merges."""
    base = fine_tune(folder)
    adapter = save_adapter(base, folder.with_name("adapter"), target_modules=".*fc_in")
    return read(str(base), ReadOptions(adapter=(adapter,)))


NO_MODEL: dict[str, tuple[Callable[[Path], Checkpoint], str]] = {
    "GGUF": (as_gguf, "transformers does not read the layout gguf"),
    "ONNX": (as_onnx, "transformers does not read the layout onnx"),
    "Jaxformer": (
        lambda folder: read(str(in_layout("jaxformer")(folder)), ReadOptions(mp_num=4)),
        "transformers does not read the layout jaxformer",
    ),
    "MOSS": (lambda f: read(str(in_layout("moss")(f))), "its model needs code that comes with it"),
    "its own code": (with_own_code, "its model needs code that comes with it"),
    "an adapter": (with_adapter, "a pattern chooses the modules of its adapter"),
    "other groups": (with_other_groups, "4 groups in qkv_proj; 2 were given"),
}


@pytest.mark.parametrize("kind", NO_MODEL)
def test_where_transformers_is_no_witness_the_reason_is_said(kind: str, tmp_path: Path) -> None:
    make, reason = NO_MODEL[kind]
    witness = ask(make(tmp_path / "source"))
    assert witness.model is None
    assert reason in witness.no_model
    (check,) = check_source(witness)
    assert (check.name, check.value, check.verdict) == ("witness.logits", None, Verdict.INFO)
    assert check.detail.startswith("not applicable: ")


def test_a_tokenizer_that_the_user_gave_is_not_the_sources(tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "source")
    witness = ask(read(str(folder), ReadOptions(tokenizer=embedded.path())))
    assert witness.tokenizer is None
    assert "it was given with `tokenizer`" in witness.no_tokenizer


@pytest.mark.parametrize("generation", [{"bos_token_id": 1, "eos_token_id": 2}, {}])
def test_a_token_that_old_settings_call_the_end_is_no_stop_beside_a_given_tokenizer(
    generation: dict[str, int], tmp_path: Path
) -> None:
    folder = fine_tune(tmp_path / "source", generation=generation, likely=2)
    change_json(folder / "config.json", lambda c: c.update(bos_token_id=1, eos_token_id=2))
    source = read(str(folder), ReadOptions(tokenizer=embedded.path()))
    plan = write("hf-float16", source, tmp_path)
    report = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=4, threads=1)
    assert not [check for check in report.checks if check.verdict == Verdict.FAIL]


def test_a_tokenizer_class_of_its_own_is_read_from_tokenizer_json_alone(tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "source")
    change_json(
        folder / "tokenizer_config.json",
        lambda c: c.update(
            tokenizer_class="OtherTokenizer", auto_map={"AutoTokenizer": ["code.Other", None]}
        ),
    )
    witness = ask(read(str(folder)))
    assert witness.tokenizer
    (folder / "tokenizer.json").unlink()
    witness = ask(read(str(folder)))
    assert witness.tokenizer is None
    assert "no tokenizer class 'OtherTokenizer'" in witness.no_tokenizer


def test_only_the_first_layers_are_compared_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(GEOMETRY, n_layer=4)
    source = read(str(fine_tune(tmp_path / "source", geometry=deep)))
    two_layers = 4 * replace(deep, n_layer=2).parameters
    monkeypatch.setattr(model, "available_memory", lambda: int(3.05 * two_layers))
    witness = ask(source)
    assert witness.model
    assert witness.model.logits.detail.startswith("its first 2 layers in float32")
    assert witness.model.logits.relative_error is not None
    assert witness.model.logits.relative_error <= 1e-5
    assert witness.model.continuations is None
    monkeypatch.setattr(model, "available_memory", lambda: 1000)
    assert "not even its first layer fits" in ask(source).no_model
