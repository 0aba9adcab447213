"""What a GGUF file says of generation: to llama.cpp, as a source, and to the checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import Llama, llama_cpp

from cgconvert.errors import InputError
from cgconvert.formats.gguf.admission import admit_gguf
from cgconvert.formats.gguf.checks import settings
from cgconvert.formats.gguf.generation import ENDING_TEXTS
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.types import data_size
from cgconvert.formats.gguf.writer import header_size, plan
from cgconvert.formats.read import describe, read
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.write.execute import execute
from cgconvert.write.manifest import find_manifest
from tests.support.fine_tunes import CHAT, FIRST_ID, fine_tune
from tests.support.gguf_metadata import change_metadata

END_OF_TEXT = 3967
EOM, A, B, C, D = range(FIRST_ID, FIRST_ID + 5)
TOKENS = ("<eom>", "<a>", "<b>", "<c>", "<|im_end|>")
CHAT_MODEL: Mapping[str, Any] = {
    "tokens": (*TOKENS, "<pad>"),
    "roles": {"eos_token": "<eom>", "pad_token": "<pad>", "sep_token": "<c>"},
    "templates": {"default": CHAT, "tool_use": f"tools{CHAT}", "rag": f"rag{CHAT}"},
    "generation": {
        "eos_token_id": [EOM, A],
        "do_sample": True, "temperature": 0.2, "top_k": 30, "top_p": 0.9, "min_p": 0.05,
        "repetition_penalty": 1.1, "suppress_tokens": [17, 23],
    },
}  # fmt: skip


def convert(folder: Path, **options: Any) -> tuple[Checkpoint, Path]:
    """Write a fine-tune and its GGUF file; return the checkpoint and the path of the file."""
    checkpoint = read(str(fine_tune(folder / "source", **options)))
    output = folder / "model.gguf"
    execute(plan(checkpoint, output, type="F32"), force=True)
    return checkpoint, output


def vocabulary(path: Path) -> Llama:
    """The file in llama-cpp-python, without its tensors."""
    return Llama(str(path), vocab_only=True, n_ctx=8, verbose=False)


def stops(model: Llama) -> set[int]:
    """Return all ids at which llama.cpp ends a generation."""
    vocab = model._model.vocab
    return {i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return convert(tmp_path_factory.mktemp("chat"), **CHAT_MODEL)


@pytest.mark.parametrize(
    ("ids", "keys", "left_out"),
    [
        ([EOM], (EOM, EOM, None), []),
        ([EOM, END_OF_TEXT], (EOM, END_OF_TEXT, None), []),
        ([A, EOM], (EOM, A, None), []),
        ([EOM, A, B], (EOM, A, B), []),
        # llama.cpp knows <|endoftext|> and <|im_end|> by their text, so the others get the keys.
        ([END_OF_TEXT, EOM, A, D, B], (EOM, A, B), []),
        ([EOM, A, B, C, END_OF_TEXT], (EOM, A, B), [C]),
        (None, (EOM, EOM, None), []),
    ],
)
def test_llama_cpp_stops_at_each_end(
    ids: list[int] | None, keys: tuple[int, int, int | None], left_out: list[int], tmp_path: Path
) -> None:
    generation = None if ids is None else {"eos_token_id": ids}
    checkpoint, path = convert(
        tmp_path, tokens=TOKENS, roles={"eos_token": "<eom>"}, generation=generation
    )
    metadata = read_header(path).metadata
    names = ("eos", "eot", "eom")
    assert tuple(metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names) == keys
    model = vocabulary(path)
    assert model.token_eos() == EOM
    known_by_text = {END_OF_TEXT, D}
    assert stops(model) == {*checkpoint.eos_token_ids, *known_by_text} - set(left_out)
    manifest = find_manifest(path)
    assert manifest is not None
    assert [f"eos_token_id {index}" in "".join(manifest.notes) for index in (B, C)] == [
        index in left_out for index in (B, C)
    ]
    assert bool(manifest.notes) == bool(left_out)
    assert settings(path, checkpoint).settings == []


def test_generation_ends_at_each_end(tmp_path: Path) -> None:
    """Also at one that llama.cpp knows only by its text."""
    for likely in (EOM, A, B, D):
        _, path = convert(
            tmp_path / str(likely),
            tokens=TOKENS,
            roles={"eos_token": "<eom>"},
            generation={"eos_token_id": [EOM, A, B, D]},
            likely=likely,
        )
        runtime = LlamaCppRuntime.open(path, "cpu", 1)
        assert runtime.eos_token_ids == (EOM, A, B)
        new = generate(
            runtime, [5, 6], 8, tokenizer_size=runtime.tokenizer_size,
            eos_token_ids=runtime.stopping_ids,
        )  # fmt: skip
        assert list(new) == []
        runtime.close()


def test_an_end_without_a_token_is_not_suppressed(tmp_path: Path) -> None:
    """A fine-tune whose tokenizer was not saved stops at a row that no token has."""
    row = 4050
    checkpoint, path = convert(tmp_path, generation={"eos_token_id": [row]}, likely=row)
    suppressed = read_header(path).metadata["tokenizer.ggml.suppress_tokens"].tolist()
    assert suppressed == [index for index in range(FIRST_ID, 4096) if index != row]
    assert stops(vocabulary(path)) == {END_OF_TEXT, row}
    assert settings(path, checkpoint).settings == []
    runtime = LlamaCppRuntime.open(path, "cpu", 1)
    for temperature in (0.0, 1.0):
        new = generate(
            runtime, [5, 6], 8, tokenizer_size=runtime.tokenizer_size,
            eos_token_ids=runtime.stopping_ids, temperature=temperature,
        )  # fmt: skip
        assert list(new) == []
    runtime.close()
    changed = tmp_path / "changed.gguf"
    never = [*suppressed, row]
    kinds = gguf.GGUFValueType
    change_metadata(path, changed, {"tokenizer.ggml.suppress_tokens": (never, kinds.INT32)})
    assert "suppress_tokens has 4050" in "".join(settings(changed, checkpoint).settings)


def test_the_size_of_a_header_counts_templates(chat: tuple[Checkpoint, Path]) -> None:
    """Budgets are planned with it."""
    checkpoint, path = chat
    assert header_size(checkpoint) + data_size(checkpoint.decoder, "F32") == path.stat().st_size


def test_every_text_of_the_table_ends_in_llama_cpp(tmp_path: Path) -> None:
    texts = sorted(ENDING_TEXTS - {"<|endoftext|>"})
    _, path = convert(tmp_path, tokens=texts)
    assert stops(vocabulary(path)) == {END_OF_TEXT, *range(FIRST_ID, FIRST_ID + len(texts))}


def test_roles_templates_and_sampling_arrive(chat: tuple[Checkpoint, Path]) -> None:
    checkpoint, path = chat
    model = vocabulary(path)
    metadata = model.metadata
    assert model.token_bos() == END_OF_TEXT
    pad, sep = FIRST_ID + 5, C
    assert llama_cpp.llama_vocab_pad(model._model.vocab) == pad
    assert llama_cpp.llama_vocab_sep(model._model.vocab) == sep
    assert metadata["tokenizer.ggml.unknown_token_id"] == str(END_OF_TEXT)
    for token in TOKENS:  # none is text
        attribute = llama_cpp.llama_vocab_get_attr(
            model._model.vocab, checkpoint.tokenizer.encode(token)[0]
        )
        assert attribute == llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
    assert metadata["tokenizer.chat_template"] == CHAT
    assert metadata["tokenizer.chat_template.tool_use"] == f"tools{CHAT}"
    assert metadata["tokenizer.chat_template.rag"] == f"rag{CHAT}"
    assert read_header(path).metadata["tokenizer.chat_templates"] == ["rag", "tool_use"]
    prefix = "general.sampling."
    assert {
        key.removeprefix(prefix): float(value)
        for key, value in metadata.items()
        if key.startswith(prefix)
    } == {
        "temp": 0.2, "top_k": 30, "top_p": 0.9, "min_p": 0.05, "penalty_repeat": 1.1,
        "penalty_last_n": -1,
    }  # fmt: skip
    suppressed = read_header(path).metadata["tokenizer.ggml.suppress_tokens"].tolist()
    assert suppressed[:2] == [17, 23]
    assert suppressed[2:] == list(range(checkpoint.tokenizer.size, 4096))


def test_llama_cpp_python_chats_with_the_template(chat: tuple[Checkpoint, Path]) -> None:
    model = Llama(str(chat[1]), n_ctx=64, verbose=False)
    assert model.chat_format == "chat_template.default"
    formatter = model._chat_handlers["chat_template.tool_use"]
    assert callable(formatter)
    model.close()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, {}),
        ({"do_sample": True}, {"temp": 1.0}),
        ({"do_sample": False}, {"temp": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temp": 0.0}),
        ({"temperature": 0.7}, {"temp": np.float32(0.7)}),
        ({"top_k": 0, "repetition_penalty": 1.0}, {"top_k": 0, "penalty_repeat": 1.0}),
        ({"do_sample": True, "temperature": 1e300, "top_p": 1}, {"top_p": 1.0}),
    ],
)
def test_settings_of_sampling(
    entries: dict[str, Any], expected: dict[str, float], tmp_path: Path
) -> None:
    checkpoint, path = convert(tmp_path, generation={"eos_token_id": END_OF_TEXT, **entries})
    prefix = "general.sampling."
    metadata = read_header(path).metadata
    assert {k.removeprefix(prefix): v for k, v in metadata.items() if prefix in k} == expected
    assert settings(path, checkpoint).settings == []


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            {"generation": {"max_new_tokens": 64, "bad_words_ids": [[5]], "num_beams": 1}},
            "a GGUF file cannot hold bad_words_ids ([[5]]), max_new_tokens (64); left out",
        ),
        (
            {"generation": {"do_sample": False, "temperature": 0.7, "top_p": 1.0}},
            "a GGUF file cannot hold temperature (0.7); left out",
        ),
        (
            {"templates": {"default": CHAT, "two words": CHAT}},
            "a GGUF file cannot hold the chat template 'two words'; left out",
        ),
        (
            {"tokens": ("<cls>",), "roles": {"cls_token": "<cls>"}},
            "a GGUF file cannot hold cls_token (<cls>); left out",
        ),
    ],
)
def test_what_has_no_place_is_named(options: Any, note: str, tmp_path: Path) -> None:
    checkpoint, path = convert(tmp_path, **options)
    manifest = find_manifest(path)
    assert manifest is not None
    assert list(manifest.notes) == [*checkpoint.notes, note]
    assert settings(path, checkpoint).settings == []


def test_flags_of_tokens_are_named(tmp_path: Path) -> None:
    source = fine_tune(tmp_path / "flags", tokens=("<m>",))
    path = source / "tokenizer.json"
    entries = json.loads(path.read_text())
    entries["added_tokens"][-1]["lstrip"] = True
    path.write_text(json.dumps(entries))
    checkpoint = read(str(source))
    planned = plan(checkpoint, tmp_path / "x.gguf")
    assert planned.notes == ("a GGUF file cannot hold lstrip of the token '<m>'; left out",)


def test_a_plain_model_has_no_notes(tmp_path: Path) -> None:
    _, path = convert(tmp_path)
    manifest = find_manifest(path)
    assert manifest is not None
    assert not manifest.notes


def test_a_file_as_a_source_says_the_same(chat: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, path = chat
    again = read(str(path))
    assert again.eos_token_ids == checkpoint.eos_token_ids
    assert again.generation.sampling == checkpoint.generation.sampling
    ours, theirs = again.tokenizer, checkpoint.tokenizer
    assert ours.roles == theirs.roles
    assert ours.extra_roles == theirs.extra_roles
    assert ours.chat_templates == theirs.chat_templates
    assert ours.added == theirs.added
    assert ours.extra_special_tokens == ("<a>", "<b>", "<|im_end|>")
    description = describe(str(path))
    assert description.generation == checkpoint.generation.sampling
    assert description.tokenizer["stops_at"] == [EOM, A]
    assert again.notes == ()
    output = tmp_path / "again.gguf"
    execute(plan(again, output, type="F32"))
    first, second = (read_header(file).metadata for file in (path, output))
    assert {**first, "tokenizer.ggml.token_type": 0, "tokenizer.ggml.suppress_tokens": 0} == {
        **second, "tokenizer.ggml.token_type": 0, "tokenizer.ggml.suppress_tokens": 0,
    }  # fmt: skip


def test_a_greedy_file_is_a_greedy_source(tmp_path: Path) -> None:
    _, path = convert(tmp_path, generation={"do_sample": False, "top_k": 5})
    assert read(str(path)).generation.sampling == {"do_sample": False, "top_k": 5}


def test_settings_of_others_are_named_or_refused(
    chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    path = tmp_path / "other.gguf"
    kinds = gguf.GGUFValueType
    change_metadata(chat[1], path, {"general.sampling.mirostat": (2, kinds.INT32)})
    (note,) = read(str(path)).notes
    assert "general.sampling.mirostat is left out" in note
    change_metadata(chat[1], path, {"general.sampling.top_k": (-1, kinds.INT32)})
    assert read(str(path)).generation.sampling["top_k"] == 0
    for key, value, kind in (
        ("general.sampling.top_p", 1.5, kinds.FLOAT32),
        ("general.sampling.temp", float("nan"), kinds.FLOAT32),
        ("general.sampling.temp", "hot", kinds.STRING),
        ("tokenizer.ggml.eom_token_id", "x", kinds.STRING),
        ("tokenizer.ggml.padding_token_id", 5000, kinds.UINT32),
        ("tokenizer.chat_template", 7, kinds.UINT32),
    ):
        change_metadata(chat[1], path, {key: (value, kind)})
        with pytest.raises(InputError, match=key) as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


Change = Mapping[str, tuple[Any, gguf.GGUFValueType] | None]
U32, F32, STRING = (
    gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"tokenizer.ggml.eos_token_id": (END_OF_TEXT, U32)}, "eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id"),
        ({"tokenizer.ggml.eot_token_id": (EOM, U32)}, "do not name 4007"),
        ({"tokenizer.ggml.eot_token_id": None}, "do not name 4007"),
        ({"tokenizer.ggml.eom_token_id": (B, U32)}, "eom_token_id is 4008"),
        ({"tokenizer.ggml.bos_token_id": (1, U32)}, "bos_token_id"),
        ({"tokenizer.ggml.bos_token_id": None}, "bos_token_id"),
        ({"tokenizer.ggml.padding_token_id": (END_OF_TEXT, U32)}, "padding_token_id"),
        ({"tokenizer.ggml.unknown_token_id": (EOM, U32)}, "unknown_token_id"),
        ({"tokenizer.ggml.seperator_token_id": None}, "seperator_token_id"),
        ({"tokenizer.chat_template": None}, "tokenizer.chat_template"),
        ({"tokenizer.chat_template": (CHAT[:-1], STRING)}, "tokenizer.chat_template"),
        ({"tokenizer.chat_template.rag": None}, "tokenizer.chat_template.rag"),
        ({"tokenizer.chat_template.new": (CHAT, STRING)}, "tokenizer.chat_template.new"),
        ({"tokenizer.chat_templates": None}, "tokenizer.chat_templates"),
        ({"general.sampling.temp": (0.3, F32)}, "general.sampling.temp"),
        ({"general.sampling.temp": None}, "general.sampling.temp"),
        ({"general.sampling.top_k": (40, gguf.GGUFValueType.INT32)}, "general.sampling.top_k"),
        ({"general.sampling.penalty_last_n": None}, "general.sampling.penalty_last_n"),
        ({"general.sampling.mirostat": (2, gguf.GGUFValueType.INT32)}, "mirostat"),
        ({"tokenizer.ggml.suppress_tokens": None}, "suppress_tokens has 0 ids"),
        ({"tokenizer.ggml.suppress_tokens": ("x", STRING)}, "suppress_tokens has 0 ids"),
        ({"tokenizer.ggml.eot_token_id": ([A, B], U32)}, "eot_token_id"),
        ({"tokenizer.ggml.bos_token_id": ([A, B], U32)}, "bos_token_id"),
        ({"general.sampling.temp": ([0.2, 0.2], F32)}, "general.sampling.temp"),
        ({"tokenizer.ggml.add_bos_token": ([A, B], U32)}, "add_bos_token"),
    ],
)
def test_a_changed_entry_is_named(
    change: Change, key: str, chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, path = chat
    assert settings(path, checkpoint).settings == []
    changed = tmp_path / "changed.gguf"
    change_metadata(path, changed, change)
    differences = settings(changed, checkpoint).settings
    assert any(key in text for text in differences), differences


def test_a_special_token_that_became_text_is_named(
    chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, path = chat
    types = read_header(path).metadata["tokenizer.ggml.token_type"].tolist()
    types[A] = int(gguf.TokenType.USER_DEFINED)
    changed = tmp_path / "changed.gguf"
    change_metadata(path, changed, {"tokenizer.ggml.token_type": (types, gguf.GGUFValueType.INT32)})
    assert any("token_type" in text for text in settings(changed, checkpoint).tokenizer)


def test_a_tokenizer_with_unused_in_a_name_is_whole(tmp_path: Path) -> None:
    """llama.cpp marks control tokens with that word as unused, and the last one ends no model."""
    checkpoint, path = convert(tmp_path, tokens=("<eom>", "<unused_1>"))
    runtime = LlamaCppRuntime.open(path, "cpu", 1)
    assert runtime.tokenizer_size == checkpoint.tokenizer.size
    runtime.close()


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{% for %}", "{{ 1 / 0 }}"])
def test_templates_are_not_run(template: str, tmp_path: Path) -> None:
    """One that is a program, and two that would fail, are carried as they are."""
    _, path = convert(tmp_path, templates={"default": template})
    assert read(str(path)).tokenizer.chat_templates == {"default": template}
    runtime = LlamaCppRuntime.open(path, "cpu", 1)
    assert np.isfinite(runtime.feed([1, 2])).all()
    runtime.close()


@pytest.mark.parametrize("make", [lambda: "x" * (1 << 20) + "y", lambda: 3])
def test_templates_that_llama_cpp_does_not_get(
    make: Callable[[], Any], chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    value = make()
    path = tmp_path / "changed.gguf"
    change_metadata(
        chat[1], path, {"tokenizer.chat_template": (value, gguf.GGUFValueType.get_type(value))}
    )
    with pytest.raises(InputError, match=r"chat.template"):
        admit_gguf(path)
