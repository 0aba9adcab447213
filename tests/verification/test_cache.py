"""A verdict names what came from the cache, and no entry that somebody else made changes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

import cgconvert
from cgconvert.io.cache import cache_folder
from cgconvert.verification.report.html import as_html
from cgconvert.verification.report.junit import as_junit
from cgconvert.verification.report.markdown import as_markdown
from cgconvert.verification.report.model import Report, as_json_object
from cgconvert.verification.report.text import as_table
from tests.conftest import first_layers
from tests.support.reports import report

DIGEST_BYTES = hashlib.sha256().digest_size

USED: dict[str, Any] = {"allowed": True, "used": True, "for": ("outputs of the reference",)}
UNUSED = {"allowed": True, "used": False, "for": ()}
GROUPS = "groups of qkv_proj that text shows"
OFF = {"allowed": False, "used": False, "for": ()}


def entries() -> list[Path]:
    return sorted((cache_folder() / "reference").iterdir())


def forge(path: Path) -> None:
    """Replace the logits of an entry by others; its digest is that of a version without a key."""
    arrays = load(path.read_bytes()[DIGEST_BYTES:])
    arrays["logits"] = np.flip(arrays["logits"], axis=-1).copy()
    data = save(arrays)
    path.write_bytes(hashlib.sha256(data).digest() + data)


def test_a_forged_reference_changes_no_verdict(tmp_path: Path) -> None:
    source = first_layers(1, positions=128)
    result = cgconvert.to_gguf(source, tmp_path / "model.gguf", type="F16")

    def verified() -> Report:
        (only,) = cgconvert.verify(result, reference=source, device="cpu").reports
        return only

    first = verified()
    assert first.cache == UNUSED
    kept = entries()
    for path in kept:
        forge(path)
    second = verified()
    assert second.cache == {**USED, "for": (GROUPS,)}
    assert second.checks == first.checks
    assert entries() == kept
    third = verified()
    assert third.cache == {**USED, "for": (*USED["for"], GROUPS)}
    assert third.checks == first.checks


CACHES: dict[str, tuple[dict[str, Any], str]] = {
    "used": (USED, "cache used for outputs of the reference"),
    "not used": (UNUSED, "cache not used"),
    "off": (OFF, "without the cache"),
}


@pytest.mark.parametrize("state", CACHES)
def test_every_report_names_it(state: str) -> None:
    cache, words = CACHES[state]
    of_state = replace(report(), cache=cache)
    json_object = json.loads(json.dumps(as_json_object([of_state])))
    assert json_object["artefacts"][0]["cache"] == {**cache, "for": list(cache["for"])}
    assert words in as_table(of_state)
    assert words in as_markdown(json_object)
    assert f"<dt>cache: used</dt><dd>{cache['used']}</dd>" in as_html(json_object)
    junit = as_junit(json_object)
    for name, value in {**cache, "for": ", ".join(cache["for"])}.items():
        assert f'<property name="cache.{name}" value="{value}" />' in junit
