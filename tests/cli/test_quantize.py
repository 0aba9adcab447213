"""`quantize` from the command line, calibrated: what is written, what is kept, what goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest

from cgconvert.calibrate.layerwise import LayerwiseCalibration
from cgconvert.cli.main import main
from cgconvert.formats.registry import identify
from cgconvert.options import parse_size
from cgconvert.texts.text import read_text
from cgconvert.write.execute import execute
from tests.conftest import first_layers
from tests.support import plans

TEXT_CHARACTERS = 120_000


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's first two layers as a checkpoint of its own, and a text."""
    where = tmp_path_factory.mktemp("quantize")
    source = replace(first_layers(2), name="small")
    execute(plans.to_hf(source, where / "small"))
    text = "\n".join(read_text("stdlib", "calibration").documents)[:TEXT_CHARACTERS]
    (where / "text.py").write_text(text)
    return where


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(["quantize", "small", "--calibration", "text.py", *arguments])
        return Outcome(int(caught.value.code or 0), *capsys.readouterr())

    return call


def test_four_bits_give_a_file_no_larger_than_the_standard_mix_that_passes(
    run: Callable[..., Outcome], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run("--bits", "4", "-o", "four.gguf")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("path:  four.gguf\n")
    assert "text:  text.py: " in outcome.err
    lines = outcome.out.splitlines()
    type_ = re.fullmatch(r"four\.gguf  gguf (\d\.\d\dbpw), .*", lines[0])
    assert type_, lines[0]
    assert [line.split()[0] for line in lines[1:]] == [
        "token_embd.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight",
        "attn_output.weight", "ffn_up.weight", "ffn_down.weight", "output.weight",
    ]  # fmt: skip
    manifest = json.loads((folder / "four.gguf.cgconvert.json").read_text())
    options = manifest["options"]
    assert manifest["type"] == options["type"] == identify(Path("four.gguf")).type == type_[1]
    assert options["effort"] == "default"
    assert options["calibration"]["text"] == "text.py"
    assert options["bits"] == 4
    stored = {
        t.name: gguf.GGMLQuantizationType(t.tensor_type).name
        for t in gguf.GGUFReader(folder / "four.gguf").tensors
    }
    assert len(options["types"]) == 2 * 6 + 2
    assert {name: stored[name] for name in options["types"]} == options["types"]
    promise = options["promise"]
    assert 0 < promise["kl"] < 2e-3
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", "four.gguf"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"gguf {type_[1]} (type {type_[1]}, bits 4, effort default, calibration text.py)" in shown
    )
    assert f"loss {promise['kl']} ± " in shown
    assert promise["windows"][0][:20] not in shown
    assert not list(folder.glob(".*"))
    assert run("--bits", "4", "--calibration", "none", "-o", "plain.gguf").code == 0
    assert (folder / "four.gguf").stat().st_size <= (folder / "plain.gguf").stat().st_size
    with pytest.raises(SystemExit) as caught:
        main(["verify", "four.gguf", "--reference", "small"])
    assert not caught.value.code


def test_four_bits_for_onnx_change_the_numbers_and_no_size(
    run: Callable[..., Outcome], folder: Path
) -> None:
    """The same files of the same sizes as by rounding, but for the numbers in them."""
    onnx = ("--bits", "4", "--format", "onnx", "--block-size", "64")
    assert run(*onnx, "-o", "fitted").code == 0
    assert run(*onnx, "--calibration", "none", "-o", "rounded").code == 0
    fitted, rounded = (
        folder / name / "onnx" / "model_q4.onnx_data" for name in ("fitted", "rounded")
    )
    assert fitted.stat().st_size == rounded.stat().st_size
    assert fitted.read_bytes() != rounded.read_bytes()
    options = json.loads((folder / "fitted" / "cgconvert.json").read_text())["options"]
    assert options["calibration"]["text"] == "text.py"
    assert options["block_size"] == 64
    with pytest.raises(SystemExit) as caught:
        main(["verify", "fitted", "--reference", "small"])
    assert not caught.value.code


def test_budgets_are_kept(run: Callable[..., Outcome], folder: Path) -> None:
    table = "--tensor-type=blk.0.*=Q8_0", "--tensor-type=*.attn_v.weight=Q6_K"
    assert run("--max-size", "2.9MB", *table, "-o", "size.gguf").code == 0
    assert (folder / "size.gguf").stat().st_size <= 2_900_000
    types = json.loads((folder / "size.gguf.cgconvert.json").read_text())["options"]["types"]
    assert types["blk.0.attn_v.weight"] == types["blk.0.ffn_up.weight"] == "Q8_0"
    assert types["blk.1.attn_v.weight"] == "Q6_K"
    outcome = run("--max-size", "1200000", "-o", "no.gguf")
    assert (outcome.code, "a file of 1.2 MB is too small: the least is" in outcome.err) == (
        2,
        True,
    )
    least = outcome.err.rstrip().rpartition("the least is ")[2].replace(" ", "")
    assert run("--max-size", least, "-o", "least.gguf").code == 0
    assert (folder / "least.gguf").stat().st_size <= parse_size(least)


def test_a_named_mix_keeps_its_types(run: Callable[..., Outcome], folder: Path) -> None:
    assert run("--type", "q4_0", "-o", "fitted.gguf").code == 0
    assert run("--type", "Q4_0", "--calibration", "none", "-o", "rounded.gguf").code == 0
    fitted, rounded = (
        gguf.GGUFReader(folder / f"{name}.gguf").tensors for name in ("fitted", "rounded")
    )
    assert [(t.name, t.tensor_type) for t in fitted] == [(t.name, t.tensor_type) for t in rounded]
    assert any((a.data != b.data).any() for a, b in zip(fitted, rounded, strict=True))


