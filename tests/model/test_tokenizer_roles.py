"""Roles and flags of tokens: read as transformers reads the same files, and written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken as LibraryToken
from transformers import AutoTokenizer

from cgconvert.errors import InputError
from cgconvert.model.tokenizer import END_OF_TEXT, Tokenizer
from tests.support.gpt2_fine_tunes import EOM, PAD, SIZE, fine_tune, flags

TOKENS = (PAD, EOM, "<m>")
TEXTS = (
    f"a <m> b{END_OF_TEXT}", f"x  <m>  y{PAD}{EOM} <m>q", "a!! b!=c",
    "if x:\n        return\n\t\tz",
)  # fmt: skip
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
DECODER = {str(SIZE + n): flags(token) for n, token in enumerate(TOKENS)}

SOURCES: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "nothing but tokens": (None, None),
    "in tokenizer_config": (GPT2 | {"eos_token": EOM, "pad_token": PAD}, None),
    "as objects": (GPT2 | {"eos_token": {"__type": "AddedToken", **flags(EOM)}}, None),
    "in the map": (GPT2, {"eos_token": EOM, "pad_token": flags(PAD)}),
    "the map overrides": (GPT2 | {"eos_token": END_OF_TEXT}, {"eos_token": EOM}),
    "a decoder hides the map": (
        GPT2 | {"eos_token": EOM, "added_tokens_decoder": DECODER},
        {"eos_token": END_OF_TEXT, "pad_token": PAD},
    ),
    "CodeGenTokenizer": ({"tokenizer_class": "CodeGenTokenizer", "bos_token": EOM}, None),
    "an unknown token": (GPT2 | {"unk_token": "<m>"}, None),
    "additional tokens": (GPT2 | {"additional_special_tokens": ["<m>", PAD]}, None),
    "extra tokens as a list": (GPT2 | {"extra_special_tokens": ["<m>"]}, None),
    "extra tokens by name": (GPT2 | {"extra_special_tokens": {"image_token": "<m>"}}, None),
    "a mask": (GPT2 | {"mask_token": "<m>", "sep_token": EOM}, None),
    "an ordinary token pads": (GPT2 | {"pad_token": "!"}, None),
}
"""tokenizer_config.json and special_tokens_map.json, by what they are like."""

ROLES = ("eos_token", "bos_token", "unk_token", "pad_token", "sep_token", "mask_token")


def write(folder: Path, tokenizer: Tokenizer, *left_out: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "codegen"}')
    for name, content in tokenizer.files(512).items():
        if name not in left_out:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_roles_and_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config, token_map = SOURCES[name]
    source = fine_tune(
        tmp_path / "source", added=TOKENS, tokenizer_config=config, special_tokens_map=token_map,
        weights=False,
    )  # fmt: skip
    theirs, ours = AutoTokenizer.from_pretrained(source), Tokenizer.load(source)
    assert not ours.notes
    written = write(tmp_path / "written", ours)
    slow = write(tmp_path / "slow", ours, "tokenizer.json")
    assert Tokenizer.load(written) == Tokenizer.load(slow) == ours
    for folder in (written, slow):
        theirs_again = AutoTokenizer.from_pretrained(folder)
        assert type(theirs_again) is type(theirs) or config is None
        for role in ROLES:
            expected = getattr(theirs, role)
            if expected is None and role == "pad_token":
                expected = theirs.eos_token
            assert getattr(theirs_again, role) == expected, role
        assert theirs_again.extra_special_tokens == theirs.extra_special_tokens
        for text in TEXTS:
            ids = theirs(text).input_ids
            assert theirs_again(text).input_ids == ids == ours.encode(text), text
            decoded = theirs.decode(ids, skip_special_tokens=True)
            assert theirs_again.decode(ids, skip_special_tokens=True) == decoded


@pytest.mark.parametrize("token", ["<m>", flags("<m>")])
def test_additional_tokens_of_the_map_are_special(token: object, tmp_path: Path) -> None:
    """transformers 4 saved them so; transformers 5 lists them, and decodes them as text."""
    token_map = {"additional_special_tokens": [token, "<gone>"], "eos_token": flags(EOM)}
    source = fine_tune(tmp_path / "s", added=TOKENS, special_tokens_map=token_map, weights=False)
    loaded = Tokenizer.load(source)
    assert (loaded.extra_special_tokens, loaded.eos_token) == (("<m>",), EOM)
    assert [token.content for token in loaded.added if token.special] == [END_OF_TEXT, EOM, "<m>"]


def test_a_fast_tokenizer_that_transformers_saved_is_read(tmp_path: Path) -> None:
    source = fine_tune(tmp_path / "source", added=(PAD,), tokenizer_config=GPT2, weights=False)
    theirs = AutoTokenizer.from_pretrained(source)
    tokens = [
        LibraryToken("<m>", lstrip=True),
        LibraryToken("<s>", lstrip=True, rstrip=True, special=True),
        LibraryToken("de", single_word=True),
    ]
    theirs.add_tokens(tokens)
    theirs.add_special_tokens({"eos_token": EOM})
    theirs.save_pretrained(tmp_path / "fast")
    (tmp_path / "fast/config.json").write_text('{"model_type": "codegen"}')
    ours = Tokenizer.load(tmp_path / "fast")
    assert ours.eos_token == EOM
    written = AutoTokenizer.from_pretrained(write(tmp_path / "written", ours))
    for text in (*TEXTS, "x  <m>  y <s> z", "de def de"):
        assert written(text).input_ids == theirs(text).input_ids == ours.encode(text), text


def test_a_role_that_names_no_token_is_noted(tmp_path: Path) -> None:
    names = GPT2 | {"eos_token": "<gone>", "pad_token": PAD, "model_token": "<gone too>"}
    source = fine_tune(tmp_path / "s", added=(PAD,), tokenizer_config=names, weights=False)
    loaded = Tokenizer.load(source)
    assert (loaded.eos_token, loaded.pad_token_id) == (END_OF_TEXT, SIZE)
    (note,) = loaded.notes
    assert (
        note
        == f"{source}: eos_token is '<gone>', which the tokenizer does not have; it is left out"
    )


def test_a_tokenizer_that_adds_a_token_to_every_text_is_refused(tmp_path: Path) -> None:
    source = fine_tune(
        tmp_path / "s", tokenizer_config=GPT2 | {"add_bos_token": True}, weights=False
    )
    assert AutoTokenizer.from_pretrained(source)("a").input_ids[0] == SIZE - 1
    with pytest.raises(InputError, match=r"tokenizer_config\.json: add_bos_token is true"):
        Tokenizer.load(source)
    # Where there is tokenizer.json, transformers ignores the entry.
    with_json = tmp_path / "json"
    config = GPT2 | {"add_bos_token": True, "added_tokens_decoder": {}}
    fine_tune(with_json, tokenizer_config=config, weights=False)
    (source / "tokenizer_config.json").write_text(json.dumps(GPT2))
    (with_json / "tokenizer.json").write_bytes(Tokenizer.load(source).files(64)["tokenizer.json"])
    ids = Tokenizer.load(with_json).encode("a b")
    assert AutoTokenizer.from_pretrained(with_json)("a b").input_ids == ids


def test_no_end_of_text_and_no_role_takes_the_configured_id(tmp_path: Path) -> None:
    source = fine_tune(tmp_path / "s", added=(EOM,), weights=False)
    text = (source / "vocab.json").read_text("utf-8").replace(END_OF_TEXT, "<|other|>")
    (source / "vocab.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match="names no eos_token"):
        Tokenizer.load(source)
    assert Tokenizer.load(source, SIZE).eos_token == EOM


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 7}, "eos_token is 7, not a token"),
        ({"pad_token": {"content": None}}, "pad_token is {'content': None}, not a token"),
        ({"extra_special_tokens": {"image_token": 1}}, "image_token is 1, not a token"),
        ({"extra_special_tokens": "<m>"}, "the extra special tokens are no list"),
        ({"additional_special_tokens": 7}, "the extra special tokens are no list"),
        (
            {"added_tokens_decoder": {"3968": {"content": PAD, "rstrip": 1}}},
            "a flag that is not true or false",
        ),
    ],
)
def test_broken_configurations_are_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = fine_tune(tmp_path / "s", added=(PAD,), tokenizer_config=config, weights=False)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(source)
