"""Read the value in a torch file's pickle without an unpickler.

A small interpreter executes the opcodes. It knows strings, numbers, containers and the names in
`torch_globals`, and cannot import, call or set anything. It refuses all other opcodes and names.
torch.load(weights_only=True) had holes here: CVE-2025-32434 (torch before 2.6) and
CVE-2026-24747 (before 2.10: SETITEM on other things than dictionaries, sizes of storages).
Format: pickletools; torch/_utils.py (_rebuild_tensor_v2).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

from cgconvert.formats.huggingface.torch_globals import (
    INERT,
    MAX_ARGUMENTS,
    Call,
    InertClass,
    RefusedError,
    View,
    find_global,
    storage,
)
from cgconvert.io.reading import spend, timed_reading

__all__ = ["MAX_BYTES", "parse"]

MAX_BYTES = 8 << 20
"""The pickle of 400 tensors has 60 kB."""
MAX_OPCODES = 1 << 18
COUNTED_OPCODES = 1 << 10
"""Opcodes between two looks at what may still be read."""


def parse(raw: bytes, where: object = "a pickle") -> Any:
    """Read a pickled value: tensors are Views, and values of harmless classes are INERT.

    Raises RefusedError if the pickle names or does anything else, or if bytes follow its end, and
    InputError, which begins with `where`, if there are more opcodes than may be read.
    """
    if len(raw) > MAX_BYTES:
        raise RefusedError(f"its pickle has {len(raw)} bytes, too many for a state dict")
    with timed_reading(where):
        return _Machine(raw, where).run()


_MARK = object()
"""What the opcode MARK pushes: the beginning of the values that a later opcode collects."""


class _Machine:
    """The stack machine of pickle, limited to the opcodes in `_OPCODES`."""

    def __init__(self, raw: bytes, where: object) -> None:
        self.raw, self.where = raw, where
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
            if count % COUNTED_OPCODES == 0:
                spend(f"{self.where}: its pickle", "parts", count)
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
        if len(values) % 2 or (type(table) is not dict and table is not INERT):
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # No other types: hashing a tuple of tuples of the same tuple takes exponential time.
            if type(key) not in (str, int, float, bytes, NoneType) and not _is_inert(key):
                raise ValueError(f"a {type(key).__name__} as a key")
            if type(table) is dict and not _is_inert(key):
                table[key] = value

    def append(self, values: list[Any]) -> None:
        """Append values to the topmost list."""
        if self.stack[-1] is INERT:
            return
        if type(self.stack[-1]) is not list:
            raise ValueError("items for something that is no list")
        self.stack[-1].extend(values)

    def add_items(self, _: Any) -> None:
        """Drop the items of a set."""
        self.pop_mark()
        if self.stack[-1] is not INERT:
            raise ValueError("items for something that is no set")

    def frozen_set(self, _: Any) -> None:
        """Replace the values above the topmost mark by a set, which is not kept."""
        self.pop_mark()
        self.push(INERT)

    def stack_global(self, _: Any) -> None:
        """Replace module and name on the stack by what `find` gives for them."""
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        self.find(f"{module} {name}")

    def find(self, name: str) -> None:
        """Push the stand-in of a global, "module name". Raises RefusedError for unknown ones."""
        self.push(find_global(name))

    def reduce(self, _: Any) -> None:
        """Call the stand-in of a function or class with the tuple of arguments on the stack."""
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(function, Call | InertClass):
            raise RefusedError("refused: its pickle calls something that is not part of a tensor")
        if isinstance(function, InertClass):
            function.check(arguments)
            self.push(INERT)
            return
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"{len(arguments)} arguments")
        self.push(function.build(*arguments))

    def new_object(self, _: Any) -> None:
        """Make an object of a harmless class; its state follows in BUILD."""
        arguments, cls = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(cls, InertClass):
            raise RefusedError("refused: its pickle makes an object of an unknown class")
        cls.check(arguments)
        self.push(INERT)

    def build(self, _: Any) -> None:
        """Drop the attributes of an OrderedDict (torch's _metadata) or of a harmless object."""
        state = self.pop()
        if self.stack[-1] is INERT:
            return
        if type(state) is not dict or type(self.stack[-1]) is not dict:
            raise RefusedError("refused: its pickle sets the state of something that has none")

    def storage(self, _: Any) -> None:
        """Replace torch's persistent id by a Storage."""
        self.push(storage(self.pop()))


def _is_inert(value: Any) -> bool:
    """Whether a value is not kept as a key: an object of a harmless class, its class, a tensor."""
    return value is INERT or isinstance(value, InertClass | View)


def _ignore(machine: _Machine, argument: Any) -> None:
    """Execute an opcode that changes nothing here."""
    return


def _push_argument(machine: _Machine, argument: Any) -> None:
    """Execute an opcode that pushes its argument."""
    machine.push(argument)


def _push_inert(machine: _Machine, argument: Any) -> None:
    """Execute an opcode that pushes a value that is not kept."""
    machine.push(INERT)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
         "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        _push_argument,
    ),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8", "EMPTY_SET"), _push_inert),
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
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}  # fmt: skip
