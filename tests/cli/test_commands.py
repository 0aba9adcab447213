"""The commands from the command line: outputs, exit codes, one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from cgconvert import embedded
from cgconvert.api.verification import verify
from cgconvert.cli.main import cli, main
from cgconvert.errors import UsageError
from cgconvert.runtimes import llamacpp
from cgconvert.testing import synthetic
from cgconvert.write.hashing import file_sha256
from tests.support.in_process import open_runtimes_here
from tests.support.trained_models import OWN_CODE, trained, write_trained

TINY = embedded.NAME


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr: what went wrong."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return call


@pytest.mark.parametrize("command", cli.list_commands(click.Context(cli)))
def test_every_command_has_help_with_an_example(command: str, run: Callable[..., Outcome]) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert "Example:" in outcome.out
    assert f"cgconvert {command}" in outcome.out


def test_the_package_runs_as_a_module() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "cgconvert", "--version"], capture_output=True, text=True
    )
    assert finished.returncode == 0
    assert finished.stdout.startswith("cgconvert, version ")


def test_garbage_collection_resumes_after_torch_is_imported() -> None:
    code = """
import gc
from cgconvert.lazy import torch
assert gc.get_freeze_count() == 0
assert torch.ones(2).sum() == 2
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines()[-1] == "True True"


def test_default_outputs_are_named_after_the_source(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    for arguments in (
        ["to-hf", TINY],
        ["to-hf", TINY, "--layout", "phi"],
        ["to-onnx", TINY],
        ["to-onnx", TINY, "--dtype", "float16"],
        ["to-gguf", TINY],
        ["quantize", "--bits", "8"],
        ["quantize", "--bits", "4", "--effort", "fast"],
        ["quantize", "--max-size", "4MB", "--calibration", "none"],
        ["quantize", TINY, "--bits", "8", "--format", "onnx"],
        ["quantize", TINY, "--bits", "4", "--format", "onnx", "--effort", "fast"],
    ):
        outcome = run(*arguments)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith(f"out/{TINY}/")
    out = tmp_path / "out" / TINY
    assert sorted(p.name for p in out.iterdir()) == [
        "gguf", "hf", "hf-phi", "onnx", "onnx-fp16", "onnx-int4", "onnx-int8",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "gguf").glob("*.gguf")) == [
        f"{TINY}-F16.gguf", f"{TINY}-Q3_K.gguf", f"{TINY}-Q4_K_M.gguf", f"{TINY}-Q8_0.gguf",
    ]  # fmt: skip
    graphs = {
        "onnx": "model", "onnx-fp16": "model_fp16", "onnx-int4": "model_q4",
        "onnx-int8": "model_int8",
    }  # fmt: skip
    for folder, stem in graphs.items():
        names = sorted(p.name for p in (out / folder / "onnx").iterdir())
        assert names == [f"{stem}.onnx", f"{stem}.onnx_data"]
        assert (out / folder / "genai_config.json").is_file()
        assert (out / folder / "config.json").is_file()
        assert (out / folder / "tokenizer.json").is_file()
        assert (out / folder / "cgconvert.json").is_file()


