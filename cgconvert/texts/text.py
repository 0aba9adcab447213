"""Texts to calibrate on and to verify with: a user's file, or a part of Python's library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.texts import corpus

__all__ = ["STDLIB", "Text", "read_text"]

STDLIB = "stdlib"
"""Given in place of a path: a part of the running Python's standard library (corpus.py)."""


@dataclass(frozen=True)
class Text:
    """A text in one or more documents.

    Attributes:
        name: The path that was given, or STDLIB.
        documents: The contents.
        sha256: Of the file's bytes; for STDLIB of the names and contents of its files
            (corpus.digest).
    """

    name: str
    documents: tuple[str, ...]
    sha256: str

    def ids(self, tokenizer: Tokenizer, tokens: int | None = None) -> list[int]:
        """The token ids of all documents, with end-of-text between two; the first `tokens` of them.

        Raises InputError where a document is not valid Unicode.
        """
        ids: list[int] = []
        longest = max(len(token) for token in _spellings(tokenizer))
        for document in self.documents:
            if tokens is not None:  # no token is longer: the rest lies beyond the last id
                document = document[: (tokens - len(ids)) * longest]
            ids += [*([tokenizer.end_of_text] if ids else []), *tokenizer.encode(document)]
            if tokens is not None and len(ids) >= tokens:
                return ids[:tokens]
        return ids


def read_text(path: str, part: str = "evaluation") -> Text:
    """Read a text.

    Args:
        path: A file, or STDLIB.
        part: The part of the library, one of corpus.PARTS; files are taken whole.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or is empty.
    """
    if path == STDLIB:
        return Text(STDLIB, tuple(corpus.text(part)), corpus.digest(part))
    try:
        data = Path(path).read_bytes()
        text = data.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a text: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8: byte {error.start} begins no character") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; a text has two tokens at least")
    return Text(path, (text,), hashlib.sha256(data).hexdigest())


def _spellings(tokenizer: Tokenizer) -> Sequence[str]:
    """All tokens as they are spelled, which is never shorter than the text they stand for."""
    return [*tokenizer.vocabulary, *(token.content for token in tokenizer.added)]
