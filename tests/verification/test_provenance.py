"""Hashes: a changed byte is noticed wherever it is, when verifying and when converting again."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.formats.read import read
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.provenance import check_provenance
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.write.execute import execute
from cgconvert.write.hashing import file_sha256, hash_checkpoint
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.support.artefacts import copied, write_all
from tests.support.plans import to_gguf

TYPES = ("hf-float16", "onnx-int4", "gguf-F16")


@pytest.fixture(scope="module")
def right(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Artefacts as the writers write them, not to be changed."""
    return write_all(TYPES, source, tmp_path_factory.mktemp("right"))


def files_of(artefact: Path) -> list[Path]:
    if artefact.is_file():
        return [artefact, manifest_path(artefact)]
    return sorted(path for path in artefact.rglob("*") if path.is_file())


def provenance(artefact: Path, source: Checkpoint) -> Check:
    root = artefact if artefact.is_dir() else artefact.parent
    hashes = {path.relative_to(root).as_posix(): file_sha256(path) for path in files_of(artefact)}
    return check_provenance(artefact, hashes, hash_checkpoint(source)["sha256"], source.origin)


def test_changed_and_missing_files_are_named(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["hf-float16"], tmp_path)
    (artefact / "merges.txt").unlink()
    (artefact / "README.md").write_text("other")
    check = provenance(artefact, source)
    assert (check.verdict, check.value) == (Verdict.FAIL, 2)
    assert "merges.txt is missing" in check.detail
    assert "README.md is not as it was written" in check.detail
    (artefact / "cgconvert.json").write_text("{}")
    check = provenance(artefact, source)
    assert (check.verdict, "not a cgconvert manifest" in check.detail) == (Verdict.FAIL, True)


def test_another_source_fails_or_warns(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    other_weights = tmp_path / "weights.bin"
    other_weights.write_bytes(b"another file")
    plan = right["gguf-F16"]
    changed = replace(source, files=(other_weights,))
    check = provenance(plan.output, changed)
    assert (check.verdict, "its SHA-256 differs" in check.detail) == (Verdict.FAIL, True)
    elsewhere = replace(changed, origin={"given": "elsewhere"})
    check = provenance(plan.output, elsewhere)
    assert (check.verdict, check.detail) == (
        Verdict.WARNING,
        "made from somewhere, of another SHA-256",
    )


@pytest.mark.parametrize("name", TYPES)
def test_a_changed_byte_anywhere_is_noticed(
    name: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    """A byte is changed in every file, the manifest included, at both ends and between."""
    artefact, places = copied(right[name], tmp_path), random.Random(0)
    assert provenance(artefact, source).verdict == Verdict.PASS
    for path in files_of(artefact):
        data = path.read_bytes()
        for place in {0, len(data) - 1, *(places.randrange(len(data)) for _ in range(8))}:
            changed = bytearray(data)
            changed[place] ^= 1 << places.randrange(8)
            path.write_bytes(changed)
            assert provenance(artefact, source).verdict == Verdict.FAIL, (path, place)
        path.write_bytes(data)


def test_an_artefact_is_read_again_as_it_was_written(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    """A changed weight stops a conversion, unless nobody has said what it was."""
    artefact = copied(right["hf-float16"], tmp_path)
    weights = artefact / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again = read(str(artefact))
    plan = to_gguf(again, tmp_path / "out" / "m.gguf")
    with pytest.raises(InputError, match=r"model.safetensors: is not as it was written.*remove"):
        execute(plan)
    assert sorted(os.listdir(tmp_path)) == [artefact.name]
    manifest_path(artefact).unlink()
    execute(plan)
    assert plan.output.is_file()
