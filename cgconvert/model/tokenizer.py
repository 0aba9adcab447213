"""The tokenizer as data: GPT-2's byte-level BPE with CodeGen's runs of white space.

Whatever files it is read from, a tokenizer comes down to four parts: vocabulary, merges, added
tokens, end-of-text. They are checked once, and everything else is made from them. So the files
written for a tokenizer are always the same, whichever library version wrote those it was read from.
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

WHITESPACE_RUNS = tuple([" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)])
"""Runs of spaces and tabs that are tokens, in the order of their ids, which follow GPT-2's
(salesforce/CodeGen, jaxformer/hf/sample.py)."""

_ALPHABET = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before BPE; `content` is its plain text."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE tokenizer. Make one with `load` or `from_parts`, which check it.

    `vocabulary` maps base tokens in byte-level spelling (a space is Ġ) to ids, without the added
    tokens; `merges` are in order of rank; `added` is in order of id and holds the end-of-text
    token, whose id is `end_of_text`. Together the ids are 0 … size - 1 without a gap.
    """

    vocabulary: Mapping[str, int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)
    added: tuple[AddedToken, ...] = field(repr=False)
    end_of_text: int

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a folder (tokenizer.json, or vocab.json and merges.txt) or a tokenizer.json.

        White-space runs it lacks are added. Raises InputError where it is missing, broken or of
        another kind than GPT-2's.
        """
        parts = read_parts(path)
        added = [
            AddedToken(index, content, content in parts.special)
            for content, index in parts.added.items()
        ]
        known = parts.vocabulary.keys() | parts.added.keys()
        name = END_OF_TEXT if END_OF_TEXT in known else parts.end_of_text
        if name is None or name not in known:
            raise InputError(
                f"{path}: no end-of-text token: it has no {END_OF_TEXT} and its configuration "
                "names no eos_token of its vocabulary"
            )
        base = cls.from_parts(parts.vocabulary, parts.merges, added, name, where=str(path))
        return base.with_whitespace_runs()

    @classmethod
    def from_parts(
        cls,
        vocabulary: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        added: Iterable[AddedToken] = (),
        end_of_text: str = END_OF_TEXT,
        *,
        where: str = "tokenizer",
    ) -> Tokenizer:
        """Make a tokenizer of its parts as they are; added tokens may be in `vocabulary` too.

        Raises InputError, which names `where` the parts are from, if they do not fit together.
        """
        base = dict(vocabulary)
        by_content = {token.content: token for token in added}
        if end_of_text in base:
            by_content.setdefault(end_of_text, AddedToken(base[end_of_text], end_of_text, True))
        if end_of_text not in by_content:
            raise InputError(f"{where}: the end-of-text token {end_of_text!r} is not in it")
        for content, token in by_content.items():
            if base.pop(content, token.id) != token.id:
                raise InputError(f"{where}: token {content!r} has two ids, one of them {token.id}")
            # White space is text in CodeGen: as a special token it would vanish when decoding.
            special = content == end_of_text or (token.special and bool(content.strip(" \t")))
            by_content[content] = AddedToken(token.id, content, special)
        tokenizer = cls(
            vocabulary=base,
            merges=tuple(merges),
            added=tuple(sorted(by_content.values(), key=lambda token: token.id)),
            end_of_text=by_content[end_of_text].id,
        )
        tokenizer._check(where)
        return tokenizer

    def with_whitespace_runs(self) -> Tokenizer:
        """The same tokenizer; white-space runs that it lacks get the ids after its last one."""
        present = {token.content for token in self.added}
        missing = [run for run in WHITESPACE_RUNS if run not in present]
        runs = tuple(AddedToken(self.size + n, run, False) for n, run in enumerate(missing))
        return Tokenizer(self.vocabulary, self.merges, self.added + runs, self.end_of_text)

    def _check(self, where: str) -> None:
        """Raises InputError where ids have gaps, bytes have no token, or merges make no token."""
        ids = sorted([*self.vocabulary.values(), *(token.id for token in self.added)])
        wrong = next((n for n, index in enumerate(ids) if n != index), None)
        if wrong is not None:
            fault = "given twice" if ids[wrong] < wrong else "missing"
            index = ids[wrong] if ids[wrong] < wrong else wrong
            raise InputError(f"{where}: id {index} is {fault}; ids must be 0, 1, 2, … each once")
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
        """The number of ids: the highest one + 1. Padding rows of a model are not counted."""
        return len(self.vocabulary) + len(self.added)

    @property
    def whitespace_ids(self) -> tuple[int, ...]:
        """The ids of the white-space runs."""
        runs = frozenset(WHITESPACE_RUNS)
        return tuple(token.id for token in self.added if token.content in runs)

    @property
    def end_of_text_token(self) -> str:
        """The spelling of the end-of-text token."""
        return next(token.content for token in self.added if token.id == self.end_of_text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Nothing is added at its ends; the spelled end-of-text becomes its id.

        Raises InputError where the text cannot be UTF-8 (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text is not valid Unicode: {error}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; unknown ids are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(json.dumps(self._json))

    @cached_property
    def _model_vocabulary(self) -> dict[str, int]:
        """The contents of vocab.json: as in GPT-2's, at least the ids up to end-of-text.

        The tokenizers library numbers added tokens after the vocabulary, so one with a lower id
        than a base token has to be in it as well.
        """
        last = max(self.end_of_text, *self.vocabulary.values())
        low = {token.content: token.id for token in self.added if token.id <= last}
        return dict(sorted((dict(self.vocabulary) | low).items(), key=lambda item: item[1]))

    @cached_property
    def _json(self) -> dict[str, Any]:
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
                # One string a merge is what every version of every reader understands.
                "merges": [f"{left} {right}" for left, right in self.merges],
            },
        }

    def files(self, n_positions: int) -> dict[str, bytes]:
        """The Hugging Face tokenizer files of a model with this context (tokens), by name."""
        name = self.end_of_text_token
        roles = {f"{role}_token": name for role in ("bos", "eos", "pad", "unk")}
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token.id): {"content": token.content, **_flags(token)} for token in self.added
            },
            **roles,
            # True, the old default, eats spaces before punctuation (transformers issue 21119).
            "clean_up_tokenization_spaces": False,
            "model_max_length": n_positions,
            "padding_side": "left",
            "tokenizer_class": "CodeGenTokenizer",
        }
        high = {
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
            "added_tokens.json": _dump(high),
        }


def _flags(token: AddedToken) -> dict[str, bool]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {**flags, "special": token.special}


def _dump(value: Any, indent: int | None = 2) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
