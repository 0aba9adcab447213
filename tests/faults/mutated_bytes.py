"""Random changes of bytes, mostly where headers are; the start of all mutations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["NUMBERS", "Choose", "mutated_bytes", "pick"]

Choose = Callable[[int, int], int]
"""Returns a number between two bounds, from a random generator or from hypothesis."""

NUMBERS = (0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
TEXTS = (b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"true", b"9" * 40, b"..", b"/",
         b"\\ud800", b"\0", b"\xff", b'"', b"[" * 2000, b"{" * 2000, b"\x1b[2J")  # fmt: skip


T = TypeVar("T")


def pick(choose: Choose, values: Sequence[T]) -> T:
    """Return one of the values."""
    return values[choose(0, len(values) - 1)]


def mutated_bytes(raw: bytes, choose: Choose, head: int = 1 << 16) -> bytes:
    """Change up to four places, mostly near the start or the end, where headers are."""
    data = bytearray(raw)
    for _ in range(choose(1, 4)):
        zone = min(len(data), pick(choose, (64, 1024, head)))
        place = choose(0, max(0, zone - 1))
        if choose(0, 3) == 0:
            place = max(0, len(data) - 1 - place)
        kind = choose(0, 8)
        if kind == 0:
            data[place : place + 1] = bytes([choose(0, 255)])
        elif kind == 1:
            data[place : place + 1] = bytes([data[place] ^ 1 << choose(0, 7)]) if data else b""
        elif kind in (2, 3):
            number, width = pick(choose, NUMBERS), pick(choose, (1, 2, 4, 8))
            data[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 4:
            data[place:place] = pick(choose, TEXTS)
        elif kind == 5:
            del data[place : place + choose(1, 40)]
        elif kind == 6:
            copied_from = choose(0, max(0, zone - 1))
            data[place:place] = data[copied_from : copied_from + choose(1, 200)]
        elif kind == 7:
            del data[place:]
        else:
            digits = [i for i in range(place, min(place + 400, len(data))) if 48 <= data[i] < 58]
            if digits:
                data[digits[0] : digits[0] + 1] = str(pick(choose, NUMBERS)).encode()
    return bytes(data)
