"""Which tokenizer a source has, and when CodeGen's runs of white space are added to it: never to
a tokenizer that the source brought, unless that is GPT-2's beside an original release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import cgconvert
from cgconvert.errors import InputError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.formats.read_options import read_tokenizer
from cgconvert.io.progress import SilentProgress
from cgconvert.model.tokenizer import END_OF_TEXT, Tokenizer
from cgconvert.testing import synthetic
from cgconvert.verification.witness.call import call
from cgconvert.write.manifest import find_manifest
from tests.support.fine_tunes import GEOMETRY
from tests.support.gpt2_fine_tunes import PAD, SIZE, fine_tune, flags

INDENTED = "if x:\n        return\n\t\tz"
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
RELEASE = "codegen-350M-mono"


def bare(folder: Path, name: str) -> Path:
    """A random model without a tokenizer."""
    state = synthetic.RandomState(GEOMETRY)
    return synthetic.write("safetensors", state, GEOMETRY, folder, name, None)


def beside(folder: Path, name: str, **texts: Any) -> Path:
    """The same model beside the texts of a fine-tune."""
    source = bare(folder, name)
    texts_folder = fine_tune(folder / "texts", weights=False, **texts)
    (texts_folder / "config.json").unlink()
    shutil.copytree(texts_folder, source, dirs_exist_ok=True)
    return source


SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2's class": ("tune", {"tokenizer_config": GPT2}),
    "GPT-2's class and a pad token": (
        "tune", {"tokenizer_config": GPT2 | {"pad_token": PAD}, "added": (PAD,)},
    ),
    "only vocabulary and merges": ("tune", {}),
    "CodeGen's class": ("tune", {"tokenizer_config": {"tokenizer_class": "CodeGenTokenizer"}}),
    "a release's name and GPT-2's class": (RELEASE, {"tokenizer_config": GPT2}),
    "a release's name and a pad token": (RELEASE, {"added": (PAD,)}),
    "a release's name and some runs": (RELEASE, {"added": ("    ", "  ")}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_sources_own_tokenizer_is_used_as_it_is(name: str, tmp_path: Path) -> None:
    folder_name, texts = SOURCES[name]
    source = beside(tmp_path, folder_name, **texts)
    ids = AutoTokenizer.from_pretrained(source)(INDENTED).input_ids
    checkpoint = read(str(source))
    assert checkpoint.tokenizer.size == SIZE + len(texts.get("added", ()))
    assert not checkpoint.tokenizer.has_added_runs
    assert checkpoint.notes == ()
    assert checkpoint.tokenizer.encode(INDENTED) == ids
    artefact = cgconvert.to_hf(checkpoint, tmp_path / "out")
    assert artefact.notes == ()
    assert "notes" not in json.loads((artefact.path / "cgconvert.json").read_text())
    assert AutoTokenizer.from_pretrained(artefact.path)(INDENTED).input_ids == ids


def test_a_fast_tokenizer_without_runs_is_used_as_it_is(tmp_path: Path) -> None:
    source = beside(tmp_path, "tune", added=(PAD,), tokenizer_config=GPT2 | {"pad_token": PAD})
    theirs = AutoTokenizer.from_pretrained(source)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (source / name).unlink()
    theirs.save_pretrained(source)
    loaded = read(str(source)).tokenizer
    assert (loaded.size, loaded.pad_token_id) == (SIZE + 1, SIZE)
    assert loaded.encode(INDENTED) == theirs(INDENTED).input_ids


@pytest.mark.parametrize("config", [None, {"model_max_length": 1024}, {"eos_token": END_OF_TEXT}])
def test_runs_are_added_to_gpt2s_beside_a_release(
    config: dict[str, Any] | None, tmp_path: Path
) -> None:
    source = beside(tmp_path, RELEASE, tokenizer_config=config)
    checkpoint = read(str(source))
    assert checkpoint.tokenizer.has_added_runs
    assert checkpoint.tokenizer.whitespace_ids == tuple(range(SIZE, SIZE + 38))
    (note,) = checkpoint.notes
    assert note.startswith(f"{source}: is GPT-2's tokenizer; CodeGen's runs of white space were")
    assert note.endswith(f"ids {SIZE} to {SIZE + 37}")


def test_runs_are_added_where_the_source_has_no_tokenizer(tmp_path: Path) -> None:
    plain = fine_tune(tmp_path / "gpt2", tokenizer_config=GPT2, weights=False)
    source = bare(tmp_path, "model")
    result = cgconvert.to_hf(source, tmp_path / "out", tokenizer=plain)
    (note,) = result.notes
    assert str(plain) in note
    manifest = find_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.notes == [note]
    assert read(str(tmp_path / "out")).tokenizer.size == SIZE + 38
    # A tokenizer with tokens of its own is used as it is here too.
    own = fine_tune(tmp_path / "own", added=(PAD,), tokenizer_config=GPT2, weights=False)
    checkpoint = read(str(source), ReadOptions(tokenizer=own))
    assert (checkpoint.tokenizer.size, checkpoint.notes) == (SIZE + 1, ())


def test_templates_of_the_source_stay_with_a_tokenizer_without_any(tmp_path: Path) -> None:
    plain = fine_tune(tmp_path / "gpt2", tokenizer_config=GPT2, weights=False)
    chat = fine_tune(
        tmp_path / "chat", tokenizer_config=GPT2 | {"chat_template": "B"}, weights=False
    )
    source = bare(tmp_path, "model")
    (source / "chat_template.jinja").write_text("A")
    for tokenizer, template in ((plain, "A"), (chat, "B")):
        checkpoint = read(str(source), ReadOptions(tokenizer=tokenizer))
        assert checkpoint.tokenizer.chat_templates == {"default": template}
    options = ReadOptions(tokenizer=plain)
    assert source / "chat_template.jinja" in read(str(source), options).files
    (source / "chat_template.jinja").unlink()
    (source / "tokenizer_config.json").write_text('{"chat_template": "C"}')
    assert read(str(source), options).tokenizer.chat_templates == {"default": "C"}
    gguf = cgconvert.to_gguf(read(str(source), options), tmp_path / "x.gguf", type="F16").path
    assert read(str(gguf), options).tokenizer.chat_templates == {"default": "C"}


def test_a_file_that_says_nothing_new_is_no_part_of_the_source(tmp_path: Path) -> None:
    """The SHA-256 of a source is the same with and without it."""
    old = {"bos_token_id": 1, "eos_token_id": 2}
    source = beside(tmp_path, "tune", tokenizer_config=GPT2, generation_config=old)
    path = source / "generation_config.json"
    assert path not in read(str(source)).files
    path.write_text(json.dumps(old | {"top_p": 0.9}))
    assert path in read(str(source)).files


@pytest.mark.parametrize(
    "entries", [{"eos_token_id": 2000}, {"eos_token_id": [3967, 5]}, {"do_sample": True}]
)
def test_a_file_that_takes_the_place_of_what_the_configuration_says_is_part_of_the_source(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    generation = {"eos_token_id": [3967]}
    source = fine_tune(
        tmp_path / "tune", tokenizer_config=GPT2, generation_config=generation, config=entries
    )
    checkpoint = read(str(source))
    assert source / "generation_config.json" in checkpoint.files
    assert checkpoint.eos_token_ids == (3967,)
    witness = call(checkpoint, ["a"], [[40]], 1, None, SilentProgress())
    assert witness.stop_ids == (3967,)
    assert not witness.settings


def test_gptjs_vocabulary_has_no_runs(tmp_path: Path) -> None:
    """GPT-J's embedding has 50,400 rows; a CodeGen that is stored as GPT-J has 51,200."""
    plain = fine_tune(tmp_path / "gpt2", weights=False)
    options = ReadOptions(tokenizer=plain)
    (tmp_path / "empty").mkdir()

    def size(**config: Any) -> int:
        loaded, _ = read_tokenizer(tmp_path / "empty", options, "model", config)
        return loaded.size

    assert size(model_type="gptj", vocab_size=50400) == SIZE
    assert size(model_type="gptj", vocab_size=51200) == SIZE + 38
    assert size(model_type="codegen", vocab_size=51200) == SIZE + 38


