"""The model card of the folder of GGUFs: true, for all files, and never over a user's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import cgconvert
from cgconvert.formats.gguf.model_card import model_card
from cgconvert.formats.read import read

TINY = "codegen-tiny-mono"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("out") / TINY / "gguf" / "README.md"


def test_one_card_names_all_files_of_the_folder(card: Path) -> None:
    first = cgconvert.to_gguf(TINY, type="Q8_0")
    assert f"| `{first.path.name}` | Q8_0 | {first.bytes / 1e6:.3g} MB |" in card.read_text()
    second = cgconvert.to_gguf(TINY, type="Q4_0")
    text = card.read_text()
    assert f"`{first.path.name}`" in text
    assert f"llama-server -m {second.path.name} -c 512" in text  # the smallest
    assert f"FROM ./{second.path.name}" in text
    assert 'TEMPLATE """{{ .Prompt }}"""' in text
    assert "| type of the weights | Q4_0, Q8_0 |" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("gguf", "text-generation")
    assert front["license"] == "bsd-3-clause"
    again = cgconvert.to_gguf(TINY, type="Q4_0", force=True)
    assert card.read_text() == text
    assert sorted(again.manifest.files) == [second.path.name]  # the card is no part of it


@pytest.mark.parametrize("own", ["My own words.", None], ids=["own", "changed"])
def test_a_users_card_stays(own: str | None, card: Path) -> None:
    if own is None:
        cgconvert.to_gguf(TINY, type="Q8_0")
        own = card.read_text().replace("## Use", "## How I use it")
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(own)
    cgconvert.to_gguf(TINY, type="Q4_0")
    assert card.read_text() == own


def test_a_card_that_is_a_link_to_nowhere_stays(card: Path) -> None:
    card.parent.mkdir(parents=True)
    card.symlink_to("elsewhere.md")
    cgconvert.to_gguf(TINY, type="Q4_0")
    assert card.is_symlink()
    assert not card.exists()


def test_a_path_of_the_users_gets_no_card(card: Path) -> None:
    cgconvert.to_gguf(TINY, "there/model.gguf", type="Q4_0")
    assert sorted(path.name for path in Path("there").iterdir()) == [
        "model.gguf",
        "model.gguf.cgconvert.json",
    ]
    assert not card.exists()


def test_a_known_licence_is_named() -> None:
    source = replace(read(TINY), name="codegen-350M-mono")
    text = model_card(source, {"a.gguf": ("Q8_0", 10)})
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "bsd-3-clause"
    assert front["base_model"] == "Salesforce/codegen-350M-mono"


def test_a_name_and_a_token_are_shown_as_they_are() -> None:
    """Nothing in them becomes front matter, markup, a row of a table or a part of a command."""
    source = replace(read(TINY), name="mine", original_name="")
    name = "a\n---\nlicense: mit\n---\n# b<script>`\x1b[31m$(id)"
    eos = replace(source.tokenizer.added[0], content="`|\n<b>")
    tokenizer = replace(source.tokenizer, added=(eos, *source.tokenizer.added[1:]))
    strange = replace(source, name=name, tokenizer=tokenizer)
    plain = model_card(source, {"a.gguf": ("Q8_0", 10)}).replace("\n\n", "\n")
    text = model_card(strange, {"a\n```\n;id .gguf": ("Q8_0", 10)}).replace("\n\n", "\n")
    assert text.count("\n") == plain.count("\n")
    assert text.replace("\n", "").isprintable()
    assert yaml.safe_load(text.split("---\n")[1]) == yaml.safe_load(plain.split("---\n")[1])
    assert "<script>" not in re.sub(r"`+ ?.*?[^`] ?`+", "", text).replace("\\<", "")
    assert r"llama-server -m 'a\n```\n;id .gguf' -c" in text
    assert r"| `` `|\n<b> ``, id" in text
