"""`import cgconvert`: nothing heavy is imported, and the public names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cgconvert
from cgconvert import errors

HEAVY = (
    "torch", "numpy", "transformers", "onnx", "onnxruntime", "gguf", "huggingface_hub", "click",
    "tqdm",
)  # fmt: skip


def run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def test_the_import_alone_brings_nothing_heavy() -> None:
    code = f"import sys, cgconvert; print(sorted(set(sys.modules) & set({HEAVY})))"
    assert run(code) == "[]"
    load = "import sys, cgconvert; model = cgconvert.load('codegen-tiny-mono')"
    assert "torch" not in run(f"{load}; print(*sys.modules)").split()
    assert "torch" in run(f"{load}; model.decoder.head.read(); print(*sys.modules)").split()


def test_verify_is_the_function_whatever_was_imported_before() -> None:
    for before in ("", "import cgconvert.verification.checks; ", "cgconvert.quantize; "):
        assert run(f"import cgconvert; {before}print(cgconvert.verify.__name__)") == "verify"
    assert run("from cgconvert import verify; print(callable(verify))") == "True"


def test_the_package_has_the_documented_public_names() -> None:
    assert set(dir(cgconvert)) == set(cgconvert.__all__)
    for name in cgconvert.__all__:
        assert getattr(cgconvert, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'to_npy'"):
        _ = cgconvert.to_npy


def test_codes_of_errors_are_stable() -> None:
    codes = {
        name: (error.code, error.exit_code)
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.CgconvertError)
    }
    assert codes == {
        "CgconvertError": ("error", 1),
        "UsageError": ("usage", 2),
        "MissingRuntimeError": ("missing-runtime", 2),
        "InputError": ("input", 3),
        "RuntimeEndedError": ("runtime-ended", 3),
        "VerificationError": ("verification", 4),
        "OutputError": ("output", 5),
    }
