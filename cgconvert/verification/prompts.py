"""The texts that an artefact is fed: the built-in prompts, and windows of the user's texts.

The prompts are of several lengths and kinds; most are short, and one is long enough to fill a good
part of a context. All were written for this purpose, so none quotes a training text. The texts for
the tokenizers are those that break byte-pair tokenizers and CodeGen's white-space runs in practice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from cgconvert.errors import InputError
from cgconvert.texts import corpus
from cgconvert.texts.text import Text

if TYPE_CHECKING:
    from cgconvert.model.tokenizer import Tokenizer

__all__ = ["PROMPTS", "SHORT_TEXTS", "TEXT_TOKENS", "texts_sha256", "tokenizer_texts", "windows"]

TEXT_TOKENS = 4096
"""How many tokens of each of the user's texts are used by default."""

WINDOW_TOKENS = 512
"""Tokens of a text in one sequence, as in llama.cpp's tools/perplexity."""

_LONG_PROMPT = '''"""Keep the books of a small library: who has which copy, and since when."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

LOAN_DAYS = 28
FINE_PER_DAY = 0.25


class NotOnShelf(LookupError):
    """Raised where a copy is asked for that somebody else has."""


@dataclass
class Loan:
    reader: str
    since: date

    def due(self) -> date:
        return self.since + timedelta(days=LOAN_DAYS)

    def fine(self, today: date) -> float:
        late = (today - self.due()).days
        return max(0, late) * FINE_PER_DAY


@dataclass
class Shelf:
    copies: dict[str, int] = field(default_factory=dict)
    loans: dict[str, list[Loan]] = field(default_factory=lambda: defaultdict(list))

    def add(self, title: str, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"{count} copies of {title!r}")
        self.copies[title] = self.copies.get(title, 0) + count

    def lend(self, title: str, reader: str, today: date) -> Loan:
        if len(self.loans[title]) >= self.copies.get(title, 0):
            raise NotOnShelf(title)
        loan = Loan(reader, today)
        self.loans[title].append(loan)
        return loan

    def take_back(self, title: str, reader: str, today: date) -> float:
        for loan in self.loans[title]:
            if loan.reader == reader:
                self.loans[title].remove(loan)
                return loan.fine(today)
        raise KeyError(reader)

    def overdue(self, today: date) -> list[tuple[str, Loan]]:
        return sorted(
            ((title, loan) for title, loans in self.loans.items() for loan in loans
             if loan.due() < today),
            key=lambda pair: pair[1].since,
        )


def read_shelf(path: Path) -> Shelf:
    shelf = Shelf()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            shelf.add(row["title"], int(row["copies"]))
    return shelf


def write_report(shelf: Shelf, path: Path, today: date) -> None:
    report = [
        {"title": title, "reader": loan.reader, "fine": loan.fine(today)}
        for title, loan in shelf.overdue(today)
    ]
    path.write_text(json.dumps(report, indent=2) + "\\n", encoding="utf-8")


if __name__ == "__main__":
'''

PROMPTS: tuple[str, ...] = (
    "import",
    "def hello_world():\n",
    'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "# Read a table of numbers and print the mean of every column.\nimport csv\nimport sys\n\n"
    "with open(sys.argv[1]) as file:\n"
    "    rows = [list(map(float, row)) for row in csv.reader(file)]",
    "for row in range(8):\n\tfor column in range(8):\n"
    "\t\tif board[row][column]:\n\t\t\tcontinue\n\t\t",
    "table = {\n    'name':        'value',\n    'longer_name': 'another value',\n"
    "                   # far to the right\n}\n\n\n\n",
    "# Grüße aus Köln: π ≈ 3.14159, 数学は楽しい, Привет, \U0001f469\u200d\U0001f4bb\n"
    "def área(radius):\n    return ",
    "try:\n    value = int(text)\nexcept ValueError as error:\n"
    "    raise SystemExit(f'{text!r}: {error}')\nelse:\n"
    "    while value % 2 == 0 and value > 0:\n        value //= 2\n",
    _LONG_PROMPT,
)

_DIFFICULT_TEXTS: tuple[str, ...] = (
    "def hello(x):\n        return x + 1\n\t\tfoo",
    "".join(" " * run + "x" for run in range(1, 70)),
    "".join("\t" * run + "x" for run in range(1, 24)),
    "\n\n\n    \n\t\n \t \n  \t\t  \r\n\r\rend   ",
    "   leading and trailing   ",
    "It's we'll I'd you've they're I'M 'tis don't 1234567890 3.14e-10 0x_ff __init__ a_b-c!=d",
    "ä ö ü ß é è ñ ŁóÅ\u00a0nbsp\u200bzero\u2003em\u3000wide \u0301combining",
    "日本語のコメント 한국어 العربية हिन्दी ไทย Ελληνικά Кириллица",
    "\U0001f469\u200d\U0001f4bb \U0001f3f3\ufe0f\u200d\U0001f308 👍🏽 🇩🇪 \U0001f9ff \U00010348",
    "²³¹ ½ Ⅷ ٣٤ ①",
    "one<|endoftext|>two<|endoftext|>\n<|endoftext|>",
    "<|endofprompt|> <s> </s> [INST] <unk> <pad> <0x0A>",
    "\x01\x7f\x1b[0m",
)

SHORT_TEXTS = (*_DIFFICULT_TEXTS, *PROMPTS)
"""The texts on which a quick verification compares tokenizers."""

EVALUATION_BYTES = 40_000
"""Bytes of the standard library's evaluation part on which the tokenizers are compared."""


def windows(text: Text, tokenizer: Tokenizer, tokens: int, context: int) -> list[list[int]]:
    """Cut the first `tokens` ids of a text into windows of min(WINDOW_TOKENS, context) ids.

    A single id left at the end is dropped, because it predicts nothing. Raises InputError if no
    window remains.
    """
    ids = text.ids(tokenizer, tokens)
    size = min(WINDOW_TOKENS, context)
    pieces = [ids[first : first + size] for first in range(0, len(ids), size)]
    id_windows = [piece for piece in pieces if len(piece) > 1]
    if not id_windows:
        raise InputError(f"{text.name}: too short to measure on; two tokens are the least")
    return id_windows


@cache
def tokenizer_texts() -> tuple[str, ...]:
    """The texts on which tokenizers are compared: difficult ones, the prompts, and Python files.

    The files are from the evaluation part of the standard library.
    """
    return (*SHORT_TEXTS, *corpus.text("evaluation", EVALUATION_BYTES))


def texts_sha256(texts: Sequence[str]) -> str:
    """Identify a sequence of texts in a report by one SHA-256, in hexadecimal.

    Each text is preceded by its UTF-8 byte length as 8 bytes, little-endian, so that the same
    characters cut into other texts have another digest.
    """
    hasher = hashlib.sha256()
    for text in texts:
        data = text.encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()
