"""tests/gpu/run.py on the CPU: the script that a machine with a GPU runs works, and can fail."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cgconvert.errors import MissingRuntimeError, VerificationError
from tests.gpu.run import ARTEFACTS, ON_A_GPU_ONLY, Row, Run, main
from tests.support.cuda_packages import no_gpu


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
    assert converted == set(ARTEFACTS)
    assert decoded == set(ARTEFACTS) - set(ON_A_GPU_ONLY)
    assert all("tokens/s" in row["device"] for row in rows if row["stage"] == "prefill + decode")


def test_a_missing_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    result = CliRunner().invoke(main, ["--device", "cuda"])
    assert result.exit_code == 2
    assert "device cuda: torch finds no CUDA device" in result.output


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
