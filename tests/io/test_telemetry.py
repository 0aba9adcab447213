"""What libraries are told before they are imported: no telemetry, no network, no home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgconvert.io.telemetry import NO_TELEMETRY, forbid_telemetry, private_environment
from tests.support.command_runs import ROOT

SCRIPT = """
import sys
from cgconvert.runtimes.packages import import_package

for module, package in (
    ("onnxruntime", "onnxruntime"), ("onnxruntime_genai", "onnxruntime-genai"),
    ("llama_cpp", "llama-cpp-python"), ("transformers", "transformers"),
):
    import_package(module, package, {"onnxruntime_genai": "genai", "llama_cpp": "llamacpp"}.get(
        module, module))
"""


def test_a_package_of_a_runtime_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    """Also where a runtime is opened in the process of the one who calls its class."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in NO_TELEMETRY and not name.startswith("XDG_")
    }
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_private_environment_has_no_home_no_network_and_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/somebody/.cache")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    variables = private_environment()
    assert "HF_TOKEN" not in variables
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["HF_HUB_OFFLINE"] == variables["ORT_DISABLE_TELEMETRY"] == "1"
    home = Path(variables["HOME"])
    assert home.is_dir()
    assert Path(variables["XDG_CACHE_HOME"]) == home
    if sys.platform == "linux":
        with pytest.raises(FileNotFoundError):
            (home / "file").write_text("text", encoding="utf-8")


def test_telemetry_is_forbidden_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_TELEMETRY:
        monkeypatch.setenv(name, "0")
    forbid_telemetry()
    assert {os.environ[name] for name in NO_TELEMETRY} == {"1"}
