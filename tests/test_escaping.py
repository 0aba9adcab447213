"""What a terminal would obey, what nobody sees, and what turns a line round, is escaped."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import pytest

from cgconvert.escaping import abridged, escaped, json_escaped, printable
from cgconvert.verification.report import WRITERS
from tests.support.reports import report

UNSEEN = [
    *map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)), "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\ufeff",
    "\u2028", "\u2029", "\u00ad", "\u180e", "\u3164", "\u034f", "\ufe0f", "\U000e0041", "\udcff",
    "\ud800", "\U000e0100",
]  # fmt: skip


@pytest.mark.parametrize("character", UNSEEN, ids=map(ascii, UNSEEN))
def test_an_unseen_character_is_escaped(character: str) -> None:
    assert printable(f"a{character}b").isascii()
    assert printable(f"a{character}b") == f"a{ascii(character)[1:-1]}b"
    document = json.dumps({"a": f"x{character}y"}, ensure_ascii=False)
    assert character not in json_escaped(document) or character == "\n"
    assert json.loads(json_escaped(document)) == {"a": f"x{character}y"}


def test_what_is_seen_stays() -> None:
    for text in ("out/Ωmega/模型.gguf", "naïve – “quoted”", "a b\\n", ""):
        assert printable(text) == text
        assert json_escaped(text) == text
    for category in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        characters = (chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) == category)
        assert all(printable(c) != c for c in characters)


def test_a_quotation_is_short() -> None:
    assert abridged("short") == "short"
    for text in ("x" * 5000, "\x1b" * 5000, "\U000e0100" * 79):
        assert len(abridged(text)) <= 82
        assert abridged(text).isprintable()


def test_texts_in_all_values_are_escaped() -> None:
    assert escaped({"a\x1b": ["b\u202e", 1, None], "c": ("d\n",)}, keep="\n") == {
        "a\\x1b": ["b\\u202e", 1, None], "c": ("d\n",)
    }  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_reports_show_what_names_hold(suffix: str) -> None:
    strange = "x\x1b[31m\x9b\u202e\u2066\u200b\u2028\ny"
    plain = report("out/tiny.gguf")
    checks = (replace(plain.checks[0], detail=f"tensor {strange}"), *plain.checks[1:])
    changed = replace(plain, artefact={**plain.artefact, "path": strange}, checks=checks)
    text = WRITERS[suffix]([changed])
    for character in strange:
        assert character.isprintable() or character == "\n" or character not in text, character
    if suffix == ".txt":
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("y") for line in text.split("\n"))
