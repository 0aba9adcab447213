"""Modules that take long to import, imported when something of them is first used.

torch takes a second, and help, usage errors, `inspect` and plans need nothing of it. Each module
writes `from cgconvert.lazy import torch` and uses it as if it were torch itself.
"""

from __future__ import annotations

import gc
import importlib
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["safetensors_torch", "torch"]


def _lazy_module(name: str) -> Any:
    """Create an object with the attributes of the module `name`, which it imports at first use."""

    class LazyModule:
        __slots__ = ()

        def __getattribute__(self, attribute: str) -> Any:
            module = _import_without_gc(name)
            # Without a frame of Python, every later access takes 20 ns more than the module's own.
            LazyModule.__getattribute__ = staticmethod(partial(getattr, module))  # type: ignore
            return getattr(module, attribute)

    return LazyModule()


def _import_without_gc(name: str) -> ModuleType:
    """Import a module with garbage collection switched off.

    Nothing of torch is garbage before the process ends. Looking for garbage while it loads, and
    once more at the end, takes a fifth of the time of its import.
    """
    if name in sys.modules:  # whole, or just being imported by another thread, which this waits for
        return importlib.import_module(name)
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if is_collecting:
            gc.enable()


if TYPE_CHECKING:
    import safetensors.torch as safetensors_torch
    import torch as torch
else:
    safetensors_torch, torch = _lazy_module("safetensors.torch"), _lazy_module("torch")
