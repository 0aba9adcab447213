"""The record of a passed verification holds for exactly what was verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgconvert import embedded
from cgconvert.api.conversions import to_gguf
from cgconvert.api.sources import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification import record
from cgconvert.verification.record import VerificationRecord
from cgconvert.verification.report.model import Report
from cgconvert.write.manifest import manifest_path

SETTINGS: Mapping[str, Any] = {"bounds": {"gguf Q8_0": {"logits.kl_mean": 0.01}}}

REPORT = Report(
    {"format": "gguf", "type": "Q8_0"}, {}, {},
    {"name": "llama.cpp", "version": "1", "device": "cpu"}, {}, {}, (),
)  # fmt: skip


@pytest.fixture
def artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CGCONVERT_CACHE", str(tmp_path / "cache"))
    return to_gguf(embedded.NAME, tmp_path / "x.gguf", type="Q8_0").path


def other_version(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    version = record._version
    monkeypatch.setattr(record, "_version", lambda p: "0" if p == name else version(p))


Change = Callable[[Path, pytest.MonkeyPatch], object]

CHANGES: dict[str, Change] = {
    "a byte of the artefact": lambda path, _: flip(path, -50),
    "a byte of the manifest": lambda path, _: flip(manifest_path(path), -5),
    "another source": lambda path, _: replace(
        load(embedded.NAME), files=load(embedded.NAME).files[:1]
    ),
    "the source read in another way": lambda path, _: replace(
        load(embedded.NAME), origin={"mp_num": 2}
    ),
    "a bound": lambda path, _: {"bounds": {"gguf Q8_0": {"logits.kl_mean": 0.02}}},
    "another runtime": lambda path, patch: other_version(patch, "llama-cpp-python"),
    "another cgconvert": lambda path, patch: patch.setattr(record, "__version__", "0"),
    "a damaged record": lambda path, _: flip(next(path.parent.glob("cache/verified/*")), -5),
    "no cache": lambda path, patch: patch.setenv("CGCONVERT_CACHE", str(path.parent / "other")),
}


def flip(path: Path, position: int) -> None:
    """Change one byte, counted from the end."""
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_does_not_hold_once_anything_has_changed(
    change: str, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(embedded.NAME)
    written = VerificationRecord([(artefact, source)], SETTINGS)
    assert written.read([]) is None
    written.write([REPORT], [])
    passed = VerificationRecord([(artefact, load(embedded.NAME))], dict(SETTINGS)).read([])
    assert passed is not None
    assert passed.runs == ("gguf Q8_0 in llama.cpp 1 on cpu",)
    result = CHANGES[change](artefact, monkeypatch)
    if isinstance(result, Checkpoint):
        source = result
    settings = result if isinstance(result, dict) else SETTINGS
    assert VerificationRecord([(artefact, source)], settings).read([]) is None


def test_a_record_asks_for_the_reports_as_they_were_written(artefact: Path, tmp_path: Path) -> None:
    report, second = tmp_path / "a.json", tmp_path / "b.html"
    report.write_text("{}")
    here = VerificationRecord([(artefact, load(embedded.NAME))], SETTINGS)
    here.write([REPORT], [report])
    assert here.read([report]) is not None
    assert here.read([]) is not None
    assert here.read([report, second]) is None
    second.write_text("{}")
    assert here.read([second]) is None
    report.write_text("{ }")
    assert here.read([report]) is None
    report.unlink()
    assert here.read([report]) is None
