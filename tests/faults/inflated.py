"""Valid inputs with one part repeated until it is megabytes long: what costs much to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.faults.mutated_bytes import Choose, pick

__all__ = ["inflated_bytes", "inflated_json"]

SIZES = (100_000, 1_000_000, 8_000_000, 30_000_000, 47_000_000)
"""Bytes to add; 48 MiB is the largest file that is read as a whole."""

PARTS: tuple[Callable[[int], str], ...] = (
    lambda n: '"' + "a" * n + '"',
    lambda n: '"' + "a " * (n // 2) + '"',
    lambda n: '"' + "\\u00e9" * (n // 6) + '"',
    lambda n: '"' + "<|endoftext|>" * (n // 13) + '"',
    lambda n: "9" * n,
    lambda n: "0." + "3" * n,
    lambda n: "1e" + "9" * min(n, 100_000),
    lambda n: "[" + "0," * (n // 2) + "0]",
    lambda n: "[" + "[]," * (n // 3) + "0]",
    lambda n: "[" + '{"a":[]},' * (n // 9) + "0]",
    lambda n: "[" * n + "]" * n,
    lambda n: '{"a":' * (n // 6) + "0" + "}" * (n // 6),
    lambda n: "{" + ",".join(f'"{i}":{i}' for i in range(n // 16)) + "}",
    lambda n: "{" + ",".join(f'"{i}":"x{i}.safetensors"' for i in range(n // 30)) + "}",
    lambda n: "[" + ",".join(f'"a{i} b"' for i in range(n // 12)) + "]",
    lambda n: "[" + ",".join(f'["a{i}","b"]' for i in range(n // 16)) + "]",
    lambda n: " " * n + "0",
)
"""Values of about `n` bytes, in JSON."""


def inflated_json(raw: bytes, choose: Choose) -> bytes:
    """Give one entry of an object or list a huge value, or repeat it under many names."""
    document: Any = json.loads(raw)
    parent: Any = document
    while (children := _containers(parent)) and choose(0, 1):
        parent = pick(choose, children)
    size, mark = pick(choose, SIZES), '"\x7f"'
    if isinstance(parent, dict):
        name = pick(choose, tuple(parent) or ("x",))
        entry, parent[name] = json.dumps(parent.get(name)), "\x7f"
        repeated = ",".join(f'"{name}{i}":{entry}' for i in range(size // (len(entry) + 12)))
        if choose(0, 2) == 0 and repeated:
            inside = json.dumps(document, ensure_ascii=False)
            return inside.replace(mark, f"{entry},{repeated}", 1).encode()
    elif isinstance(parent, list):
        index = choose(0, len(parent) - 1)
        entry, parent[index] = json.dumps(parent[index]), "\x7f"
        if choose(0, 1):
            repeated = ",".join([entry] * max(1, size // (len(entry) + 1)))
            return json.dumps(document, ensure_ascii=False).replace(mark, repeated, 1).encode()
    else:
        document = "\x7f"
    value = pick(choose, PARTS)(size)
    return json.dumps(document, ensure_ascii=False).replace(mark, value, 1).encode()


def inflated_bytes(raw: bytes, choose: Choose) -> bytes:
    """Repeat a piece of the input."""
    start = choose(0, max(0, len(raw) - 1))
    piece = raw[start : start + pick(choose, (1, 2, 10, 100, 1000))] or b"x"
    return raw[:start] + piece * (pick(choose, SIZES) // len(piece)) + raw[start:]


def _containers(value: Any) -> list[Any]:
    entries = value.values() if isinstance(value, dict) else value
    return [entry for entry in entries if isinstance(entry, dict | list) and entry]
