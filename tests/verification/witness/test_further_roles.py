"""Special tokens with names of their own, such as image_token, are special on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgconvert.formats.read import read
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from tests.support.artefacts import write
from tests.support.fine_tunes import fine_tune

TOKENS = ("<img>", "<aud>")

NAMINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an object": lambda c: c.update(
        extra_special_tokens={"image_token": "<img>", "audio_token": "<aud>"}
    ),
    "a list": lambda c: c.update(extra_special_tokens=list(TOKENS)),
    "keys": lambda c: c.update(image_token="<img>", audio_token={"content": "<aud>"}),
}


@pytest.mark.parametrize("type_", ["hf-float16", "onnx-float32", "gguf-F16"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_they_are_carried_and_verify_agrees(naming: str, type_: str, tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "source", tokens=TOKENS)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    NAMINGS[naming](config)
    path.write_text(json.dumps(config))
    source = read(str(folder))
    plan = write(type_, source, tmp_path)
    report = verify(plan.output, plan.format, plan.type, source, "cpu", new_tokens=2, threads=1)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert Verdict.FAIL not in verdicts.values()
    assert verdicts["witness.special_tokens"] == Verdict.PASS