def test_a_later_run_computes_only_what_is_missing_and_gives_the_same_bytes(
    run: Callable[..., Outcome], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time only what is missing is computed, and the bytes are the same."""
    asked = ("--type", "Q4_K_S")
    assert run(*asked, "-o", "whole.gguf").code == 0
    layer, done = LayerwiseCalibration.layer, []

    def stopping(self: LayerwiseCalibration, i: int, state: object) -> object:
        done.append(i)
        if done == [0, 1]:
            raise KeyboardInterrupt
        return layer(self, i, state)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerwiseCalibration, "layer", stopping)
    outcome = run(*asked, "-o", "parts.gguf")
    assert outcome.code == 130
    assert re.search(
        r"^cgconvert: interrupted; kept 2 of 4 steps "
        r"\(\S+ MB in \.parts\.gguf\.cgconvert-tmp\): run the same again to go on, "
        r"or drop it with `cgconvert clean parts\.gguf --delete`$",
        outcome.err, re.MULTILINE,
    )  # fmt: skip
    assert not (folder / "parts.gguf").exists()
    outcome = run(*asked, "-o", "parts.gguf")
    assert (outcome.code, "continuing at 2 of 4 steps: parts.gguf" in outcome.err) == (0, True)
    assert done == [0, 1, 1]
    assert (folder / "parts.gguf").read_bytes() == (folder / "whole.gguf").read_bytes()
    assert not list(folder.glob(".*"))


def test_an_imatrix_is_written_and_read(run: Callable[..., Outcome], folder: Path) -> None:
    saved = ("--type", "Q4_K_M", "--save-imatrix", "im.gguf")
    assert run(*saved, "-o", "with.gguf").code == 0
    assert run(*saved, "-o", "again.gguf").code == 0  # the same imatrix
    assert (folder / "with.gguf").read_bytes() == (folder / "again.gguf").read_bytes()
    with pytest.raises(SystemExit) as caught:
        main(["quantize", "small", "--bits", "4", "--imatrix", "im.gguf", "-o", "im-4.gguf"])
    assert not caught.value.code
    options = json.loads((folder / "im-4.gguf.cgconvert.json").read_text())["options"]
    assert options["imatrix"]["file"] == "im.gguf"
    with pytest.raises(SystemExit) as caught:
        main(["verify", "im-4.gguf", "--reference", "small"])
    assert not caught.value.code
    outcome = run("--bits", "4", "--imatrix", "im.gguf", "-o", "no.gguf")
    assert (outcome.code, "--imatrix stands in place of a text" in outcome.err) == (2, True)
    (folder / "im.gguf").write_bytes(b"rubbish")
    outcome = run("--type", "Q4_K_M", "--save-imatrix", "im.gguf", "-o", "no.gguf")
    assert (outcome.code, "im.gguf: exists" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.txt: is empty"),
        (b"x = 1\n", "tokens are too few to calibrate with; 1280 are the least"),
        (b"\xff\xfe\x00\x80" * 99, "bad.txt: is not UTF-8"),
    ],
)
def test_unusable_texts_are_refused(
    run: Callable[..., Outcome], folder: Path, content: bytes, message: str
) -> None:
    (folder / "bad.txt").write_bytes(content)
    outcome = run("--bits", "4", "--calibration", "bad.txt", "-o", "bad.gguf")
    assert (outcome.code, outcome.out) == (3, "")
    assert message in outcome.err
    assert not list(folder.glob("*bad.gguf*"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--bits 4 --calibration empty.txt", 3, "empty.txt: is empty"),
        ("--bits 4 --calibration binary.txt", 3, "binary.txt: is not UTF-8"),
        ("--bits 4 --calibration short.txt", 3, "short.txt: 3 tokens are too few"),
        ("--bits 4 --calibration nowhere.txt", 3, "nowhere.txt: cannot be read as a text"),
        ("--bits 4 --calibration none --imatrix binary.txt", 3, "binary.txt: is no imatrix"),
        ("--bits 4 --calibration none --imatrix empty.txt", 3, "empty.txt: is empty"),
        ("--bits 4 --calibration none --effort max", 2, "leave out --calibration none"),
        ("--bits 4 --effort fast", 2, "takes no text: leave out --calibration"),
        ("--bits 4 --max-size 2MB", 2, "--bits and --max-size: give one"),
        ("--bpw 1.5", 2, "1.5 bits a weight are too few: the least is"),
        ("--max-kl 0.1 --calibration none", 2, "--max-kl is measured on a text"),
        ("--bits 4 --tensor-type blk.*.nope=Q4_K", 2, "no matrix is called 'blk.*.nope'"),
        ("--bits 4 --tensor-type blk.*", 2, "is not PATTERN=TYPE"),
        ("--type Q9", 2, "--type Q9 is not one of Q8_0, Q6_K"),
    ],
)
def test_impossible_requests_fail_in_one_line_and_write_nothing(
    arguments: str, code: int, says: str, run: Callable[..., Outcome], folder: Path
) -> None:
    """One line, the code of the table, and nothing written."""
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)) * 30)
    (folder / "short.txt").write_text("x = 1")
    before = sorted(folder.iterdir())
    outcome = run(*arguments.split(), "-o", "new.gguf")
    assert (outcome.code, says in outcome.err, outcome.err.count("\n")) == (code, True, 1), (
        outcome.err
    )
    assert sorted(folder.iterdir()) == before
