"""tests/gpu/run.py on the CPU: the script that a machine with a GPU runs works, and can fail."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import cgconvert
from cgconvert.errors import MissingRuntimeError, VerificationError
from cgconvert.runtimes import llamacpp
from tests.gpu.run import ARTEFACTS, ON_A_GPU_ONLY, Row, Run, main, verify
from tests.support.cuda_packages import no_gpu
from tests.support.in_process import open_runtimes_here


def test_converts_and_decodes(tmp_path: Path) -> None:
    stages = ["--stage", "convert", "--stage", "decode"]
    arguments = [
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "table.json"),
    ]
    result = CliRunner().invoke(main, [*arguments, *stages])
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["machine"]["torch"] == torch.__version__
    rows = table["rows"]
    assert {row["result"] for row in rows} == {"passed"}
    converted = {row["what"] for row in rows if row["stage"] == "convert"}
    decoded = {row["what"].split(", ")[0] for row in rows if row["stage"] == "prefill + decode"}
    names = {artefact.name for artefact in ARTEFACTS}
    assert converted == names
    assert decoded == names - ON_A_GPU_ONLY
    assert all("tokens/s" in row["device"] for row in rows if row["stage"] == "prefill + decode")


def test_a_missing_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    result = CliRunner().invoke(main, ["--device", "cuda"])
    assert result.exit_code == 2
    assert "device cuda: torch finds no CUDA device" in result.output


def test_a_missing_runtime_is_no_wrong_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cgconvert.to_gguf("codegen-tiny-mono", tmp_path / "m.gguf", type="Q8_0").path
    run = Run("cpu", tmp_path, time.monotonic() + 600)
    verify(run, {"gguf Q8_0": path})
    assert [(row.result[:8], row.exit_code) for row in run.rows] == [("pass, KL", 0)]
    open_runtimes_here(monkeypatch)
    llamacpp._library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    verify(run, {"gguf Q8_0": path})
    assert "llama-cpp-python is not installed" in run.rows[-1].result
    assert run.exit_code == run.rows[-1].exit_code == 2


def test_the_exit_code_names_the_worst_row(tmp_path: Path) -> None:
    def fails(error: Exception) -> None:
        raise error

    run = Run("cuda", tmp_path, time.monotonic() + 60)
    run.row("convert", "fine", lambda row: None)
    assert run.exit_code == 0
    run.deadline = 0
    run.row("decode", "late", lambda row: None)
    assert run.exit_code == 5
    run.deadline = time.monotonic() + 60
    missing = MissingRuntimeError("onnxruntime", "onnxruntime")
    run.row("verify", "missing", lambda row: fails(missing))
    assert run.exit_code == 2
    run.row("verify", "wrong", lambda row: fails(VerificationError("the logits differ")))
    assert run.exit_code == 4
    assert [row.result for row in run.rows][:2] == ["passed", "not run: the time is over"]
    assert isinstance(run.rows[0], Row)
