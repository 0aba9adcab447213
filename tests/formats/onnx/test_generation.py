"""What an ONNX folder says of generation: to onnxruntime-genai, as a source, and to the checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest

from cgconvert.errors import InputError
from cgconvert.formats.onnx.admission import admit_genai
from cgconvert.formats.onnx.checks import settings
from cgconvert.formats.onnx.genai import template_fault
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import describe, read
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.runtimes.runtime import Runtime
from cgconvert.write.execute import execute
from cgconvert.write.manifest import find_manifest
from tests.support.fine_tunes import CHAT, FIRST_ID, fine_tune

END_OF_TEXT = 3967
EOM, A, B, C, D = range(FIRST_ID, FIRST_ID + 5)
TOKENS = ("<eom>", "<a>", "<b>", "<c>", "<|im_end|>")
CHAT_MODEL: Mapping[str, Any] = {
    "tokens": (*TOKENS, "<pad>"),
    "roles": {"eos_token": "<eom>", "pad_token": "<pad>"},
    "templates": {"default": CHAT, "tool_use": f"tools{CHAT}"},
    "generation": {
        "eos_token_id": [EOM, A],
        "do_sample": True, "temperature": 0.2, "top_k": 30, "top_p": 0.9,
        "repetition_penalty": 1.1, "no_repeat_ngram_size": 4,
    },
}  # fmt: skip
GREEDY = {
    "do_sample": False, "max_length": 128, "min_length": 0, "num_beams": 1,
    "num_return_sequences": 1, "past_present_share_buffer": True, "repetition_penalty": 1.0,
    "temperature": 1.0, "top_k": 1, "top_p": 1.0,
}  # fmt: skip


def convert(folder: Path, target: str = "cpu", **options: Any) -> tuple[Checkpoint, Path]:
    """Write a fine-tune and its ONNX folder; return the checkpoint and the folder."""
    checkpoint = read(str(fine_tune(folder / "source", **options)))
    output = folder / "onnx-folder"
    dtype = "float32" if target == "cpu" else "float16"
    execute(plan(checkpoint, output, dtype=dtype, target=target), force=True)
    return checkpoint, output


def change(path: Path, change_entries: Callable[[dict[str, Any]], object]) -> None:
    entries = json.loads(path.read_text())
    change_entries(entries)
    path.write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return convert(tmp_path_factory.mktemp("chat"), **CHAT_MODEL)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([EOM], EOM),
        (None, EOM),
        ([END_OF_TEXT], [EOM, END_OF_TEXT]),
        ([A, EOM, END_OF_TEXT], [EOM, A, END_OF_TEXT]),
        ([EOM, A, B, C, D], [EOM, A, B, C, D]),
    ],
)
def test_every_client_is_told_each_end(
    ids: list[int] | None, expected: int | list[int], tmp_path: Path
) -> None:
    checkpoint, folder = convert(
        tmp_path,
        tokens=TOKENS,
        roles={"eos_token": "<eom>"},
        generation=None if ids is None else {"eos_token_id": ids},
    )
    files = {
        name: json.loads((folder / name).read_text())
        for name in ("config.json", "generation_config.json", "genai_config.json")
    }
    assert files["config.json"]["eos_token_id"] == expected
    assert files["generation_config.json"]["eos_token_id"] == expected
    assert files["genai_config.json"]["model"]["eos_token_id"] == expected
    tokenizer = og.Tokenizer(og.Model(str(folder)))
    ends = expected if isinstance(expected, list) else [expected]
    assert [int(index) for index in tokenizer.eos_token_ids] == ends
    assert tokenizer.bos_token_id == END_OF_TEXT
    for runtime in opened(folder):
        assert runtime.eos_token_ids == tuple(ends)
    assert settings(folder, checkpoint).settings == []


def opened(folder: Path) -> list[Runtime]:
    return [GenaiRuntime.open(folder, "cpu", 1), OnnxRuntime.open(folder, "cpu", 1)]


@pytest.mark.parametrize("likely", [EOM, A, B, END_OF_TEXT])
def test_generation_ends_at_each_end(likely: int, tmp_path: Path) -> None:
    """The end of a text is an end in genai's own loop, and in ours on both runtimes."""
    _, folder = convert(
        tmp_path,
        tokens=TOKENS,
        roles={"eos_token": "<eom>"},
        generation={"eos_token_id": [EOM, A, B, END_OF_TEXT]},
        likely=likely,
    )
    model = og.Model(str(folder))
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens(np.array([5, 6], np.int32))
    generator.generate_next_token()
    assert generator.is_done()
    for runtime in opened(folder):
        new = generate(
            runtime, [5, 6], 8, tokenizer_size=runtime.tokenizer_size,
            eos_token_ids=runtime.stopping_ids,
        )  # fmt: skip
        assert list(new) == []


