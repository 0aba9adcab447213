"""Hostile pickles: those that would run code, and those that take endless time or memory."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.matrix import Case

__all__ = ["PICKLES", "beside", "global_opcode", "replace_pickle", "unicode_opcode", "zip_again"]

FILE = "pytorch_model.bin"


class Payload:
    """Creates a file when it is unpickled; the tests would find that file."""

    def __init__(self, call: Callable[..., object] = os.system, *arguments: object) -> None:
        self.call, self.arguments = call, arguments or ("touch payload-was-run",)

    def __reduce__(self) -> tuple[object, ...]:
        return (self.call, self.arguments)


def zip_again(path: Path, change: Callable[[dict[str, bytes]], object], **options: Any) -> None:
    """Change the members of a torch file or npz and write it again."""
    with zipfile.ZipFile(path) as old:
        members = {i.filename: old.read(i) for i in old.infolist()}
    change(members)
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, data in members.items():
            new.writestr(name, data)


def replace_pickle(raw: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Replace data.pkl in the torch file, with the right CRC."""

    def damage(source: Path) -> None:
        def change(members: dict[str, bytes]) -> None:
            (name,) = (n for n in members if n.endswith("/data.pkl"))
            members[name] = raw(members[name]) if callable(raw) else raw

        zip_again(source / FILE, change)

    return damage


def write_file(raw: bytes) -> Callable[[Path], object]:
    return lambda source: (source / FILE).write_bytes(raw)


def global_opcode(name: bytes) -> bytes:
    """The opcode GLOBAL, which imports `name`, a module and an attribute."""
    return b"c" + name.replace(b" ", b"\n") + b"\n"


