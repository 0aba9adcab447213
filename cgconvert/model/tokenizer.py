"""The tokenizer as data: GPT-2's byte-level BPE with CodeGen's runs of white space.

Whatever files it is read from, a tokenizer is made of the same parts: vocabulary, merges, added
tokens, the roles of some of them, and chat templates. They are checked once, and everything else is
made from them. So the files that are written for a tokenizer do not depend on the library that
wrote the files it was read from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import tokenizers

from cgconvert.errors import InputError
from cgconvert.escaping import abridged
from cgconvert.io.foreign import foreign_call
from cgconvert.model.tokenizer_files import ROLES, read_parts
from cgconvert.model.tokenizer_writer import AddedToken, tokenizer_files, tokenizer_json

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
class Tokenizer:
    """A byte-level BPE tokenizer. Make one with `load` or `from_parts`, which check it.

    The ids of all tokens together are 0 to size - 1, without a gap.

    Attributes:
        vocabulary: The id of each token except the added ones, by its byte-level spelling (in
            which a space is Ġ).
        merges: The pairs of tokens that BPE merges, in order of rank.
        added: The added tokens in order of id, those with a role among them.
        eos_token_id: The id of the token that ends a text.
        bos_token_id: The id of the token that begins a text.
        unk_token_id: The id of the token for what has no token.
        pad_token_id: The id of the token that pads a batch.
        chat_templates: Jinja templates by name; "default" is the one for a plain chat.
        extra_special_tokens: Special tokens that the tokenizer's configuration lists beside those
            with a role.
        extra_roles: Tokens of other roles by the key that names them, such as sep_token.
        tokenizer_class: The class of transformers that reads its files.
        has_added_runs: Whether the runs of white space were added to a tokenizer without them.
        notes: What the user should know of the files it was read from, a line each.
    """

    vocabulary: Mapping[str, int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)
    added: tuple[AddedToken, ...] = field(repr=False)
    eos_token_id: int
    bos_token_id: int
    unk_token_id: int
    pad_token_id: int
    chat_templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_special_tokens: tuple[str, ...] = ()
    extra_roles: Mapping[str, str] = field(default_factory=dict)
    tokenizer_class: str = "CodeGenTokenizer"
    has_added_runs: bool = field(default=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def load(
        cls, path: Path, eos_token_id: int | None = None, pad_token_id: int | None = None
    ) -> Tokenizer:
        """Read a folder (tokenizer.json, or vocab.json and merges.txt) or a tokenizer.json.

        Nothing is added to it. Tokens that its configuration names and it does not have are left
        out, with a note.

        Args:
            path: The folder or the file.
            eos_token_id: The id of the eos token, if no file names one and there is no
                END_OF_TEXT.
            pad_token_id: The id of the pad token, if no file names one and it is a special token.

        Raises:
            InputError: Files are missing or broken, or the tokenizer is of another kind than
                GPT-2's.
        """
        parts = read_parts(path)
        added = [
            AddedToken(
                index,
                content,
                content in parts.special,
                **dict.fromkeys(parts.matching.get(content, ()), True),
            )
            for content, index in parts.added.items()
        ]
        known = parts.vocabulary.keys() | parts.added.keys()
        notes = [
            f"{path}: {role} is {token!r}, which the tokenizer does not have; it is left out"
            for role, token in parts.roles.items()
            if token not in known and role in ROLES
        ]
        roles = {role: token for role, token in parts.roles.items() if token in known}
        tokens = {index: token for token, index in (parts.vocabulary | parts.added).items()}
        default = END_OF_TEXT
        if eos_token_id is not None and END_OF_TEXT not in known:
            default = tokens.get(eos_token_id, END_OF_TEXT)
        eos_token = roles.pop("eos_token", default)
        if pad_token_id is not None and tokens.get(pad_token_id) in parts.special:
            roles.setdefault("pad_token", tokens[pad_token_id])
        if eos_token not in known:
            raise InputError(
                f"{path}: no end-of-text token: it has no {END_OF_TEXT} and its configuration "
                "names no eos_token of its vocabulary"
            )
        tokenizer = cls.from_parts(
            parts.vocabulary,
            parts.merges,
            added,
            eos_token,
            roles,
            chat_templates=parts.chat_templates,
            extra_special_tokens=[token for token in parts.extra_special if token in known],
            tokenizer_class=parts.tokenizer_class,
            where=str(path),
        )
        return replace(tokenizer, notes=tuple(notes))

    @classmethod
    def from_parts(
        cls,
        vocabulary: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        added: Iterable[AddedToken] = (),
        eos_token: str = END_OF_TEXT,
        roles: Mapping[str, str] | None = None,
        *,
        chat_templates: Mapping[str, str] | None = None,
        extra_special_tokens: Iterable[str] = (),
        tokenizer_class: str = "CodeGenTokenizer",
        where: str = "tokenizer",
    ) -> Tokenizer:
        """Make a tokenizer from its parts, to which nothing is added.

        Args:
            vocabulary: The id of each token, by its byte-level spelling.
            merges: The pairs of tokens that BPE merges, in order of rank.
            added: The added tokens; they may be in `vocabulary` too.
            eos_token: The token that ends a text.
            roles: Tokens of other roles by key, such as pad_token. Where it has no bos_token or
                unk_token, that is END_OF_TEXT if the tokenizer has it, as in transformers' classes
                for GPT-2 and CodeGen, else the eos token. The pad_token is else the eos token.
            chat_templates: Jinja templates by name.
            extra_special_tokens: Special tokens without a role.
            tokenizer_class: The class of transformers that reads the files.
            where: The beginning of an error's message.

        Raises:
            InputError: The parts do not fit together.
        """
        base = dict(vocabulary)
        by_content = {token.content: token for token in added}
        default = END_OF_TEXT if END_OF_TEXT in base.keys() | by_content.keys() else eos_token
        extra_roles = dict(roles or {})
        bos_token, unk_token = (
            extra_roles.pop(role, default) for role in ("bos_token", "unk_token")
        )
        pad_token = extra_roles.pop("pad_token", eos_token)
        own_roles = {
            "eos_token": eos_token,
            "bos_token": bos_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
        }
        for role, content in (*own_roles.items(), *extra_roles.items()):
            if content in base:
                by_content.setdefault(content, AddedToken(base[content], content, True))
            if content not in by_content:
                name = "end-of-text token" if role == "eos_token" else role
                raise InputError(f"{where}: the {name} {content!r} is not in it")
        for content, token in by_content.items():
            if base.pop(content, token.id) != token.id:
                raise InputError(f"{where}: token {content!r} has two ids, one of them {token.id}")
            # White space is text; a decoder would leave it out if its token were special.
            special = content == eos_token or (
                (token.special or content in own_roles.values()) and bool(content.strip(" \t"))
            )
            by_content[content] = replace(token, special=special)
        tokenizer = cls(
            vocabulary=base,
            merges=tuple(merges),
            added=tuple(sorted(by_content.values(), key=lambda token: token.id)),
            eos_token_id=by_content[eos_token].id,
            bos_token_id=by_content[bos_token].id,
            unk_token_id=by_content[unk_token].id,
            pad_token_id=by_content[pad_token].id,
            chat_templates=dict(chat_templates or {}),
            extra_special_tokens=tuple(extra_special_tokens),
            extra_roles=extra_roles,
            tokenizer_class=tokenizer_class,
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
        return replace(self, added=self.added + runs, has_added_runs=bool(runs))

    def _check(self, where: str) -> None:
        """Raise InputError if ids have gaps, a byte has no token, or a merge makes no token."""
        ids = sorted([*self.vocabulary.values(), *(token.id for token in self.added)])
        for expected_id, actual_id in enumerate(ids):
            if actual_id != expected_id:
                is_twice = actual_id < expected_id
                fault = "given twice" if is_twice else "missing"
                remedy = (
                    "" if is_twice else ", or add an unused token for each such id to its files"
                )
                raise InputError(
                    f"{where}: id {min(actual_id, expected_id)} is {fault}; ids must be 0, 1, 2, … "
                    f"each once; give the right tokenizer with `tokenizer`{remedy}"
                )
        for token in self.vocabulary:
            if not token or not _ALPHABET.issuperset(token):
                raise InputError(f"{where}: token {token!r} is not in GPT-2's byte-level spelling")
        # A token of BPE may be an added token too, such as "!" for padding.
        spellings = self.vocabulary.keys() | {token.content for token in self.added}
        absent = sorted(_ALPHABET - spellings)
        if absent:
            raise InputError(
                f"{where}: {len(absent)} of the 256 single-byte tokens are missing, "
                f"{absent[0]!r} for one; a byte-level BPE has them all"
            )
        for left, right in self.merges:
            for part in (left, right, left + right):
                if part not in spellings:
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
    def eos_token(self) -> str:
        """The text of the token that ends a text."""
        return self.roles["eos_token"]

    @property
    def roles(self) -> dict[str, str]:
        """The text of the tokens with a role: bos_token, eos_token, pad_token and unk_token."""
        texts = {token.id: token.content for token in self.added}
        return {
            "bos_token": texts[self.bos_token_id],
            "eos_token": texts[self.eos_token_id],
            "pad_token": texts[self.pad_token_id],
            "unk_token": texts[self.unk_token_id],
        }

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; no token is added at its start or end.

        Where the text spells an added token, such as <|endoftext|>, it becomes that token.

        Raises InputError if the text is not valid Unicode (it has a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text is not valid Unicode: {error}") from None
        backend = self._backend
        with foreign_call("tokenizer", f"cannot turn the text into ids: {abridged(text)!r}"):
            return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included; unknown ids are left out."""
        backend = self._backend
        with foreign_call("tokenizer", "cannot turn ids into text"):
            return backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        """The tokenizers library's tokenizer, made from tokenizer.json."""
        document = json.dumps(tokenizer_json(self))
        with foreign_call("tokenizer", "the tokenizers library cannot make it from its parts"):
            return tokenizers.Tokenizer.from_str(document)

    def files(self, n_positions: int) -> dict[str, bytes]:
        """Return the contents of TOKENIZER_FILES; the model's context is `n_positions` tokens."""
        return tokenizer_files(self, n_positions)
