"""What a Hugging Face folder says of generation: to transformers, as a source, and to checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cgconvert.formats.huggingface.checks import settings
from cgconvert.formats.huggingface.writer import plan
from cgconvert.formats.read import describe, read
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes.generate import generate
from cgconvert.runtimes.transformers import TransformersRuntime
from cgconvert.write.execute import execute
from tests.support.fine_tunes import CHAT, FIRST_ID, fine_tune

END_OF_TEXT = 3967
EOM, PAD, A, MASK = range(FIRST_ID, FIRST_ID + 4)
CHAT_MODEL: Mapping[str, Any] = {
    "tokens": ("<eom>", "<pad>", "<a>", "<mask>"),
    "roles": {"eos_token": "<eom>", "pad_token": "<pad>", "mask_token": "<mask>"},
    "extra_special": ["<a>"],
    "templates": {"default": CHAT, "tool_use": f"tools{CHAT}"},
    "generation": {
        "eos_token_id": [A, EOM, END_OF_TEXT],
        "do_sample": True, "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1,
        "bad_words_ids": [[7]], "max_new_tokens": 64,
    },
}  # fmt: skip


def convert(folder: Path, layout: str = "codegen", **options: Any) -> tuple[Checkpoint, Path]:
    """Write a fine-tune and its folder for transformers; return the checkpoint and the folder."""
    checkpoint = read(str(fine_tune(folder / "source", **options)))
    output = folder / "hf"
    execute(plan(checkpoint, output, dtype="float32", layout=layout, max_shard_size=1 << 30))
    return checkpoint, output


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return convert(tmp_path_factory.mktemp("chat"), **CHAT_MODEL)


def test_transformers_reads_what_it_reads_from_the_source(chat: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = chat
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (checkpoint.path, folder))
    roles = ("eos", "bos", "unk", "pad", "mask")
    assert [getattr(ours, f"{role}_token_id") for role in roles] == [
        EOM, END_OF_TEXT, END_OF_TEXT, PAD, MASK,
    ]  # fmt: skip
    for role in roles:
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ["<a>"]
    assert ours.chat_template == theirs.chat_template == CHAT_MODEL["templates"]
    messages = [{"role": "user", "content": "hello"}]
    ids = ours.apply_chat_template(messages, tokenize=True)
    assert ids == theirs.apply_chat_template(messages, tokenize=True)
    expected = GenerationConfig.from_pretrained(checkpoint.path).to_dict()
    actual = GenerationConfig.from_pretrained(folder).to_dict()
    for config in (expected, actual):
        config["eos_token_id"] = set(config["eos_token_id"])
        for key in ("bos_token_id", "pad_token_id", "transformers_version"):
            config.pop(key)
    assert actual == expected


@pytest.mark.parametrize("layout", ["codegen", "phi"])
def test_each_configuration_has_the_ids(layout: str, tmp_path: Path) -> None:
    _, folder = convert(tmp_path, layout, **CHAT_MODEL)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [EOM, A, END_OF_TEXT]
    assert model.generation_config.eos_token_id == model.config.eos_token_id == ids
    assert model.generation_config.pad_token_id == PAD
    assert model.config.bos_token_id == END_OF_TEXT
    with TransformersRuntimeAt(folder) as runtime:
        assert runtime.eos_token_ids == (EOM, A, END_OF_TEXT)


class TransformersRuntimeAt:
    """An open runtime, closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.runtime = TransformersRuntime.open(folder, threads=1)

    def __enter__(self) -> TransformersRuntime:
        return self.runtime

    def __exit__(self, *_: object) -> None:
        self.runtime.close()


@pytest.mark.parametrize("likely", [EOM, A, END_OF_TEXT])
def test_generation_ends_at_each_end(likely: int, tmp_path: Path) -> None:
    _, folder = convert(tmp_path, likely=likely, **CHAT_MODEL)
    with TransformersRuntimeAt(folder) as runtime:
        tokens = generate(
            runtime, [5, 6], 8, tokenizer_size=runtime.tokenizer_size,
            eos_token_ids=runtime.eos_token_ids,
        )  # fmt: skip
        assert list(tokens) == []


def test_a_plain_model_says_what_it_said_before(tmp_path: Path) -> None:
    old = {"bos_token_id": 1, "eos_token_id": 2}
    checkpoint, folder = convert(tmp_path, generation=old)
    assert checkpoint.notes == ()
    ids = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == ids | {"pad_token_id": END_OF_TEXT}
    token_map = json.loads((folder / "special_tokens_map.json").read_text())
    assert set(token_map) == {"bos_token", "eos_token", "pad_token", "unk_token"}
    assert not (folder / "chat_template.jinja").exists()