def unicode_opcode(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def state_dict_with(value: bytes) -> bytes:
    """A pickled state dict whose only entry is `value`, given as opcodes."""
    return b"\x80\x02}" + unicode_opcode(b"w") + value + b"s."


SYSTEM = b"cos\nsystem\n" + unicode_opcode(b"touch payload-was-run") + b"\x85R"
REBUILD_TENSOR = global_opcode(b"torch._utils _rebuild_tensor_v2") + b"(("


def tensor_view(count: bytes = b"K\x04", offset: bytes = b"K\0", shape: bytes = b"K\4\x85",
         stride: bytes = b"K\1\x85") -> bytes:  # fmt: skip
    """A pickled state dict with one tensor: a view of storage 0, which is larger."""
    storage = (
        unicode_opcode(b"storage")
        + global_opcode(b"torch FloatStorage")
        + unicode_opcode(b"0")
        + unicode_opcode(b"cpu")
        + count
    )
    return state_dict_with(REBUILD_TENSOR + storage + b"tQ" + offset + shape + stride + b"\x89"
                 + global_opcode(b"collections OrderedDict") + b")RtR")  # fmt: skip


def one_tensor(name: bytes, offset: bytes = b"K\0") -> bytes:
    """A dictionary with one tensor of one number, a part of storage 0: opcodes."""
    storage = (
        unicode_opcode(b"storage") + global_opcode(b"torch FloatStorage") + unicode_opcode(b"0")
        + unicode_opcode(b"cpu") + b"K\4"
    )  # fmt: skip
    view = REBUILD_TENSOR + storage + b"tQ" + offset + b"K\1\x85K\1\x85\x89}tR"
    return b"}" + unicode_opcode(name) + view + b"s"


def keyed_by_tuples(depth: int = 60) -> bytes:
    """A key of nested pairs of one object twice: each level doubles the time to hash it."""
    pairs = b"".join(b"h" + bytes([n]) + b"\x86\x94" for n in range(depth))
    return b"\x80\x04})\x94" + pairs + b"K\1s."


def beside(value: bytes) -> bytes:
    """A pickled dictionary in which `value`, as opcodes, stands beside a wrapped state dict."""
    entries = unicode_opcode(b"model") + b"}" + unicode_opcode(b"epoch") + value
    return b"\x80\x02}(" + entries + b"u."


def made_from(function: bytes, cls: bytes = b"torch Tensor") -> bytes:
    """A tensor with attributes, which another function makes: opcodes."""
    arguments = function + global_opcode(cls) + b")}t"
    return global_opcode(b"torch._tensor _rebuild_from_type_v2") + b"(" + arguments + b"R"


NAMESPACE = global_opcode(b"argparse Namespace")
REBUILD_FROM_TYPE = global_opcode(b"torch._tensor _rebuild_from_type_v2")


REFUSED = {
    **{f"protocol {n}": pickle.dumps({"a": Payload()}, protocol=n) for n in range(6)},
    "eval": pickle.dumps({"a": Payload(eval, "open('payload-was-run', 'w')")}, protocol=4),
    "a global alone": state_dict_with(global_opcode(b"os system")),
    "INST": b"(S'touch payload-was-run'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch payload-was-run'\no.",
    "NEWOBJ": state_dict_with(
        global_opcode(b"subprocess Popen") + unicode_opcode(b"touch payload-was-run") + b"\x85\x81"
    ),
    "NEWOBJ_EX": b"\x80\x04" + global_opcode(b"subprocess Popen") + b")}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\1\0\0\0.",
    "BUILD on a name": state_dict_with(global_opcode(b"torch FloatStorage") + b"}b"),
    "an allowed name called": state_dict_with(global_opcode(b"torch FloatStorage") + b")R"),
    "torch.storage._load_from_bytes": state_dict_with(
        global_opcode(b"torch.storage _load_from_bytes") + b")R"
    ),
    "torch.load": state_dict_with(global_opcode(b"torch load") + unicode_opcode(b"x") + b"\x85R"),
    "dotted name": b"\x80\x04" + unicode_opcode(b"torch") + unicode_opcode(b"hub.load") + b"\x93.",
    "getattr": state_dict_with(global_opcode(b"builtins getattr") + b")R"),
    "numpy's reconstruct": state_dict_with(
        global_opcode(b"numpy.core.multiarray _reconstruct") + b")R"
    ),
    "in a namespace": beside(NAMESPACE + b")\x81}" + unicode_opcode(b"a") + SYSTEM + b"sb"),
    "in a set": beside(global_opcode(b"__builtin__ set") + b"]" + SYSTEM + b"a\x85R"),
    "in a newer set": b"\x80\x04\x8f(" + SYSTEM + b"\x90.",
    "in numpy's scalar": beside(
        global_opcode(b"numpy.core.multiarray scalar")
        + global_opcode(b"os system")
        + unicode_opcode(b"touch payload-was-run")
        + b"\x86R"
    ),
    "in a default dictionary": beside(
        global_opcode(b"collections defaultdict") + global_opcode(b"os system") + b"\x85R"
    ),
    "for a key": b"\x80\x02}" + SYSTEM + b"K\1s.",
    "a harmless object called": beside(NAMESPACE + b")\x81)R"),
    "an object of a function": beside(global_opcode(b"collections OrderedDict") + b")\x81"),
    "an object of an object": beside(NAMESPACE + b")\x81)\x81"),
    "an object of a storage": beside(global_opcode(b"torch FloatStorage") + b")\x81"),
    "an object of no tuple": beside(NAMESPACE + b"]\x81"),
    "a state for a number": beside(b"K\1}b"),
    "a tensor of a function": state_dict_with(made_from(global_opcode(b"os system"))),
    "a tensor of a harmless function": state_dict_with(made_from(NAMESPACE)),
    "a tensor of a dictionary": state_dict_with(
        made_from(global_opcode(b"collections OrderedDict"))
    ),
    "a tensor of an unknown class": state_dict_with(
        made_from(global_opcode(b"torch._utils _rebuild_tensor_v2"), b"functorch.dim Tensor")
    ),
    "a tensor of a namespace": state_dict_with(
        made_from(global_opcode(b"torch._utils _rebuild_tensor_v2"), b"argparse Namespace")
    ),
    "tensors of tensors": state_dict_with(
        (REBUILD_FROM_TYPE + b"(") * 2000
        + REBUILD_FROM_TYPE
        + global_opcode(b"torch Tensor")
        + b")}t"
        + (global_opcode(b"torch Tensor") + b")}t") * 1999
        + b"R"
    ),
    "numpy's scalar of nothing": beside(global_opcode(b"numpy.core.multiarray scalar") + b")R"),
    "numpy's string to code": beside(global_opcode(b"numpy.testing._private.utils runstring")),
    "DUP": b"\x80\x02]" + b"2\x86" * 1000 + b".",
    "LONG4": b"\x80\x02\x8b\x10\0\0\0" + bytes(16) + b".",
    "text opcodes": b"(I1\nV\\u0041\nd.",
    "PERSID": b"\x80\x02Pstorage\n.",
    "POP": b"\x80\x02}0}.",
    "a lying frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "a million opcodes": b"\x80\x02" + b"]" * 1_000_000 + b".",
}

