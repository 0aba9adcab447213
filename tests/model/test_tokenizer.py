"""The tokenizer as data: its files are read, built from GPT-2, and compared with transformers."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from cgconvert.errors import InputError
from cgconvert.model.tokenizer import END_OF_TEXT, WHITESPACE_RUNS, AddedToken, Tokenizer

TEXTS = [
    "",
    " ",
    "def f(x):\n    return x + 1\n",
    "if a:\n        if b:\n\t\tc = 'don''t, won\\'t'  # two\n",
    " " * 33 + "x" + " " * 2 + "y" + " " * 64 + "\n" + "\t" * 12 + "z\t",
    " \t \t\t  \t\n\n\r\n \n",
    "naïve — 漢字, 🙂👩‍👩‍👧 \u2003\u00a0\u3000 ﷽ é́",
    "s = f'{a!r}' . , ! ? n't 's 'm",
    f"a{END_OF_TEXT}b",
    inspect.getsource(random),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json as the library itself saves it: no white-space runs."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([inspect.getsource(random), inspect.getsource(json)], trainer)
    folder = tmp_path_factory.mktemp("trained")
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> Tokenizer:
    return Tokenizer.load(trained).with_whitespace_runs()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_runs_are_added_after_the_last_id(tokenizer: Tokenizer, trained: Path) -> None:
    plain = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert tokenizer.size == plain.get_vocab_size() + 38
    assert tokenizer.eos_token_id == plain.token_to_id(END_OF_TEXT)
    assert tokenizer.whitespace_ids == tuple(range(tokenizer.size - 38, tokenizer.size))
    assert [t.content for t in tokenizer.added[1:]] == list(WHITESPACE_RUNS)
    assert [t.special for t in tokenizer.added] == [True] + [False] * 38
    assert END_OF_TEXT not in tokenizer.vocabulary


def test_runs_are_matched_longest_first(tokenizer: Tokenizer) -> None:
    first = tokenizer.whitespace_ids[0]
    runs = {run: first + n for n, run in enumerate(WHITESPACE_RUNS)}
    space, tab = tokenizer.vocabulary["Ġ"], tokenizer.vocabulary["ĉ"]
    assert tokenizer.encode(" " * 33) == [runs[" " * 31], runs["  "]]
    assert tokenizer.encode(" " * 32) == [runs[" " * 31], space]
    assert tokenizer.encode("\t" * 10) == [runs["\t" * 9], tab]
    # A run takes the last space too, which plain GPT-2 would leave to the next word.
    x = tokenizer.vocabulary["x"]
    assert tokenizer.encode("    x") == [runs["    "], x]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_inverts_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=st.text(st.sampled_from(" \t\n.a'é漢🙂") | st.characters(codec="utf-8")))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_the_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(write(tmp_path, tokenizer.files(2048)))
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (
        (tokenizer.eos_token_id,) * 3
    )
    assert theirs.model_max_length == 2048
    assert len(theirs) == tokenizer.size
    for text in TEXTS:
        ids = theirs(text, verbose=False).input_ids
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == text.replace(END_OF_TEXT, "")
    batch = theirs(["a b", "    return x"], padding=True).input_ids
    assert batch[0][: len(batch[1]) - len(theirs("a b").input_ids)][0] == tokenizer.eos_token_id


def test_every_set_of_files_gives_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = tokenizer.files(2048)
    whole = write(tmp_path / "whole", {"tokenizer.json": files["tokenizer.json"]})
    names = ("vocab.json", "merges.txt", "added_tokens.json")
    split = write(tmp_path / "split", {name: files[name] for name in names})
    plain = write(tmp_path / "plain", {name: files[name] for name in names[:2]})
    resaved = tmp_path / "resaved"
    AutoTokenizer.from_pretrained(write(tmp_path / "all", files)).save_pretrained(resaved)
    parts = Tokenizer.from_parts(tokenizer.vocabulary, tokenizer.merges, tokenizer.added)
    loaded = [Tokenizer.load(f) for f in (whole, whole / "tokenizer.json", split, resaved)]
    for variant in (*loaded, Tokenizer.load(plain).with_whitespace_runs(), parts):
        assert variant == tokenizer
        assert variant.files(2048) == files


def test_existing_white_space_runs_keep_their_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    start = tokenizer.size - 38
    moved = [AddedToken(start + n, run, False) for n, run in enumerate(reversed(WHITESPACE_RUNS))]
    variant = Tokenizer.from_parts(
        tokenizer.vocabulary, tokenizer.merges, [tokenizer.added[0], *moved]
    )
    loaded = Tokenizer.load(write(tmp_path, variant.files(64)))
    assert loaded == variant
    assert loaded.encode("  ") == [start + 8]


def test_end_of_text_between_the_runs_and_the_vocabulary_last(tokenizer: Tokenizer) -> None:
    """An added token with a lower id than end-of-text has to be in vocab.json to keep its id."""
    vocabulary = {token: n for n, token in enumerate(tokenizer.vocabulary)}
    size = len(vocabulary)
    added = [AddedToken(size, "    ", False), AddedToken(size + 1, END_OF_TEXT, True)]
    variant = Tokenizer.from_parts(vocabulary, tokenizer.merges, added)
    assert variant.encode(f"    {END_OF_TEXT}") == [size, size + 1]
    assert json.loads(variant.files(64)["added_tokens.json"]) == {}
    assert variant.with_whitespace_runs().size == variant.size + 37


def test_end_of_text_may_have_another_name(trained: Path, tmp_path: Path) -> None:
    data = json.loads((trained / "tokenizer.json").read_text())
    text = json.dumps(data, ensure_ascii=False).replace(END_OF_TEXT, "</s>")
    folder = write(tmp_path, {"tokenizer.json": text.encode()})
    with pytest.raises(InputError, match="no end-of-text token"):
        Tokenizer.load(folder)
    eos = {"eos_token": {"content": "</s>"}, "pad_token": "[not in the vocabulary]"}
    write(folder, {"special_tokens_map.json": json.dumps(eos).encode()})
    loaded = Tokenizer.load(folder)
    assert loaded.eos_token == "</s>"
    assert loaded.size == len(data["model"]["vocab"])
    map_written = json.loads(loaded.files(64)["special_tokens_map.json"])
    assert set(map_written.values()) == {"</s>"}


def test_white_space_is_never_special(tokenizer: Tokenizer) -> None:
    added = [AddedToken(t.id, t.content, True) for t in tokenizer.added]
    assert Tokenizer.from_parts(tokenizer.vocabulary, tokenizer.merges, added) == tokenizer


def set_key(*path: str | int) -> Callable[[Any, Any], None]:
    def change(data: Any, value: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["normalizer"], {"type": "NFC"}, "a normalizer"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "pre-tokenizer 'Whitespace'"),
        (["pre_tokenizer"], None, "pre-tokenizer None"),
        (["pre_tokenizer", "add_prefix_space"], True, "add_prefix_space"),
        (["pre_tokenizer", "use_regex"], False, "use_regex"),
        (["post_processor"], {"type": "TemplateProcessing"}, "post-processor"),
        (["decoder"], {"type": "Metaspace"}, "decoder 'Metaspace'"),
        (["model", "type"], "Unigram", "model 'Unigram'"),
        (["model", "ignore_merges"], True, "ignore_merges"),
        (["model", "dropout"], 0.1, "dropout"),
        (["model", "vocab"], [["a", 0]], "vocabulary is not"),
        (["model", "vocab", "a"], "3", "vocabulary is not"),
        (["model", "vocab", "a"], True, "vocabulary is not"),
        (["model", "vocab", "a"], -1, "vocabulary is not"),
        (["model", "vocab", "a"], 5, "id 5 is given twice"),
        (["model", "vocab", "a"], 10**12, "is missing"),
        (["model", "vocab", "new token"], 600, "byte-level spelling"),
        (["model", "merges"], {}, "merges is not a list"),
        (["model", "merges", 0], "one", "merge 1"),
        (["model", "merges", 0], ["a", 7], "merge 1"),
        (["model", "merges", 0], ["a", "漢"], "'漢', which is not in the vocabulary"),
        (["model", "merges", 0], ["Q", "Z"], "'QZ', which is not in the vocabulary"),
        (["model"], None, "no model"),
        (["added_tokens"], {"a": 1}, "added_tokens"),
        (["added_tokens", 0, "id"], 17, "two ids"),
        (["added_tokens", 0, "content"], 17, "an added token"),
        (["added_tokens", 0, "content"], "\ud800", "not valid Unicode"),
        (["added_tokens", 0, "lstrip"], "yes", "has a flag that is not true or false"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(
    trained: Path, tmp_path: Path, path: list[str | int], value: Any, message: str
) -> None:
    data = json.loads((trained / "tokenizer.json").read_text())
    set_key(*path)(data, value)
    write(tmp_path, {"tokenizer.json": json.dumps(data).encode()})
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b"[" * 100_000, "not valid JSON"),
        ("tokenizer.json", b"[]", "is not a JSON object"),
        ("tokenizer.json", b"\xff\xfe", "not UTF-8"),
        ("added_tokens.json", b'{"  ": "x"}', "an added token"),
        ("added_tokens.json", b'{"<|endoftext|>": 3}', "has the ids"),
        ("added_tokens.json", b'{"<mask>": 900}', "is missing"),
        ("tokenizer_config.json", b'{"add_prefix_space": true}', "add_prefix_space"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "not an object"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "an added token"),
    ],
)
def test_broken_files_are_refused(
    trained: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write(tmp_path, {"tokenizer.json": (trained / "tokenizer.json").read_bytes()})
    write(tmp_path, {name: content})
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


def test_missing_files_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        Tokenizer.load(tmp_path / "nothing")
    write(tmp_path, {"vocab.json": tokenizer.files(64)["vocab.json"]})
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_all_bytes_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="255 of the 256 single-byte tokens are missing"):
        Tokenizer.from_parts({END_OF_TEXT: 0, "a": 1}, [])
    with pytest.raises(InputError, match="a merge is given twice"):
        Tokenizer.from_parts(
            tokenizer.vocabulary, [*tokenizer.merges, tokenizer.merges[0]], tokenizer.added
        )


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenizer.encode("\ud800")


DATA = Path(os.environ.get("CGCONVERT_DATA", ""))


@pytest.mark.skipif(
    "CGCONVERT_DATA" not in os.environ,
    reason="CGCONVERT_DATA names no folder with the real vocabulary, which is not kept here",
)
def test_the_published_vocabulary_gives_the_published_ids() -> None:
    real = Tokenizer.load(DATA / "codegen-tokenizer")
    text = "def hello(x):\n        return x + 1\n\t\tfoo"
    ids = [4299, 23748, 7, 87, 2599, 198, 50280, 7783, 2124, 1343, 352, 198, 50294, 21943]
    assert real.encode(text) == ids
    assert (real.size, real.eos_token_id, real.whitespace_ids[0]) == (50295, 50256, 50257)
    # Plain GPT-2 becomes CodeGen's.
    gpt2 = Tokenizer.from_parts(real.vocabulary, real.merges, real.added[:1])
    assert gpt2.with_whitespace_runs() == real
    # llama.cpp's own cases for GPT-2's vocabulary.
    name = "ggml-vocab-gpt-2.gguf"
    cases = (DATA / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected_lines = (DATA / f"{name}.out").read_text().split("\n")
    for case, line in zip(cases, expected_lines, strict=True):
        assert gpt2.encode(case) == [int(word) for word in line.split()]
        assert real.decode(real.encode(case)) == case