def test_a_folder_as_a_source_says_the_same(chat: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = chat
    again = read(str(folder))
    assert again.tokenizer == checkpoint.tokenizer
    assert again.eos_token_ids == checkpoint.eos_token_ids == (EOM, A, END_OF_TEXT)
    assert again.generation.sampling == checkpoint.generation.sampling
    hashed = {path.relative_to(folder).as_posix() for path in again.files}
    assert hashed >= {
        "generation_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
    }  # fmt: skip


def test_inspect_shows_where_generation_stops(chat: tuple[Checkpoint, Path]) -> None:
    description = describe(str(chat[1])).as_dict()
    assert description["tokenizer"]["stops_at"] == [EOM, A, END_OF_TEXT]
    assert description["tokenizer"]["end_of_text"] == EOM
    assert description["tokenizer"]["chat_templates"] == ["default", "tool_use"]
    assert description["generation"]["top_p"] == 0.9


def test_settings_that_transformers_saved_again_are_equal(
    chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, folder = chat
    shutil.copytree(folder, tmp_path / "again")
    GenerationConfig.from_pretrained(folder).save_pretrained(tmp_path / "again")
    differences = settings(tmp_path / "again", checkpoint)
    assert list(differences.settings) == list(differences.tokenizer) == []


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the entries of a JSON file of a folder."""

    def apply(folder: Path) -> None:
        entries = json.loads((folder / name).read_text())
        change(entries)
        (folder / name).write_text(json.dumps(entries))

    return apply


def put(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(entries)


def lose(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def remove(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


GENERATION, CONFIG, TOKENIZER, MAP = (
    "generation_config.json", "config.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
FILE, NAMED = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (edit(GENERATION, put(eos_token_id=EOM)), f"eos_token_id is {EOM}"),
        (edit(GENERATION, put(eos_token_id=[A, EOM])), "eos_token_id has 2 entries for 3"),
        (edit(CONFIG, put(eos_token_id=END_OF_TEXT)), "config.json: eos_token_id"),
        (edit(GENERATION, put(pad_token_id=END_OF_TEXT)), "pad_token_id"),
        (edit(GENERATION, put(bos_token_id=EOM)), "bos_token_id"),
        (edit(GENERATION, put(temperature=0.3)), "temperature is 0.3, not 0.2"),
        (edit(GENERATION, lose("top_p")), "top_p is 'absent', not 0.9"),
        (edit(GENERATION, put(do_sample=False)), "do_sample is False, not True"),
        (edit(GENERATION, put(min_p=0.1)), "min_p is 0.1, and the source has none"),
        (edit(GENERATION, put(bad_words_ids=[[8]])), "bad_words_ids has 1 entries"),
        (edit(TOKENIZER, put(eos_token="<|endoftext|>")), "eos_token is '<|endoftext|>'"),
        (edit(TOKENIZER, put(pad_token="<a>")), "pad_token is '<a>'"),
        (edit(MAP, put(unk_token="<a>")), "special_tokens_map.json: unk_token is '<a>'"),
        (edit(TOKENIZER, lose("mask_token")), "mask_token"),
        (edit(TOKENIZER, lose("additional_special_tokens")), "additional_special_tokens"),
        (remove(TOKENIZER, MAP), "eos_token is '<|endoftext|>', not '<eom>'"),
        (both(remove(FILE, NAMED), edit(TOKENIZER, lose("chat_template"))), "is missing"),
        (remove(NAMED), "chat templates: 'tool_use' is missing"),
        (lambda folder: (folder / FILE).write_text("x"), "chat templates: 'default' differs"),
        (lambda folder: (folder / NAMED).with_name("x.jinja").touch(), "'x' is new"),
        (edit(TOKENIZER, put(chat_template="x")), "chat_template: 'default' differs"),
    ],
)
def test_a_change_is_a_difference(
    change: Callable[[Path], object], phrase: str, chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, folder = chat
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    differences = settings(changed, checkpoint)
    assert list(differences.settings) == list(differences.tokenizer) == []
    change(changed)
    differences = settings(changed, checkpoint)
    phrases = [*differences.settings, *differences.tokenizer]
    assert any(phrase in text for text in phrases), phrases


def test_templates_that_only_older_readers_get_are_enough(
    chat: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, folder = chat
    shutil.copytree(folder, tmp_path / "old")
    remove(FILE, NAMED)(tmp_path / "old")
    differences = settings(tmp_path / "old", checkpoint)
    assert list(differences.tokenizer) == []
