"""Convert Salesforce CodeGen checkpoints to safetensors, ONNX and GGUF, and prove the result.

    >>> import cgconvert
    >>> result = cgconvert.to_gguf("codegen-tiny-mono", type="Q8_0")
    >>> verification = cgconvert.verify(result)
    >>> verification.passed
    True
    >>> text = cgconvert.generate(result, "def hello_world():", max_new_tokens=16)

Everything is imported when it is first used: `import cgconvert` alone brings neither torch nor
any runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cgconvert.errors import (
    CgconvertError,
    InputError,
    MissingRuntimeError,
    OutputError,
    UsageError,
    VerificationError,
)
from cgconvert.version import __version__

if TYPE_CHECKING:
    from cgconvert.api.caching import CacheItem, cached
    from cgconvert.api.cleaning import Leftover, clean
    from cgconvert.api.conversions import convert, plan, to_gguf, to_hf, to_onnx
    from cgconvert.api.execution import Result, execute
    from cgconvert.api.generation import generate, stream_generate
    from cgconvert.api.quantization import quantize
    from cgconvert.api.sources import inspect, load
    from cgconvert.api.verification import Verification, verify

__all__ = [
    "CacheItem",
    "CgconvertError",
    "InputError",
    "Leftover",
    "MissingRuntimeError",
    "OutputError",
    "Result",
    "UsageError",
    "Verification",
    "VerificationError",
    "__version__",
    "cached",
    "clean",
    "convert",
    "execute",
    "generate",
    "inspect",
    "load",
    "plan",
    "quantize",
    "stream_generate",
    "to_gguf",
    "to_hf",
    "to_onnx",
    "verify",
]

_MODULES = {
    "caching": ("CacheItem", "cached"),
    "cleaning": ("Leftover", "clean"),
    "conversions": ("convert", "plan", "to_gguf", "to_hf", "to_onnx"),
    "execution": ("Result", "execute"),
    "generation": ("generate", "stream_generate"),
    "quantization": ("quantize",),
    "sources": ("inspect", "load"),
    "verification": ("Verification", "verify"),
}
"""Modules of `cgconvert.api` and the names that are public here."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"cgconvert.api.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
