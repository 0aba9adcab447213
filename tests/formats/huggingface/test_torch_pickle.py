"""The interpreter of pickles knows a short list of names, and refuses all others."""

from __future__ import annotations

import pickle

import pytest
import torch

from cgconvert.formats.huggingface.torch_globals import INERT, RefusedError
from cgconvert.formats.huggingface.torch_pickle import parse
from tests.faults.cases_pickle import beside, global_opcode, unicode_opcode

DANGEROUS = (
    "builtins eval", "builtins exec", "builtins __import__", "builtins getattr", "builtins map",
    "builtins open", "builtins type", "builtins compile", "__builtin__ apply", "__builtin__ eval",
    "functools partial", "functools reduce", "operator attrgetter", "operator methodcaller",
    "runpy run_path", "importlib import_module", "copyreg _reconstructor", "copyreg __newobj__",
    "copy_reg _reconstructor", "os system", "posix system", "nt system", "subprocess Popen",
    "socket socket", "sys modules", "pty spawn", "ctypes CDLL", "pickle loads", "_pickle loads",
    "torch hub", "torch load", "torch save", "torch.serialization load", "torch.jit load",
    "torch.storage _load_from_bytes", "torch.hub load", "torch._dynamo optimize", "torch ops",
    "argparse ArgumentParser", "types FunctionType", "types CodeType", "collections namedtuple",
    "pathlib Path.touch", "_codecs open", "_codecs decode", "numpy load", "datetime sys",
    "numpy.core.multiarray fromfile", "numpy.testing._private.utils runstring", "__main__ Config",
    "transformers.training_args os", "typing sys", "argparse os.system", "argparse Namespace.x",
)  # fmt: skip


@pytest.mark.parametrize("opcodes", [b")R", b")\x81", b"}b", b""])
@pytest.mark.parametrize("name", DANGEROUS)
def test_other_names_are_refused_with_the_name(name: str, opcodes: bytes) -> None:
    with pytest.raises(RefusedError, match=name.replace(" ", r"\.")):
        parse(beside(global_opcode(name.encode()) + opcodes))
    module, _, attribute = name.partition(" ")
    names = unicode_opcode(module.encode()) + unicode_opcode(attribute.encode())
    with pytest.raises(RefusedError, match=name.replace(" ", r"\.")):
        parse(b"\x80\x04" + names + b"\x93" + opcodes + b".")


def test_values_of_harmless_classes_are_not_kept() -> None:
    value = parse(pickle.dumps({"size": torch.Size([1, 2]), "device": torch.device("cpu")}, 2))
    assert value == {"size": (1, 2), "device": INERT}
