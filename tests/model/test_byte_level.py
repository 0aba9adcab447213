"""Other spellings of GPT-2's tokenizer give the same ids; what would change an id is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from cgconvert.errors import InputError
from cgconvert.model.tokenizer import END_OF_TEXT, Tokenizer
from cgconvert.model.tokenizer_writer import tokenizer_json
from tests.model.test_tokenizer import TEXTS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ALONE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def template(single: str, pair: str = "$A $B") -> Any:
    return processors.TemplateProcessing(single, pair, [(END_OF_TEXT, 0), ("def", 1)])


EQUAL: dict[str, dict[str, Any]] = {
    "a template of the text alone": {"post_processor": template("$A")},
    "a template that adds to pairs": {"post_processor": template("$A", f"$A {END_OF_TEXT} $B")},
    "a sequence of post-processors": {
        "post_processor": processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                               template("$A:0")])
    },
    "no post-processor": {"post_processor": None},
    "a sequence of one": {"pre_tokenizer": pre_tokenizers.Sequence([BYTES])},
    "sequences in each other": {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Sequence([BYTES])])
    },
    "GPT-2's split": {"pre_tokenizer": pre_tokenizers.Sequence([split(GPT2), BYTES_ALONE])},
    "GPT-2's split twice": {"pre_tokenizer": pre_tokenizers.Sequence([split(GPT2), BYTES])},
    "tiktoken's spelling": {
        "pre_tokenizer": pre_tokenizers.Sequence([split(TIKTOKEN, "removed", True), BYTES_ALONE])
    },
    "isolated and inverted": {
        "pre_tokenizer": pre_tokenizers.Sequence([split(GPT2, "isolated", True), BYTES_ALONE])
    },
    "a sequence of decoders": {
        "decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    },
    "a normalizer of no parts": {"normalizer": normalizers.Sequence([])},
}  # fmt: skip


def rewritten(tokenizer_folder: Path, folder: Path, parts: dict[str, Any]) -> Path:
    """Write the embedded tokenizer with other parts, as the tokenizers library saves it."""
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    for name, part in parts.items():
        setattr(backend, name, part)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    shutil.copy(tokenizer_folder / "tokenizer_config.json", folder)
    return folder


@pytest.mark.parametrize("case", EQUAL)
def test_an_equal_tokenizer_is_accepted(case: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = rewritten(tokenizer_folder, tmp_path / "other", EQUAL[case])
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = Tokenizer.load(folder)
    assert tokenizer_json(loaded) == tokenizer_json(Tokenizer.load(tokenizer_folder))
    for text in TEXTS:
        assert loaded.encode(text) == library.encode(text).ids


def test_saved_truncation_and_padding_change_nothing(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = rewritten(tokenizer_folder, tmp_path / "other", {})
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=8, pad_token=END_OF_TEXT)
    library.save(str(folder / "tokenizer.json"))
    assert tokenizer_json(Tokenizer.load(folder)) == tokenizer_json(
        Tokenizer.load(tokenizer_folder)
    )


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "a template with an end": (
        {"post_processor": template(f"$A {END_OF_TEXT}")},
        r"'TemplateProcessing', which adds '<\|endoftext\|>' to every text",
    ),
    "a template with a beginning, in a sequence": (
        {"post_processor": processors.Sequence([processors.ByteLevel(), template("def $A")])},
        "'TemplateProcessing', which adds 'def' to every text; remove it from the file",
    ),
    "a template that doubles the text": (
        {"post_processor": template("$A $A")}, "'TemplateProcessing' that is not the text once",
    ),
    "RoBERTa's ends": (
        {"post_processor": processors.RobertaProcessing(("</s>", 2), ("<s>", 0))},
        "'RobertaProcessing', which adds '<s>' and '</s>' to every text",
    ),
    "another split": (
        {"pre_tokenizer": pre_tokenizers.Sequence([split(r"\d"), BYTES])},
        r"pre-tokenizer 'Split' by '\\\\d'",
    ),
    "GPT-2's split, its matches removed": (
        {"pre_tokenizer": pre_tokenizers.Sequence([split(GPT2, "removed"), BYTES_ALONE])},
        "pre-tokenizer 'Split' by",
    ),
    "digits apart": (
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])},
        "pre-tokenizer 'Digits'",
    ),
    "bytes without the regular expression": (
        {"pre_tokenizer": pre_tokenizers.Sequence([BYTES_ALONE])}, "use_regex false",
    ),
    "a space before": (
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()])},
        "add_prefix_space",
    ),
    "NFC": ({"normalizer": normalizers.NFC()}, "a normalizer 'NFC'"),
    "NFC in a sequence": (
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])},
        "a normalizer 'NFC', a normalizer 'Lowercase'",
    ),
    "another decoder": (
        {"decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])},
        "decoder 'ByteLevel', 'Strip'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_part_that_changes_ids_is_named(
    case: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    parts, message = DIFFERENT[case]
    folder = rewritten(tokenizer_folder, tmp_path / "other", parts)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "TemplateProcessing"},
        {"type": "TemplateProcessing", "single": [{"Sequence": {}, "SpecialToken": 1}]},
        {"type": "TemplateProcessing", "single": ["$A"]},
        {"type": "Sequence"},
        ["ByteLevel"],
        "ByteLevel",
    ],
)
def test_a_damaged_part_is_refused(part: Any, tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = rewritten(tokenizer_folder, tmp_path / "other", {})
    data = json.loads((folder / "tokenizer.json").read_text())
    for key in ("post_processor", "pre_tokenizer", "decoder", "normalizer"):
        (folder / "tokenizer.json").write_text(json.dumps(data | {key: part}))
        with pytest.raises(InputError, match="not GPT-2's byte-level BPE"):
            Tokenizer.load(folder)