def test_ids_beyond_the_embedding_are_left_out_with_a_note(tmp_path: Path) -> None:
    ids = [SIZE - 1, 5, GEOMETRY.vocab_size, GEOMETRY.vocab_size - 1]
    source = beside(tmp_path, "tune", generation_config={"eos_token_id": ids})
    checkpoint = read(str(source))
    assert checkpoint.eos_token_ids == (SIZE - 1, 5, GEOMETRY.vocab_size - 1)
    assert checkpoint.notes == (
        f"{source}: eos_token_id {GEOMETRY.vocab_size} is left out: the model has "
        f"{GEOMETRY.vocab_size} rows",
    )


def test_a_tokenizer_without_an_eos_token_has_the_configured_one(tmp_path: Path) -> None:
    for name, generation, config in (
        ("generation", {"eos_token_id": [SIZE, 5]}, {}),
        ("config", None, {"eos_token_id": SIZE}),
    ):
        source = beside(tmp_path / name, "tune", added=(PAD,), generation_config=generation)
        vocabulary = (source / "vocab.json").read_text("utf-8").replace(END_OF_TEXT, "<|x|>")
        (source / "vocab.json").write_text(vocabulary, "utf-8")
        own = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(own | config))
        checkpoint = read(str(source))
        assert checkpoint.tokenizer.eos_token == PAD
        assert checkpoint.eos_token_ids[0] == SIZE
        assert Tokenizer.load(source, SIZE) == checkpoint.tokenizer


def test_a_tokenizer_without_a_pad_token_has_the_configured_special_one(tmp_path: Path) -> None:
    decoder = {str(SIZE): flags(PAD), str(SIZE + 1): flags("<text>", special=False)}
    tokens = {"added_tokens_decoder": decoder, **GPT2}
    for pad, expected in ((SIZE, SIZE), (SIZE + 1, SIZE - 1), (0, SIZE - 1), (1 << 20, SIZE - 1)):
        source = beside(
            tmp_path / str(pad), "tune", added=(PAD, "<text>"), tokenizer_config=tokens,
            generation_config={"pad_token_id": pad, "eos_token_id": SIZE - 1},
        )  # fmt: skip
        checkpoint = read(str(source))
        assert checkpoint.tokenizer.pad_token_id == expected
        assert checkpoint.eos_token_ids == (SIZE - 1,)


def test_a_gap_in_the_ids_is_refused_and_unused_tokens_mend_it(tmp_path: Path) -> None:
    roles = {"eos_token": END_OF_TEXT, "pad_token": PAD}
    folder = fine_tune(tmp_path / "source", tokenizer_config=GPT2, special_tokens_map=roles)
    added = folder / "added_tokens.json"
    added.write_text(json.dumps({PAD: SIZE + 2}))  # transformers 5 would give it the id SIZE
    with pytest.raises(InputError, match=f"id {SIZE} is missing.*`tokenizer`, or add an unused"):
        read(str(folder))
    added.write_text(json.dumps({PAD: SIZE + 2, "<unused-1>": SIZE, "<unused-2>": SIZE + 1}))
    assert read(str(folder)).tokenizer.pad_token_id == SIZE + 2
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == SIZE + 2
