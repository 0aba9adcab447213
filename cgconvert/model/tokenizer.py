"""The tokenizer as data: GPT-2's byte-level BPE with CodeGen's runs of white space.

Whatever files it is read from, a tokenizer is made of four parts: vocabulary, merges, added tokens
and the end-of-text token. They are checked once, and everything else is made from them. So the
files that are written for a tokenizer do not depend on the library that wrote the files it was read
from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from cgconvert.errors import InputError
from cgconvert.model.tokenizer_files import read_parts

__all__ = ["END_OF_TEXT", "WHITESPACE_RUNS", "AddedToken", "Tokenizer"]

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's end-of-text token."""

WHITESPACE_RUNS = tuple([" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)])
"""The runs of spaces and of tabs that CodeGen adds to GPT-2's tokens, because code is full of them.
They are in the order of their ids, which follow GPT-2's (salesforce/CodeGen,
jaxformer/hf/sample.py)."""

_ALPHABET = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())
"""The 256 characters that stand for the bytes in byte-level spelling."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is searched in the text before BPE.

    Attributes:
        id: Its id.
        content: Its text, spelled as in plain text.
        special: Whether decoders may leave it out, as a mark that is not text.
    """

    id: int
    content: str
    special: bool


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE tokenizer. Make one with `load` or `from_parts`, which check it.

    The ids of all tokens together are 0 to size - 1, without a gap.

    Attributes:
        vocabulary: The id of each token except the added ones, by its byte-level spelling (in
            which a space is Ġ).
        merges: The pairs of tokens that BPE merges, in order of rank.
        added: The added tokens in order of id, the end-of-text token among them.
        end_of_text_id: The id of the end-of-text token.
    """

    vocabulary: Mapping[str, int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)
    added: tuple[AddedToken, ...] = field(repr=False)
    end_of_text_id: int

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a folder (tokenizer.json, or vocab.json and merges.txt) or a tokenizer.json.

        The runs of white space that it lacks are added.

        Raises InputError if the files are missing or broken, or if the tokenizer is of another kind
        than GPT-2's.
        """
        parts = read_parts(path)
        added = [
            AddedToken(index, content, content in parts.special)
            for content, index in parts.added.items()
        ]
        known = parts.vocabulary.keys() | parts.added.keys()
        token = END_OF_TEXT if END_OF_TEXT in known else parts.end_of_text_token
        if token is None or token not in known:
            raise InputError(
                f"{path}: no end-of-text token: it has no {END_OF_TEXT} and its configuration "
                "names no eos_token of its vocabulary"
            )
        base = cls.from_parts(parts.vocabulary, parts.merges, added, token, where=str(path))
        return base.with_whitespace_runs()

    @classmethod
    def from_parts(
        cls,
        vocabulary: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        added: Iterable[AddedToken] = (),
        end_of_text_token: str = END_OF_TEXT,
        *,
        where: str = "tokenizer",
    ) -> Tokenizer:
        """Make a tokenizer from its parts, to which nothing is added.

        Tokens in `added` may be in `vocabulary` too.

        Raises InputError, which begins with `where`, if the parts do not fit together.
        """
        base = dict(vocabulary)
        by_content = {token.content: token for token in added}
        if end_of_text_token in base:
            by_content.setdefault(
                end_of_text_token, AddedToken(base[end_of_text_token], end_of_text_token, True)
            )
        if end_of_text_token not in by_content:
            raise InputError(f"{where}: the end-of-text token {end_of_text_token!r} is not in it")
        for content, token in by_content.items():
            if base.pop(content, token.id) != token.id:
                raise InputError(f"{where}: token {content!r} has two ids, one of them {token.id}")
            # White space is text; a decoder would leave it out if its token were special.
            special = content == end_of_text_token or (token.special and bool(content.strip(" \t")))
            by_content[content] = AddedToken(token.id, content, special)
        tokenizer = cls(
            vocabulary=base,
            merges=tuple(merges),
            added=tuple(sorted(by_content.values(), key=lambda token: token.id)),
            end_of_text_id=by_content[end_of_text_token].id,
        )
        tokenizer._check(where)
        return tokenizer

    def with_whitespace_runs(self) -> Tokenizer:
        """Return the tokenizer with all of CodeGen's WHITESPACE_RUNS as added tokens.

        Those that are missing get the ids after the last one.
        """
        present = {token.content for token in self.added}
        missing = [run for run in WHITESPACE_RUNS if run not in present]
        runs = tuple(
            AddedToken(index, run, special=False) for index, run in enumerate(missing, self.size)
        )
        return Tokenizer(self.vocabulary, self.merges, self.added + runs, self.end_of_text_id)

    def _check(self, where: str) -> None:
        """Raise InputError if ids have gaps, a byte has no token, or a merge makes no token."""
        ids = sorted([*self.vocabulary.values(), *(token.id for token in self.added)])
        for expected_id, actual_id in enumerate(ids):
            if actual_id != expected_id:
                fault = "given twice" if actual_id < expected_id else "missing"
                raise InputError(
                    f"{where}: id {min(actual_id, expected_id)} is {fault}; "
                    "ids must be 0, 1, 2, … each once"
                )
        for token in self.vocabulary:
            if not token or not _ALPHABET.issuperset(token):
                raise InputError(f"{where}: token {token!r} is not in GPT-2's byte-level spelling")
        absent = sorted(_ALPHABET - self.vocabulary.keys())
        if absent:
            raise InputError(
                f"{where}: {len(absent)} of the 256 single-byte tokens are missing, "
                f"{absent[0]!r} for one; a byte-level BPE has them all"
            )
        for left, right in self.merges:
            for part in (left, right, left + right):
                if part not in self.vocabulary:
                    raise InputError(
                        f"{where}: merge {left!r} + {right!r} needs token {part!r}, "
                        "which is not in the vocabulary"
                    )
        if len(set(self.merges)) != len(self.merges):
            raise InputError(f"{where}: a merge is given twice")

    @property
    def size(self) -> int:
        """Number of tokens, which is the highest id + 1; a model may have more rows, as padding."""
        return len(self.vocabulary) + len(self.added)

    @property
    def whitespace_ids(self) -> tuple[int, ...]:
        """The ids of the runs of white space."""
        runs = frozenset(WHITESPACE_RUNS)
        return tuple(token.id for token in self.added if token.content in runs)

    @property
    def end_of_text_token(self) -> str:
        """The text of the end-of-text token."""
        return next(token.content for token in self.added if token.id == self.end_of_text_id)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; no token is added at its start or end.

        Where the text spells an added token, such as <|endoftext|>, it becomes that token.

        Raises InputError if the text is not valid Unicode (it has a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text is not valid Unicode: {error}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included; unknown ids are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        """The tokenizers library's tokenizer, made from tokenizer.json."""
        return tokenizers.Tokenizer.from_str(json.dumps(self._json))

    @cached_property
    def _model_vocabulary(self) -> dict[str, int]:
        """The vocabulary of vocab.json and tokenizer.json, by id.

        It has all ids up to that of end-of-text, as GPT-2's has. The tokenizers library numbers
        added tokens after the vocabulary, so an added token with a lower id than some token of the
        vocabulary has to be in it as well.
        """
        last_id = max(self.end_of_text_id, *self.vocabulary.values())
        inner = {token.content: token.id for token in self.added if token.id <= last_id}
        return dict(sorted((dict(self.vocabulary) | inner).items(), key=lambda entry: entry[1]))

    @cached_property
    def _json(self) -> dict[str, Any]:
        """The contents of tokenizer.json."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token.id, "content": token.content, **_flags(token)} for token in self.added
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level | {"trim_offsets": True},
            "post_processor": byte_level | {"trim_offsets": False},
            "decoder": byte_level | {"trim_offsets": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": self._model_vocabulary,
                # A merge as one string is understood by every version of every reader.
                "merges": [f"{left} {right}" for left, right in self.merges],
            },
        }

    def files(self, n_positions: int) -> dict[str, bytes]:
        """Return the contents of TOKENIZER_FILES; the model's context is `n_positions` tokens."""
        token_text = self.end_of_text_token
        roles = {f"{role}_token": token_text for role in ("bos", "eos", "pad", "unk")}
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token.id): {"content": token.content, **_flags(token)} for token in self.added
            },
            **roles,
            # True, once the default, removes spaces before punctuation (transformers issue 21119).
            "clean_up_tokenization_spaces": False,
            "model_max_length": n_positions,
            "padding_side": "left",
            "tokenizer_class": "CodeGenTokenizer",
        }
        outside_vocabulary = {
            token.content: token.id
            for token in self.added
            if token.content not in self._model_vocabulary
        }
        merges = "".join(f"{left} {right}\n" for left, right in self.merges)
        return {
            "tokenizer.json": _dump(self._json),
            "tokenizer_config.json": _dump(config),
            "special_tokens_map.json": _dump(roles),
            "vocab.json": _dump(self._model_vocabulary, indent=None),
            "merges.txt": f"#version: 0.2\n{merges}".encode(),
            "added_tokens.json": _dump(outside_vocabulary),
        }


def _flags(token: AddedToken) -> dict[str, bool]:
    """The flags of an added token in Hugging Face's files."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {**flags, "special": token.special}


def _dump(value: Any, indent: int | None = 2) -> bytes:
    """JSON as Hugging Face's files have it: UTF-8, with a line end."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
