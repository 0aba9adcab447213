"""Texts to calibrate on and to verify with: a user's file, or a part of Python's library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cgconvert.errors import InputError
from cgconvert.io.followed_links import note_user_path
from cgconvert.io.reading import read_bytes
from cgconvert.io.stand_ins import refuse_pointer
from cgconvert.texts import corpus

if TYPE_CHECKING:
    from cgconvert.model.tokenizer import Tokenizer

__all__ = ["STDLIB", "Text", "read_text"]

MAX_BYTES = 64 << 20
"""The largest text: far more than calibration or verification uses of one."""

MAX_ENCODED_BYTES = 1 << 20
"""The bytes of a text that are turned into ids: 300,000 tokens of code. The tokenizer takes up to
400 bytes of memory and a microsecond for each."""

STDLIB = "stdlib"
"""Used in place of a path: it stands for a part of the running Python's standard library
(corpus.py)."""


@dataclass(frozen=True)
class Text:
    """A text in one or more documents.

    Attributes:
        name: The path of the file, or STDLIB.
        documents: The contents. A file is one document; each module of STDLIB is one.
        sha256: SHA-256 (hex) of the file; for STDLIB, of the names and contents of its modules
            (corpus.digest).
    """

    name: str
    documents: tuple[str, ...]
    sha256: str

    def ids(self, tokenizer: Tokenizer, tokens: int | None = None) -> list[int]:
        """Return the token ids of all documents, with an end-of-text token between two documents.

        With `tokens`, return only so many ids, the first. Of a document only the first
        MAX_ENCODED_BYTES count, or 16 for each of `tokens` if these are more.

        Raises InputError if a document is not valid Unicode.
        """
        ids: list[int] = []
        longest_token = max(len(spelling) for spelling in _spellings(tokenizer))
        most = max(MAX_ENCODED_BYTES, 16 * (tokens or 0))
        for text in self.documents:
            document = _beginning(text, most)
            if tokens is not None:
                # Text behind this point cannot be reached: no token is longer.
                document = document[: (tokens - len(ids)) * longest_token]
            ids += [*([tokenizer.eos_token_id] if ids else []), *tokenizer.encode(document)]
            if tokens is not None and len(ids) >= tokens:
                return ids[:tokens]
        return ids


def read_text(path: str, part: str = "evaluation") -> Text:
    """Read a text.

    Args:
        path: A file, or STDLIB.
        part: The part of the standard library, one of corpus.PARTS; of no effect for a file.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or has only white space.
    """
    if path == STDLIB:
        return Text(STDLIB, tuple(corpus.text(part)), corpus.digest(part))
    note_user_path(Path(path))
    data = read_bytes(Path(path), MAX_BYTES, " as a text", kind="a text")
    refuse_pointer(Path(path), data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8: byte {error.start} begins no character") from None
    if not text or text.isspace():
        raise InputError(f"{path}: is empty; a text has two tokens at least")
    return Text(path, (text,), hashlib.sha256(data).hexdigest())


def _beginning(text: str, most: int) -> str:
    """The first `most` bytes of a text, as UTF-8, without a part of a character at the end."""
    if 4 * len(text) <= most or len(text.encode(errors="surrogatepass")) <= most:
        return text
    return text[:most].encode(errors="surrogatepass")[:most].decode(errors="ignore")


def _spellings(tokenizer: Tokenizer) -> Sequence[str]:
    """The spelling of each token; it has at least as many characters as the text it stands for."""
    return [*tokenizer.vocabulary, *(token.content for token in tokenizer.added)]