def test_every_unquantized_artefact_is_a_source(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Every unquantized output leads to the same float16 weights, under the model's own name."""
    run("to-hf", TINY, "-o", "one")
    run("to-hf", TINY, "--layout", "phi", "-o", "two")
    run("to-onnx", TINY, "-o", "three")
    run("to-gguf", TINY, "-o", "four.gguf")
    expected = (tmp_path / "one" / "model.safetensors").read_bytes()
    for source in ("one", "two", "three", "four.gguf"):
        outcome = run("to-hf", source, "-o", f"from-{source}")
        assert outcome.code == 0, outcome.err
        assert (tmp_path / f"from-{source}" / "model.safetensors").read_bytes() == expected
        manifest = json.loads((tmp_path / f"from-{source}" / "cgconvert.json").read_text())
        assert manifest["name"] == TINY
    outcome = run("quantize", "one", "--bits", "8", "-o", "five.gguf")
    outcome = run("to-hf", "five.gguf", "-o", "six")
    assert (outcome.code, "is quantized (Q8_0)" in outcome.last) == (3, True)


def test_dry_run_writes_nothing(run: Callable[..., Outcome], tmp_path: Path) -> None:
    for command in ("to-hf", "to-onnx", "to-gguf"):
        outcome = run(command, TINY, "--dry-run")
        assert outcome.code == 0
        assert "to write" in outcome.out
        assert "free" in outcome.out
        assert "of memory" in outcome.out
    assert run("quantize", TINY, "--bits", "4", "--dry-run").code == 0
    assert run("run", TINY, "--dry-run").code == 0
    assert os.listdir(tmp_path) == []


def test_a_dry_run_prints_the_size_that_is_written(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run("to-gguf", TINY, "--type", "Q4_0", "--dry-run", "-o", "x.gguf")
    size = outcome.out.splitlines()[-1].split(": ")[1].split(" to write")[0]
    assert run("to-gguf", TINY, "--type", "Q4_0", "-o", "x.gguf").code == 0
    written = (tmp_path / "x.gguf").stat().st_size
    assert size == f"{written / 1e6:.3g} MB"


def test_inspect_describes_sources_and_artefacts(run: Callable[..., Outcome]) -> None:
    run("to-hf", TINY)
    run("to-gguf", TINY, "--type", "Q4_0", "-o", "x.gguf")
    run("to-onnx", TINY, "--bits", "4", "-o", "x-onnx")
    for path, layout in (
        (TINY, "safetensors"), (f"out/{TINY}/hf", "safetensors"), ("x.gguf", "gguf"),
        ("x-onnx", "onnx"),
    ):  # fmt: skip
        description = json.loads(run("inspect", path, "--json").out)
        assert description["schema"] == 1
        assert description["name"] == TINY
        assert description["layout"] == layout
        assert description["geometry"]["n_embd"] == 256
        assert description["tokenizer"]["padding_rows"] == 90
        assert description["parameters"] == 6831104
        assert sum(description["types"].values()) == sum(
            t["nbytes"] for t in description["tensors"]
        )
        text = run("inspect", path).out
        assert "end-of-text 3967" in text
        if path != TINY:
            assert description["provenance"]["source"]["origin"]["given"] == TINY
            assert "made by     cgconvert" in text


def test_every_format_generates_the_same_text(run: Callable[..., Outcome]) -> None:
    run("to-hf", TINY, "-o", "hf")
    run("to-onnx", TINY, "-o", "onnx")
    run("to-gguf", TINY, "--type", "F32", "-o", "x.gguf")
    prompt = "def hello_world():\n"
    texts = {
        run("generate", artefact, prompt, "--max-new-tokens", "12").out
        for artefact in ("hf", "onnx", "x.gguf")
    }
    texts.add(
        run("generate", "onnx", prompt, "--max-new-tokens", "12",
            "--runtime", "onnxruntime-genai").out
    )  # fmt: skip
    assert len(texts) == 1
    assert texts.pop().startswith(prompt)
    drawn = [
        run("generate", "hf", prompt, "--temperature", "1.5", "--seed", seed).out
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_verify_reads_the_manifests_source_and_fails_with_4(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    run("to-gguf", TINY, "--type", "Q8_0")
    run("to-onnx", TINY)
    outcome = run("verify", "--report", "verdict.json")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "verdict.json").read_text())
    assert report["verdict"] in ("pass", "warning")
    assert [a["artefact"]["format"] for a in report["artefacts"]] == ["gguf", "onnx"]
    folder = tmp_path / "out" / TINY / "onnx"
    data = folder / "onnx" / "model.onnx_data"
    raw = bytearray(data.read_bytes())
    raw[3_000_000:5_000_000] = bytes(2_000_000)
    data.write_bytes(bytes(raw))
    outcome = run("verify", str(folder))
    assert outcome.code == 4
    assert (
        outcome.last == f"cgconvert: verification failed: out/{TINY}/onnx"
        or str(folder) in outcome.last
    )


def test_a_wrong_reference_is_said_alone_in_one_line(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    run("to-gguf", TINY, "-o", "x.gguf")
    synthetic.main(
        ["codegen-350M-mono", "--layers", "1", "--layout", "torch", "-o", str(tmp_path / "made")],
        standalone_mode=False,
    )
    (other,) = (tmp_path / "made").iterdir()
    outcome = run("verify", "x.gguf", "--reference", str(other))
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.strip() == (
        "cgconvert: x.gguf: the reference is another model than the one this artefact was made "
        f"from: it was made from {TINY}; it has 6 layers of 256, {other.name} has 1 layer of 1024; "
        "give the right one with --reference SOURCE"
    )


def test_a_missing_runtime_stops_nothing_and_is_said_at_the_end(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("to-gguf", TINY, "--type", "F16")
    run("to-hf", TINY)
    open_runtimes_here(monkeypatch)
    llamacpp._library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    outcome = run("verify", "--quick", "--report", "verdict.json", "--report", "verdict.txt")
    assert outcome.code == 2, outcome.err
    gguf = f"out/{TINY}/gguf/{TINY}-F16.gguf"
    assert f"cgconvert: not run: {gguf}: llama-cpp-python is not installed" in outcome.last
    lines = outcome.out.splitlines()
    assert "report written to verdict.json" in lines
    assert "report written to verdict.txt" in lines
    assert lines[-1].startswith(f"Do not ship {gguf} (1 of 2 artefacts); not run: {gguf}.")
    report = json.loads((tmp_path / "verdict.json").read_text())
    gguf_entry, hf_entry = report["artefacts"]
    assert "llama-cpp-python is not installed" in gguf_entry["runtime"]["missing"]
    assert (gguf_entry["verdict"], hf_entry["verdict"]) == ("fail", "pass")
    assert "weights.equal" in {check["name"] for check in gguf_entry["checks"]}
    assert outcome.out.count("yet: what is stored is right, but it was not run") == 1
    weights = next((tmp_path / "out" / TINY).rglob("model.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-10] ^= 1
    weights.write_bytes(raw)
    outcome = run("verify", "--quick")
    assert outcome.code == 4
    assert "verification failed: " in outcome.last
    assert f"; not run: {gguf}: llama-cpp-python" in outcome.last


def test_verify_takes_texts_bounds_and_a_runtime(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    run("to-gguf", TINY, "--type", "F16")
    run("to-onnx", TINY)
    (tmp_path / "mine.txt").write_text("def area(r):\n    return 3.14159 * r * r\n" * 40)
    outcome = run(
        "verify", "--runtime", "onnxruntime-genai", "--text", "stdlib", "--text", "mine.txt",
        "--text-tokens", "700", "--threshold", "logits.kl_mean=-1", "--threshold",
        "logits.kl_p99=none", "--report", "verdict.json", "--report", "verdict.html",
    )  # fmt: skip
    assert outcome.code == 4, outcome.err
    assert (tmp_path / "verdict.html").is_file()
    report = json.loads((tmp_path / "verdict.json").read_text())
    used = {a["artefact"]["format"]: a["runtime"]["name"] for a in report["artefacts"]}
    assert used == {"gguf": "llama.cpp", "onnx": "onnxruntime-genai"}
    for artefact in report["artefacts"]:
        checks = {check["name"]: check for check in artefact["checks"]}
        assert (checks["logits.kl_mean"]["verdict"], checks["logits.kl_p99"]["verdict"]) == (
            "fail",
            "info",
        )
        texts = {text["name"]: text for text in artefact["prompts"]["texts"]}
        assert list(texts) == ["stdlib", "mine.txt"]
        assert (texts["stdlib"]["tokens"], texts["stdlib"]["sequences"]) == (700, 2)
        assert texts["mine.txt"]["sha256"] == file_sha256(tmp_path / "mine.txt")
        assert artefact["prompts"]["lengths"][-4:] == [512, 188, 512, 188]
    outcome = run("verify", "--runtime", "transformers")
    assert (outcome.code, "does not run gguf or onnx; use llama.cpp or onnx" in outcome.last) == (
        2,
        True,
    )
    for text in ("nowhere", ".", "verdict.html/x"):
        outcome = run("verify", "--text", text)
        assert (outcome.code, f"{text}: cannot be read as a text" in outcome.last) == (3, True)


def test_verify_without_a_manifest_needs_a_reference(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    run("to-gguf", TINY, "-o", "x.gguf")
    (tmp_path / "x.gguf.cgconvert.json").unlink()
    outcome = run("verify", "x.gguf")
    assert (outcome.code, "--reference SOURCE" in outcome.last) == (2, True)
    assert run("verify", "x.gguf", "--reference", TINY).code == 0


def test_a_moved_source_has_to_be_named(run: Callable[..., Outcome], tmp_path: Path) -> None:
    shutil.copytree(embedded.path(), tmp_path / "mine")
    assert run("to-gguf", "mine", "-o", "x.gguf").code == 0
    (tmp_path / "mine").rename(tmp_path / "moved")
    outcome = run("verify", "x.gguf")
    assert (outcome.code, "--reference SOURCE" in outcome.last) == (3, True)
    assert run("verify", "x.gguf", "--reference", "moved").code == 0


MISTAKES: list[tuple[list[str], int, str]] = [
    (["to-hf"], 2, "Missing argument 'SOURCE'. (see cgconvert to-hf --help)"),
    (["nonsense"], 2, "No such command 'nonsense'; the commands are to-"),
    (["to-gguf", TINY, "-o"], 2, "requires an argument. (see cgconvert to-gguf --help)"),
    (["to-gguf", TINY, "-o", ""], 2, "the path is empty"),
    (
        ["generate", TINY, "x", "--max-new-tokens", "y"],
        2,
        "y is not a whole number (see",
    ),
    (["clean", "--force"], 2, "'--force': say --delete."),
    (["clean", "--dry-run"], 2, "leave it out: without --delete nothing is removed"),
    (["to-hf", "no/such"], 3, "no/such: not in the Hub cache and cannot be downloaded"),
    (["to-hf", "no-such"], 3, "no-such: no such file or folder, and not a name of the family"),
    (["to-hf", TINY, "--dtype", "int3"], 2, "--dtype int3 is not one of float16"),
    (["to-hf", TINY, "--max-shard-size", "lots"], 2, "'lots' is not a size"),
    (["to-gguf", TINY, "-o", "x.bin"], 2, "a GGUF file's name ends in .gguf"),
    (["to-gguf", TINY, "-o", "/etc/passwd/x.gguf"], 5, "cannot be written"),
    (["quantize", "--bits", "4"], 2, "nothing to quantize under ./out; name the source"),
    (["quantize", TINY], 2, "say how small: one of --bits, --type, --max-size, --bpw or --max-kl"),
    (["quantize", TINY, "--bits", "4", "--bpw", "5"], 2, "--bits and --bpw: give one"),
    (["quantize", TINY, "--bits", "5"], 2, "--bits 5 is not one of 4, 8"),
    (["quantize", TINY, "--type", "F16"], 2, "--type F16 is not one of"),
    (["quantize", TINY, "--max-size", "4 parsecs"], 2, "'4 parsecs' is not a size"),
    (["quantize", TINY, "--max-size", "1MB", "--effort", "fast"], 2, "no type is that small: the"),
    (["quantize", TINY, "--max-size", "1MB"], 2, "a file of 1 MB is too small: the least"),
    (["quantize", TINY, "--bpw", "1"], 2, "1 bits a weight are too few: the least"),
    (
        ["quantize", TINY, "--max-kl", "0.1", "--effort", "fast"],
        2,
        "--max-kl is measured on a text",
    ),
    (["quantize", TINY, "--bits", "4", "--effort", "hard"], 2, "--effort hard is not one of fast"),
    (
        ["quantize", TINY, "--bits", "8", "--calibration", "x"],
        2,
        "8 bits are rounded, not calibrated",
    ),
    (["quantize", TINY, "--bits", "4", "--calibration", "no"], 3, "no: cannot be read as a text"),
    (["quantize", TINY, "--bits", "4", "--tensor-type", "Q6_K"], 2, "is not PATTERN=TYPE"),
    (["quantize", TINY, "--bits", "4", "--tensor-type", "x=Q6_K"], 2, "no matrix is called 'x'"),
    (["quantize", TINY, "--bits", "4", "--tensor-type", "*=Q7"], 2, "'Q7' is not one of"),
    (["quantize", TINY, "--type", "Q8_0", "--tensor-type", "x=Q4_K"], 2, "no matrix is called 'x'"),
    (
        ["quantize", TINY, "--bpw", "4", "--format", "onnx"],
        2,
        "--bpw is an option of --format gguf",
    ),
    (["to-onnx", TINY, "--symmetric"], 2, "--symmetric is an option of quantized matrices"),
    (
        ["to-onnx", TINY, "--bits", "4", "--block-size", "24"],
        2,
        "--block-size 24 is not one of 16, 32, 64",
    ),
    (
        ["to-onnx", TINY, "--bits", "4", "--accuracy-level", "9"],
        2,
        "9 is not one of 0, 1",
    ),
    (["to-onnx", TINY, "--target", "cuda"], 2, "add --dtype float16"),
    (["quantize", TINY, "--bits", "4", "--block-size", "64"], 2, "is an option of --format onnx"),
    (["verify"], 2, "nothing to verify under ./out; name the artefact"),
    (["verify", "nowhere"], 3, "nowhere: no such file or folder"),
    (["verify", "nowhere", "--runtime", "vllm"], 2, "--runtime vllm is not one of transformers"),
    (["verify", "--threshold", "logits.kl=1"], 2, "no check 'logits.kl' has a bound to set"),
    (["verify", "--threshold", "logits.top1=high"], 2, "'high' is not a number, nor none"),
    (["verify", "--threshold", "logits.top1"], 2, "write CHECK=VALUE, as in logits.kl_mean=0.05"),
    (["verify", "--text-tokens", "1"], 2, "--text-tokens 1 is not in the range 2<=x<="),
    (["inspect", "nowhere"], 3, "nowhere: no such file or folder"),
    (["generate", "nowhere", "x"], 3, "nowhere: no such file or folder"),
    (["run", "nowhere.yaml"], 3, "nowhere.yaml: no such recipe; shipped are"),
    (["to-hf", TINY, "--tokenizer", "nowhere"], 2, "'nowhere' does not exist"),
    (["to-hf", TINY, "--mp-num", "0"], 2, "--mp-num 0 is not in the range"),
    (["to-hf", TINY, "--mp-num", "3"], 3, "n_head 4 does not divide into 3 groups"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_mistakes_get_one_clear_line(
    arguments: list[str], code: int, message: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert outcome.err.startswith("cgconvert: ")
    assert message in outcome.err
    assert os.listdir(tmp_path) == []


def test_a_report_that_is_a_folder_is_refused_before_the_long_work(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "verdict.json").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: {TINY}\nsteps: [to-gguf, verify: {{report: verdict.json}}]\n")
    for arguments in (["verify", "nowhere", "--report", "verdict.json"], ["run", "recipe.yaml"]):
        outcome = run(*arguments)
        expected = "cgconvert: verdict.json: is a folder; a report is a file"
        assert (outcome.code, outcome.out, outcome.err.strip()) == (2, "", expected)
    with pytest.raises(UsageError, match=r"verdict\.json: is a folder"):
        verify("nowhere", report=["verdict.json"])
    assert not (tmp_path / "out").exists()


def test_ambiguous_sources_are_refused(run: Callable[..., Outcome], tmp_path: Path) -> None:
    run("to-hf", TINY)
    shutil.copytree(embedded.path(), tmp_path / "other")
    run("to-hf", "other")
    outcome = run("quantize", "--bits", "4")
    assert (outcome.code, f"several models under ./out ({TINY}, other)" in outcome.last) == (
        2,
        True,
    )


@pytest.mark.parametrize("command", ["to-onnx", "to-gguf", "to-hf"])
def test_quantize_takes_the_only_model_under_out(command: str, run: Callable[..., Outcome]) -> None:
    """The bytes are the same, whichever format the unquantized model is in."""
    run("quantize", TINY, "--bits", "8", "-o", "expected.gguf")
    assert run(command, TINY).code == 0
    assert run("quantize", "--bits", "8").code == 0
    written = Path(f"out/{TINY}/gguf/{TINY}-Q8_0.gguf")
    assert written.read_bytes() == Path("expected.gguf").read_bytes()
    assert run("quantize", "--type", "Q4_0", "--effort", "fast").code == 0  # no quantized source


def test_verbose_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cgconvert.cli.options import verbosity

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["inspect", "nowhere", "--verbose"])
    verbosity.verbose = False
    assert "Traceback" in capsys.readouterr().err


def test_an_existing_artefact_needs_force(run: Callable[..., Outcome]) -> None:
    assert run("to-gguf", TINY, "-o", "x.gguf").code == 0
    outcome = run("to-gguf", TINY, "-o", "x.gguf")
    assert (outcome.code, "exists; give --force to replace it" in outcome.last) == (2, True)
    assert run("to-gguf", TINY, "-o", "x.gguf", "--force").code == 0


def test_the_shipped_recipe_runs(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """All formats are written, quantized and verified; a table of all comes last."""
    outcome = run("run", TINY)
    assert outcome.code == 0, outcome.err + outcome.out
    table = outcome.out.strip().splitlines()[-12:]
    assert any("Q8_0" in line for line in table)
    assert sum(line.startswith("pass") for line in table) >= 9


def test_a_given_tokenizer_is_used_again_by_verify(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    """The manifest keeps the --tokenizer of a source that has none, and verify reads it."""
    shutil.copytree(embedded.path(), tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "added_tokens.json", "vocab.json", "merges.txt"):  # fmt: skip
        (tmp_path / "bare" / file).unlink()
    outcome = run("to-gguf", "bare", "-o", "x.gguf")
    assert (outcome.code, "--tokenizer" in outcome.last) == (3, True)
    assert run("to-gguf", "bare", "-o", "x.gguf", "--tokenizer", str(embedded.path())).code == 0
    assert run("verify", "x.gguf").code == 0


def test_the_number_of_groups_is_given_or_measured(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    write_trained(tmp_path, 2, model=trained(layers=3), config=OWN_CODE)
    outcome = run("to-gguf", "trained", "-o", "x.gguf")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.last.endswith("give it with --mp-num (CodeGen 4, CodeGen2 1B and 3.7B 8), or "
                                 "--mp-num auto to measure it")  # fmt: skip
    outcome = run("to-gguf", "trained", "-o", "x.gguf", "--mp-num", "auto")
    assert outcome.code == 0
    assert outcome.last.startswith("note: trained: qkv_proj was measured to be packed in 2: ")
    assert run("verify", "x.gguf").code == 0
    outcome = run("to-gguf", "trained", "-o", "y.gguf", "--mp-num", "4")
    assert outcome.code == 0
    assert outcome.last.startswith(
        "warning: trained: --mp-num 4 looks wrong, qkv_proj looks packed"
    )
    outcome = run("verify", "y.gguf")
    assert outcome.code == 4
    assert re.search(r"^FAIL +source\.groups ", outcome.out, re.MULTILINE)
    outcome = run("to-gguf", "trained", "-o", "z.gguf", "--mp-num", "four")
    assert outcome.code == 2
    assert "--mp-num four is not a whole number, nor auto" in outcome.last
    outcome = run("to-gguf", "trained", "-o", "z.gguf", "--mp-num", "8")
    assert outcome.code == 3
    assert "n_head 4 does not divide into 8 groups" in outcome.last


def test_an_interrupted_command_exits_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM ends a run with 130, one line, and nothing left behind."""
    code = (
        "import os, signal, sys; from cgconvert.cli import main as m; "
        "from cgconvert.write import writer as w; "
        "w.PlanWriter._write_tensors = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        f"m.main(['to-hf', '{TINY}', '-o', 'hf'])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert finished.returncode == 130
    assert finished.stderr.strip().splitlines()[-1] == "cgconvert: interrupted"
    assert os.listdir(tmp_path) == []
