"""Read the state dict in a torch file's pickle without an unpickler.

A small interpreter executes the opcodes. It knows strings, numbers, containers and the few names
that describe tensors, and cannot import, call or set anything. It refuses all other opcodes and
names. torch.load(weights_only=True) had holes here: CVE-2025-32434 (torch before 2.6) and
CVE-2026-24747 (before 2.10: SETITEM on other things than dictionaries, sizes of storages).
Format: pickletools; torch/_utils.py (_rebuild_tensor_v2).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MAX_BYTES", "RefusedError", "Storage", "View", "views"]

MAX_BYTES = 8 << 20
"""The pickle of 400 tensors has 60 kB."""
MAX_OPCODES = 1 << 18
MAX_DIMENSIONS = 8
MAX_ARGUMENTS = 8
MAX_ELEMENTS = 1 << 48

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class RefusedError(Exception):
    """The pickle is not that of a state dict; the message gives the reason, not the file's name."""


@dataclass(frozen=True)
class Storage:
    """The numbers in one archive member: `count` of type `dtype`. `key` is the member's name."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def views(raw: bytes) -> dict[str, View]:
    """Read the tensors of a pickled state dict, or of the one under its key "state_dict".

    Raises RefusedError if the pickle is anything else, or if bytes follow its end.
    """
    if len(raw) > MAX_BYTES:
        raise RefusedError(f"its pickle has {len(raw)} bytes, too many for a state dict")
    value = _Machine(raw).run()
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise RefusedError("is not a state dict")
    for name, view in value.items():
        if not isinstance(name, str) or not isinstance(view, View):
            label = name[:80] if isinstance(name, str) else type(name).__name__
            raise RefusedError(f"entry {label!r} of its state dict is not a tensor")
    return value


_MARK = object()
"""What the opcode MARK pushes: the beginning of the values that a later opcode collects."""


class _Machine:
    """The stack machine of pickle, limited to the opcodes in `_OPCODES`."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the pickle and return the value on the stack at STOP. Raises RefusedError."""
        try:
            for name, argument, position in self.opcodes():
                if name == "STOP":
                    if position != len(self.raw) - 1:
                        raise RefusedError("refused: bytes follow the end of its pickle")
                    (value,) = self.stack
                    return value
                _OPCODES[name](self, argument)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise RefusedError(f"its pickle is damaged: {error}") from error
        raise RefusedError("its pickle does not end")

    def opcodes(self) -> Iterator[tuple[str, Any, int]]:
        """Yield name, argument and byte position of each opcode; raises RefusedError at others."""
        for count, (opcode, argument, offset) in enumerate(pickletools.genops(self.raw)):
            position = offset or 0
            if count >= MAX_OPCODES:
                raise RefusedError(f"refused: its pickle has more than {MAX_OPCODES} opcodes")
            if opcode.name == "FRAME" and int(argument or 0) > len(self.raw) - position - 9:
                raise RefusedError("refused: a frame of its pickle reaches beyond its end")
            if opcode.name != "STOP" and opcode.name not in _OPCODES:
                raise RefusedError(
                    f"refused: its pickle uses {opcode.name}, which no state dict needs"
                )
            yield opcode.name, argument, position

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def pop_mark(self) -> list[Any]:
        """Pop the values above the topmost mark, and the mark."""
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark")
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def tuple_of(self, count: int) -> None:
        """Replace the topmost `count` values by a tuple of them."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def put(self, index: int | None) -> None:
        """Store the topmost value in the memo, at the next free index if `index` is None."""
        value = self.pop()
        self.memo[len(self.memo) if index is None else index] = value
        self.push(value)

    def set_items(self, values: list[Any]) -> None:
        """Set keys and values, which alternate in `values`, in the topmost dictionary."""
        table = self.stack[-1]
        if type(table) is not dict or len(values) % 2:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # No other types: hashing a tuple of tuples of the same tuple takes exponential time.
            if type(key) not in (str, int):
                raise ValueError(f"a {type(key).__name__} as a key")
            table[key] = value

    def append(self, values: list[Any]) -> None:
        """Append values to the topmost list."""
        if type(self.stack[-1]) is not list:
            raise ValueError("items for something that is no list")
        self.stack[-1].extend(values)

    def stack_global(self, _: Any) -> None:
        """Replace module and name on the stack by what `find` gives for them."""
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        self.find(f"{module} {name}")

    def find(self, name: str) -> None:
        """Push the stand-in of a global, "module name". Raises RefusedError for unknown ones."""
        if name not in _GLOBALS:
            raise RefusedError(
                f"refused: its pickle asks for {name.replace(' ', '.')[:200]}, "
                "which is not part of a tensor"
            )
        self.push(_GLOBALS[name])

    def reduce(self, _: Any) -> None:
        """Call the stand-in of a function with the tuple of arguments on the stack."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Rebuild) or type(arguments) is not tuple:
            raise RefusedError("refused: its pickle calls something that is not part of a tensor")
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"{len(arguments)} arguments")
        self.push(function.build(*arguments))

    def build(self, _: Any) -> None:
        """Drop the attributes of an OrderedDict (torch's _metadata), which are not needed."""
        state = self.pop()
        if type(state) is not dict or type(self.stack[-1]) is not dict:
            raise RefusedError("refused: its pickle sets the state of something that has none")

    def storage(self, _: Any) -> None:
        """Replace torch's persistent id ("storage", type, key, device, count) by a Storage."""
        pid = self.pop()
        if (
            type(pid) is not tuple
            or len(pid) != 5
            or pid[0] != "storage"
            or not isinstance(pid[1], torch.dtype)
            or not isinstance(pid[2], str)
            or type(pid[4]) is not int
            or not 0 <= pid[4] < MAX_ELEMENTS
        ):
            raise ValueError("a storage described in an unknown way")
        self.push(Storage(pid[2], pid[1], pid[4]))


@dataclass(frozen=True)
class _Rebuild:
    """The stand-in for a function that a state dict names: `build` is called instead of it."""

    build: Callable[..., Any]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View:
    """Stand in for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in (offset, *shape, *stride)):
        raise ValueError("a tensor of an impossible shape")
    return View(storage, offset, shape, stride)


def _ordered_dict(*arguments: Any) -> dict[str, Any]:
    """Stand in for OrderedDict without arguments; its items are set by later opcodes."""
    if arguments:
        raise ValueError("a dictionary made of something")
    return {}


_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": _Rebuild(_ordered_dict),
    "torch._utils _rebuild_tensor_v2": _Rebuild(_tensor),
    "torch._utils _rebuild_parameter": _Rebuild(lambda data, *_: data),
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}


def _ignore(machine: _Machine, argument: Any) -> None:
    """Execute an opcode that changes nothing here."""
    return


def _push_argument(machine: _Machine, argument: Any) -> None:
    """Execute an opcode that pushes its argument."""
    machine.push(argument)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
         "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        _push_argument,
    ),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.push(_MARK),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}  # fmt: skip