def test_genai_renders_the_default_template(chat: tuple[Checkpoint, Path]) -> None:
    """Although there are others, which it cannot read: they are in files of their own."""
    _, folder = chat
    tokenizer = og.Tokenizer(og.Model(str(folder)))
    messages = json.dumps([{"role": "user", "content": "hi"}])
    rendered = "<|user|>: hi\n<|assistant|>:"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == rendered
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT  # the only place that transformers.js reads
    assert (folder / "chat_template.jinja").read_text() == CHAT
    other = folder / "additional_chat_templates" / "tool_use.jinja"
    assert other.read_text() == f"tools{CHAT}"


def test_named_templates_without_a_default_do_not_stop_genai(tmp_path: Path) -> None:
    checkpoint, folder = convert(tmp_path, templates={"tool_use": CHAT, "rag": CHAT})
    og.Tokenizer(og.Model(str(folder)))
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert read(str(folder)).tokenizer.chat_templates == checkpoint.tokenizer.chat_templates
    assert settings(folder, checkpoint).tokenizer == []


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, {}),
        ({"max_length": 20}, {}),
        ({"max_length": 64}, {"max_length": 64}),
        ({"max_length": 4096, "min_length": 4000}, {"min_length": 128}),
        ({"do_sample": True}, {"do_sample": True, "top_k": 50}),
        ({"do_sample": True, "top_k": 0}, {"do_sample": True, "top_k": 0}),
        ({"do_sample": True, "top_k": 10**9}, {"do_sample": True, "top_k": 4096}),
        ({"temperature": 1, "top_p": 1}, {}),
        ({"temperature": 0.5, "top_k": 7}, {"temperature": 0.5, "top_k": 7}),
        ({"repetition_penalty": 2}, {"repetition_penalty": 2.0}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        (
            {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -0.5},
            {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -0.5,
             "early_stopping": False},
        ),
        (
            {"num_beams": 2, "early_stopping": True},
            {"num_beams": 2, "length_penalty": 1.0, "early_stopping": True},
        ),
    ],
)  # fmt: skip
def test_search_settings(entries: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    """genai generates with them; our own runtime computes plain logits all the same."""
    checkpoint, folder = convert(tmp_path, generation={"eos_token_id": END_OF_TEXT, **entries})
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["search"] == {**GREEDY, **expected}
    manifest = find_manifest(folder)
    assert manifest is not None
    assert not manifest.notes
    assert settings(folder, checkpoint).settings == []
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=8, min_length=0)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([5, 6], np.int32))
    generator.generate_next_token()
    runtime, plain = opened(folder)
    assert np.allclose(runtime.feed([5, 6, 7]), plain.feed([5, 6, 7]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("entries", "target", "left_out"),
    [
        ({"max_new_tokens": 64}, "cpu", "max_new_tokens (64)"),
        ({"min_p": 0.1, "typical_p": 1.0}, "cpu", "min_p (0.1)"),
        ({"bad_words_ids": [[5]], "suppress_tokens": [3]}, "cpu",
         "bad_words_ids ([[5]]), suppress_tokens ([3])"),
        ({"do_sample": True, "num_beams": 4}, "cpu", "num_beams (4)"),
        ({"do_sample": True, "num_return_sequences": 3}, "cpu", "num_return_sequences (3)"),
        ({"num_beams": 2, "early_stopping": "never"}, "cpu", "early_stopping ('never')"),
        ({"no_repeat_ngram_size": 3}, "cuda", "no_repeat_ngram_size (3)"),
    ],
)  # fmt: skip
def test_what_genai_cannot_hold_is_named(
    entries: dict[str, Any], target: str, left_out: str, tmp_path: Path
) -> None:
    checkpoint, folder = convert(
        tmp_path, target, generation={"eos_token_id": END_OF_TEXT, **entries}
    )
    manifest = find_manifest(folder)
    assert manifest is not None
    assert list(manifest.notes) == [
        f"genai_config.json cannot hold {left_out}; kept in generation_config.json"
    ]
    stored = json.loads((folder / "generation_config.json").read_text())
    assert {name: stored[name] for name in entries} == entries
    assert settings(folder, checkpoint).settings == []
    admit_genai(folder).close()


def test_a_folder_as_a_source_says_the_same(chat: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = chat
    again = read(str(folder))
    assert again.eos_token_ids == checkpoint.eos_token_ids
    assert again.generation.sampling == checkpoint.generation.sampling
    assert again.tokenizer == checkpoint.tokenizer
    description = describe(str(folder))
    assert description.generation == checkpoint.generation.sampling
    assert description.tokenizer["stops_at"] == [EOM, A]
    names = {path.relative_to(folder).as_posix() for path in again.files}
    assert names >= {
        "generation_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
    }  # fmt: skip


def set_entry(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Return a function that sets an entry of a JSON object, or removes it if the value is None."""

    def apply(entries: dict[str, Any]) -> None:
        for key in keys[:-1]:
            entries = entries[key]
        if value is None:
            del entries[keys[-1]]
        else:
            entries[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("file", "keys", "value", "text"),
    [
        ("genai_config.json", ("model", "eos_token_id"), END_OF_TEXT, "eos_token_id"),
        ("genai_config.json", ("model", "eos_token_id"), EOM, "eos_token_id"),
        ("genai_config.json", ("model", "eos_token_id"), [EOM], "eos_token_id"),
        ("genai_config.json", ("model", "eos_token_id"), [EOM, A, B], "eos_token_id"),
        ("genai_config.json", ("model", "eos_token_id"), None, "eos_token_id"),
        ("genai_config.json", ("model", "pad_token_id"), EOM, "pad_token_id"),
        ("genai_config.json", ("model", "bos_token_id"), 1, "bos_token_id"),
        ("genai_config.json", ("search", "do_sample"), False, "do_sample"),
        ("genai_config.json", ("search", "do_sample"), None, "do_sample"),
        ("genai_config.json", ("search", "temperature"), 0.3, "temperature"),
        ("genai_config.json", ("search", "top_k"), 1, "top_k"),
        ("genai_config.json", ("search", "top_p"), None, "top_p"),
        ("genai_config.json", ("search", "no_repeat_ngram_size"), None, "no_repeat_ngram_size"),
        ("genai_config.json", ("search", "length_penalty"), 2.0, "length_penalty"),
        ("genai_config.json", ("search", "random_seed"), 1, "random_seed"),
        ("generation_config.json", ("temperature",), 0.3, "temperature"),
        ("generation_config.json", ("eos_token_id",), EOM, "eos_token_id"),
        ("config.json", ("eos_token_id",), END_OF_TEXT, "eos_token_id"),
        ("tokenizer_config.json", ("chat_template",), f"{CHAT} ", "chat_template"),
        ("tokenizer_config.json", ("eos_token",), "<|endoftext|>", "eos_token"),
    ],
)
def test_a_changed_entry_is_named(
    file: str, keys: tuple[str, ...], value: Any, text: str,
    chat: tuple[Checkpoint, Path], tmp_path: Path,
) -> None:  # fmt: skip
    checkpoint, folder = chat
    assert not [*settings(folder, checkpoint).settings, *settings(folder, checkpoint).tokenizer]
    changed = copied(folder, tmp_path / "changed")
    change(changed / file, set_entry(*keys, value=value))
    differences = settings(changed, checkpoint)
    phrases = [*differences.settings, *differences.tokenizer]
    assert any(text in phrase for phrase in phrases), phrases


def copied(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target


def test_a_lost_template_is_named(chat: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, folder = chat
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        changed = copied(folder, tmp_path / Path(name).stem)
        (changed / name).unlink()
        assert any("chat template" in text for text in settings(changed, checkpoint).tokenizer)


@pytest.mark.parametrize(
    ("keys", "value", "text"),
    [
        (("model", "eos_token_id"), [], "has 0 ids"),
        (("model", "eos_token_id"), [EOM, "x"], "model.eos_token_id is 'x'"),
        (("model", "eos_token_id"), [EOM, -1], "impossible number"),
        (("model", "eos_token_id"), [EOM, True], "model.eos_token_id is True"),
        (("search", "num_beams"), 1 << 40, "impossible number"),
        (("search", "temperature"), "hot", "search.temperature is 'hot'"),
        (("search", "early_stopping"), "never", "search.early_stopping is 'never'"),
        (("search", "min_p"), 0.1, "has search.min_p"),
    ],
)
def test_what_genai_does_not_get(
    keys: tuple[str, ...], value: Any, text: str, chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    changed = copied(chat[1], tmp_path / "changed")
    change(changed / "genai_config.json", set_entry(*keys, value=value))
    with pytest.raises(InputError, match=text) as caught:
        admit_genai(changed)
    assert "\n" not in str(caught.value)


ENDLESS = {
    "a long text": ("x" * 70_000, "70,000 characters"),
    "a long name": ("{{ " + "a" * 40_000 + " }}", "a tag of 40,0"),
    "a comment without end": ("{#" + "x" * 40_000, "a tag of 40,0"),
    "a long comment": ("{# '" + "x" * 40_000 + " #} '", "a tag of 40,0"),
    "a sum behind a quote": ("{# ' #}{{ " + "1+" * 9000 + "1 }}{# ' #}", "a tag of 18,0"),
    "many tags": ("{% if 1 %}" * 2000, "2,000 tags"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_ends_genai_is_not_given_to_it(kind: str, tmp_path: Path) -> None:
    """Its parser overflows the stack or takes minutes; the folder itself has the template."""
    template, text = ENDLESS[kind]
    checkpoint, folder = convert(tmp_path, templates={"default": template})
    manifest = find_manifest(folder)
    assert manifest is not None
    assert any(f"onnxruntime-genai cannot read the chat template: it has {text}" in note
               for note in manifest.notes)  # fmt: skip
    with pytest.raises(InputError, match="cannot read the chat template"):
        GenaiRuntime.open(folder, "cpu", 1)
    assert settings(folder, checkpoint).tokenizer == []


def test_a_list_of_templates_is_not_given_to_genai(tmp_path: Path) -> None:
    _, folder = convert(tmp_path, templates={"default": CHAT})
    entries = [{"name": "default", "template": CHAT}]
    change(folder / "tokenizer_config.json", set_entry("chat_template", value=entries))
    with pytest.raises(InputError, match="not one text"):
        GenaiRuntime.open(folder, "cpu", 1)


@pytest.mark.parametrize(
    "template",
    [
        CHAT,
        "",
        'plain text { and } "quotes" \'' * 300,
        "{% set text = '" + "long text " * 2000 + "' %}{{ text }}",
        '{%- if "%}" == \'}}\' -%}{{ "it\'s" }}{%- endif %}',
        "{# a note #}{% if a %}{{ b }}{% endif %}" * 200,
    ],
)
def test_ordinary_templates_are_given_to_genai(template: str) -> None:
    assert template_fault(template) == ""
