"""A format is one module and one line: tests/formats/npy.py converts, reads, shows and verifies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cgconvert
from cgconvert import embedded
from cgconvert.cli.main import cli
from cgconvert.errors import UsageError
from cgconvert.formats.read import read
from cgconvert.formats.registry import FORMATS
from cgconvert.runtimes import RUNTIMES, open_runtime
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.weights import check_weights


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The format's line and its runtime's; nothing else knows of them."""
    monkeypatch.setitem(FORMATS, "npy", "tests.formats.npy:Npy")
    monkeypatch.setitem(RUNTIMES, "npy", {"torch": "tests.formats.npy:TorchRuntime"})
    monkeypatch.chdir(tmp_path)


def command(*arguments: str) -> str:
    """Run a command of the command line; it has to succeed."""
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_format_of_one_module_converts_and_reads_back() -> None:
    written = command("to-npy", embedded.NAME, "--suffix", "arrays")
    folder = Path("out") / embedded.NAME / "arrays"
    assert written.startswith(f"{folder}  npy float32, ")
    assert json.loads((folder / "cgconvert.json").read_text())["format"] == "npy"

    source, again = read(embedded.NAME), read(str(folder))
    assert again.layout == "npy"
    assert again.geometry.parameters == source.geometry.parameters
    expected = source.decoder.layers[3].q.read().float().numpy()
    np.testing.assert_array_equal(again.decoder.layers[3].q.read().numpy(), expected)

    shown = json.loads(command("inspect", str(folder), "--json"))
    assert shown["layout"] == "npy"
    assert list(shown["types"]) == ["float32"]
    assert len(shown["tensors"]) == 5 + 8 * source.geometry.n_layer

    command("to-gguf", str(folder), "--type", "F32", "-o", "from-npy.gguf")
    command("to-gguf", embedded.NAME, "--type", "F32", "-o", "from-source.gguf")
    assert Path("from-npy.gguf").read_bytes() == Path("from-source.gguf").read_bytes()


def test_a_format_of_one_module_is_verified_in_its_own_runtime() -> None:
    result = cgconvert.convert(embedded.NAME, "to-npy")
    verification = cgconvert.verify(result, device="cpu")
    assert verification.passed, str(verification)
    report = verification.reports[0]
    assert report.runtime["name"] == "torch"
    checks = {check.name: check for check in report.checks}
    assert checks["weights.equal"].value == 0
    assert checks["weights.tensors"].threshold == 0
    assert checks["logits.kl_mean"].threshold == 1e-11
    assert checks["generation"].value == 0


def test_a_format_without_a_runtime_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    result = cgconvert.convert(embedded.NAME, "to-npy")
    monkeypatch.delitem(RUNTIMES, "npy")
    for runtime in (None, "transformers"):
        with pytest.raises(UsageError, match="no runtime runs 'npy' artefacts; there are"):
            cgconvert.verify(result, runtime=runtime)


def test_a_changed_weight_of_a_registered_format_is_found() -> None:
    result = cgconvert.convert(embedded.NAME, "to-npy")
    path = result.path / "transformer.h.2.mlp.fc_in.bias.npy"
    array = np.load(path)
    array[7] += 1
    np.save(path, array)
    checks, _ = check_weights(result.path, "npy", read(embedded.NAME).decoder)
    failed = [check for check in checks if check.verdict == Verdict.FAIL]
    assert [check.name for check in failed] == ["weights.equal"]
    assert "transformer.h.2.mlp.fc_in.bias" in failed[0].detail


def test_a_runtime_of_one_line_opens_by_its_name() -> None:
    result = cgconvert.convert(embedded.NAME, "to-npy")
    runtime = open_runtime("npy", result.path, "cpu", name="torch")
    ids = runtime.tokenize("def f(x):\n    return")
    assert runtime.detokenize(ids) == "def f(x):\n    return"
    assert runtime.feed(ids).shape == (len(ids), read(embedded.NAME).geometry.vocab_size)
    with pytest.raises(UsageError, match="runtime 'numpy' does not run npy; use torch"):
        open_runtime("npy", result.path, "cpu", name="numpy")