DAMAGED = {
    "empty pickle": b"",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".",
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "two on the stack": b"\x80\x02}}.",
    "no mark": b"\x80\x02}u.",
    "an item too many": b"\x80\x02}(K\1u.",
    "a memo that is not there": b"\x80\x02h\7.",
    "a string of 2^63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"x.",
    "tuples as keys": keyed_by_tuples(),
    "not a pickle": b"\0" * 1000,
    "no state dict": pickle.dumps([1, 2], protocol=2),
    "numbers for tensors": pickle.dumps({"a": 1}, protocol=2),
    "a memo index of 2^32": b"\x80\x02}r\xff\xff\xff\xff.",
    "lists in lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "two models": b"\x80\x02}("
    + b"".join(
        unicode_opcode(key) + one_tensor(b"wte.weight", offset)
        for key, offset in ((b"model", b"K\0"), (b"ema", b"K\1"))
    )
    + b"u.",
    "a dictionary in itself": b"\x80\x02}q\0("
    + b"".join(unicode_opcode(b"%d" % n) + b"h\0" for n in range(2000))
    + b"u.",
    "a name of a megabyte": b"\x80\x02}"
    + unicode_opcode(b"a." * (1 << 19))
    + one_tensor(b"w")[1:-1].removeprefix(unicode_opcode(b"w"))
    + b"s.",
    "half a number": beside(
        global_opcode(b"torch._utils _rebuild_tensor_v3")
        + b"(("
        + unicode_opcode(b"storage")
        + global_opcode(b"torch.storage UntypedStorage")
        + unicode_opcode(b"0")
        + unicode_opcode(b"cpu")
        + b"K\3tQK\0K\1\x85K\1\x85\x89}"
        + global_opcode(b"torch float16")
        + b"tR"
    ),
    "a type for a storage": beside(
        b"("
        + unicode_opcode(b"storage")
        + global_opcode(b"torch float16")
        + unicode_opcode(b"0")
        + unicode_opcode(b"cpu")
        + b"K\3tQ"
    ),
    "a size of a list": beside(global_opcode(b"torch Size") + b"]\x85R"),
    "items for a tensor's class": beside(global_opcode(b"torch Tensor") + b"K\1K\1s"),
    "a set's items for a list": b"\x80\x04](K\1\x90.",
    "a storage of 2^62": tensor_view(count=b"\x8a\x08" + struct.pack("<q", 1 << 62)),
    "a storage that is not its size": tensor_view(),
    "a negative offset": tensor_view(offset=b"J\xff\xff\xff\xff"),
    "a truth for a size": tensor_view(shape=b"\x88\x85"),
    "a shape of 2^62": tensor_view(shape=b"\x8a\x08" + struct.pack("<q", 1 << 62) + b"\x85"),
    "a negative shape": tensor_view(shape=b"J\xff\xff\xff\xff\x85"),
    "100,000 dimensions": tensor_view(
        shape=b"(" + b"K\2" * 100_000 + b"t", stride=b"(" + b"K\2" * 100_000 + b"t"
    ),
    "strides for no shape": tensor_view(stride=b")"),
}

QUANTIZED = {
    "quantized tensor": state_dict_with(global_opcode(b"torch._utils _rebuild_qtensor") + b")R"),
    "a tensor of a quantizing library": state_dict_with(
        made_from(global_opcode(b"torch._utils _rebuild_tensor_v2"), b"torchao.dtypes Tensor")
    ),
}

PICKLES: dict[str, Case] = {
    **{
        f"pickle: {name}": Case("torch", replace_pickle(raw), "is quantized .*its pickle", FILE)
        for name, raw in QUANTIZED.items()
    },
    **{
        f"pickle: {name}": Case("torch", replace_pickle(raw), "refused: ", FILE)
        for name, raw in REFUSED.items()
    },
    **{
        f"pickle: {name}": Case("torch", replace_pickle(raw), "pickle|state dict|storage", FILE)
        for name, raw in DAMAGED.items()
    },
    "pickle: a second one behind the first": Case(
        "torch",
        replace_pickle(lambda raw: raw + pickle.dumps(Payload(), protocol=2)),
        "refused: bytes follow the end of its pickle",
        FILE,
    ),
    "pickle: one byte behind": Case(
        "torch", replace_pickle(lambda raw: raw + b"\0"), "refused: bytes follow", FILE
    ),
    "pickle: a payload before the state dict": Case(
        "torch", replace_pickle(lambda raw: raw[:2] + SYSTEM + b"0" + raw[2:]), "refused", FILE
    ),
    "pickle: bare, in torch's old format": Case(
        "torch", write_file(pickle.dumps(Payload(), protocol=2)), "torch's old format", FILE
    ),
    "pickle: bare, of protocol 0": Case(
        "torch", write_file(pickle.dumps(Payload(), protocol=0)), "no zip archive", FILE
    ),
    "pickle: in a 7z archive": Case(
        "torch", write_file(b"7z\xbc\xaf\x27\x1c" + bytes(100)), "no zip archive", FILE
    ),
}
