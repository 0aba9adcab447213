"""What the API returns: of conversions the artefact, of a verification every form of its report."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import cgconvert

TINY = "codegen-tiny-mono"


def test_a_result_says_what_was_written_and_chosen() -> None:
    result = cgconvert.quantize(TINY, max_size="4MB", effort="fast")
    assert result.path == Path(f"out/{TINY}/gguf/{TINY}-Q3_K.gguf")
    assert (result.format, result.type, dict(result.types)) == ("gguf", "Q3_K", {})
    assert result.bytes == result.path.stat().st_size <= 4_000_000
    written = json.loads(result.path.with_name(f"{result.path.name}.cgconvert.json").read_bytes())
    assert written["files"] == result.manifest.files


def test_a_source_may_be_a_loaded_model_and_an_artefact_a_result() -> None:
    model = cgconvert.load(TINY)
    assert cgconvert.load(model) is model
    first = cgconvert.to_gguf(model, "first.gguf")
    cgconvert.to_gguf(TINY, "second.gguf")
    assert first.path.read_bytes() == Path("second.gguf").read_bytes()
    assert cgconvert.inspect(first.path).name == TINY
    with pytest.raises(cgconvert.UsageError, match="is loaded already; give reading options"):
        cgconvert.to_gguf(model, "third.gguf", mp_num=4)


def test_a_verification_of_several_artefacts_in_every_form() -> None:
    good = cgconvert.to_gguf(TINY, "good.gguf", type="Q8_0")
    bad = cgconvert.to_gguf(TINY, "bad.gguf", type="Q8_0")
    with bad.path.open("r+b") as file:
        file.seek(bad.bytes // 2)
        file.write(bytes(100_000))
    verification = cgconvert.verify([good, bad.path], threshold={"logits.kl_p99": None})
    assert not verification.passed
    assert (verification.verdict, verification.failed) == ("fail", ("bad.gguf",))
    assert [report.passed for report in verification.reports] == [True, False]
    assert {check.verdict for check in verification.checks if check.name == "logits.kl_p99"} == {
        "info"
    }
    report = json.loads(verification.to_json())
    assert (report["verdict"], len(report["artefacts"])) == ("fail", 2)
    assert ElementTree.fromstring(verification.to_junit()).tag == "testsuites"
    assert verification.to_html().startswith("<!DOCTYPE html>")
    assert str(verification) == verification.to_text()
    assert "Do not ship bad.gguf (1 of 2 artefacts)." in verification.to_text()
    assert verification._repr_html_().startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    verification.save("report.json", "report.html")
    assert Path("report.json").read_text() == verification.to_json()
    assert Path("report.html").read_text() == verification.to_html()


def test_errors_name_arguments() -> None:
    with pytest.raises(cgconvert.UsageError, match="say how small: one of `bits`, `type`"):
        cgconvert.quantize(TINY)
    with pytest.raises(cgconvert.UsageError, match='`dtype="int3"` is not one of float16'):
        cgconvert.to_hf(TINY, dtype="int3")
    with pytest.raises(cgconvert.UsageError, match="`max_shard_size`: 'lots' is not a size"):
        cgconvert.to_hf(TINY, max_shard_size="lots")
    with pytest.raises(cgconvert.UsageError, match="`threshold`: no check 'kl' has a bound"):
        cgconvert.verify("nowhere", threshold={"kl": 1.0})
    with pytest.raises(cgconvert.UsageError, match="no conversion 'to-npy'; there are to-gguf"):
        cgconvert.convert(TINY, "to-npy")
    with pytest.raises(cgconvert.InputError, match="nowhere: no such file or folder"):
        cgconvert.generate("nowhere", "x")
