"""Chat templates in each of their places: read as transformers reads them, and written back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cgconvert.errors import InputError
from cgconvert.model.tokenizer import Tokenizer
from tests.support.gpt2_fine_tunes import TEMPLATE, fine_tune

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
SEVERAL = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]

PLACES: dict[str, tuple[object, dict[str, str]]] = {
    "a file": (None, {FILE: TEMPLATE}),
    "a file with Windows' line ends": (None, {FILE: "{{ a }}\r\nb\rc"}),
    "inline": (TEMPLATE, {}),
    "several inline": (SEVERAL, {}),
    "several inline by name": ({"default": "A", "rag": "C"}, {}),
    "files for several": (None, {FILE: "A", f"{FOLDER}/rag.jinja": "C"}),
    "a file hides the inline one": (TEMPLATE, {FILE: "A"}),
    "files hide the inline ones": (SEVERAL, {f"{FOLDER}/rag.jinja": "C"}),
    "no template": (None, {"chat_templates.jinja": "A"}),
    "not ASCII": ("é 漢 🙂", {f"{FOLDER}/x.txt": "not a template"}),
}
"""The entry chat_template, and other files, by what is there."""


def write(folder: Path, inline: object, texts: dict[str, str]) -> Path:
    config: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer"}
    if inline is not None:
        config["chat_template"] = inline
    return fine_tune(folder, tokenizer_config=config, texts=texts, weights=False)


@pytest.mark.parametrize("name", PLACES)
def test_templates_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "s", *PLACES[name])
    theirs = AutoTokenizer.from_pretrained(source).chat_template
    by_name = {"default": theirs} if isinstance(theirs, str) else theirs or {}
    loaded = Tokenizer.load(source)
    assert loaded.chat_templates == by_name
    for left_out in ((), (FILE, *(f"{FOLDER}/{name}.jinja" for name in by_name))):
        written = tmp_path / f"written {len(left_out)}"
        written.mkdir()
        (written / "config.json").write_text('{"model_type": "codegen"}')
        for path, content in loaded.files(512).items():
            if path not in left_out:  # the second time only the entry for older readers is left
                (written / path).parent.mkdir(exist_ok=True)
                (written / path).write_bytes(content)
        assert AutoTokenizer.from_pretrained(written).chat_template == theirs
        assert Tokenizer.load(written) == loaded


def test_the_old_file_of_processors_is_read_where_no_other_is(tmp_path: Path) -> None:
    old = {"chat_template.json": json.dumps({"chat_template": "old"})}
    assert Tokenizer.load(write(tmp_path / "a", None, old)).chat_templates == {"default": "old"}
    assert Tokenizer.load(write(tmp_path / "b", "A", old)).chat_templates == {"default": "A"}


@pytest.mark.parametrize(
    ("inline", "texts", "message"),
    [
        (7, {}, "chat_template is 7, not templates"),
        ([{"name": "x"}], {}, "not a name and a text"),
        ([{"name": "../x", "template": "A"}], {}, "has the name '../x'"),
        ([{"name": "", "template": "A"}], {}, "has the name ''"),
        ({"x" * 65: "A"}, {}, "has the name"),
        ({f"{n}": "A" for n in range(65)}, {}, "not templates"),
        ("\ud800", {}, "is not valid Unicode"),
        ("x" * ((1 << 20) + 1), {}, "1,048,577 characters"),
        (None, {FILE: "x" * (1 << 22 | 1)}, "too large for a chat template"),
        (None, {f"{FOLDER}/{n}.jinja": "A" for n in range(65)}, "more than 64 chat templates"),
        (None, {"chat_template.json": '{"chat_template": [1]}'}, "not a name and a text"),
    ],
)
def test_broken_templates_are_refused_in_one_line(
    inline: object, texts: dict[str, str], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "s", inline, texts)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(source)
    assert message in str(caught.value)
    assert str(source) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_template_is_read_from_regular_files_of_utf8_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "s", None, {})
    (source / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template\.jinja: not UTF-8"):
        Tokenizer.load(source)
    (source / FILE).unlink()
    (source / FOLDER).mkdir()
    os.mkfifo(source / FOLDER / "x.jinja")
    with pytest.raises(InputError, match="not a regular file"):
        Tokenizer.load(source)
