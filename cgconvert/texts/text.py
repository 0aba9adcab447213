"""A text that someone brings, or a part of Python's own standard library."""

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
"""Stands for a part of the running Python's standard library (see corpus.py)."""


@dataclass(frozen=True)
class Text:
    """A text in one or more documents.

    `sha256` is that of the file's bytes; for STDLIB that of the names and contents of the files
    (corpus.digest).
    """

    name: str
    documents: tuple[str, ...]
    sha256: str

    def ids(self, tokenizer: Tokenizer, tokens: int | None = None) -> list[int]:
        """The documents' ids with an end-of-text between two; no more than `tokens`."""
        found: list[int] = []
        longest = max(len(token) for token in _contents(tokenizer))
        for document in self.documents:
            if tokens is not None:  # no token is longer, so what is left out is beyond the last
                document = document[: (tokens - len(found)) * longest]
            found += [*([tokenizer.end_of_text] if found else []), *tokenizer.encode(document)]
            if tokens is not None and len(found) >= tokens:
                return found[:tokens]
        return found


def read_text(given: str, part: str = "evaluation") -> Text:
    """The file at a path, or STDLIB, of which `part` is taken (corpus.PARTS).

    Raises InputError where it is no file, not UTF-8 or empty.
    """
    if given == STDLIB:
        return Text(STDLIB, tuple(corpus.text(part)), corpus.digest(part))
    try:
        data = Path(given).read_bytes()
        text = data.decode()
    except OSError as error:
        raise InputError(f"{given}: cannot be read as a text: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{given}: is not UTF-8: byte {error.start} begins no character") from None
    if not text.strip():
        raise InputError(f"{given}: is empty; a text has two tokens at least")
    return Text(given, (text,), hashlib.sha256(data).hexdigest())


def _contents(tokenizer: Tokenizer) -> Sequence[str]:
    return [*tokenizer.vocabulary, *(token.content for token in tokenizer.added)]
