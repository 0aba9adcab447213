"""A source generates text before it is converted, and nothing is written."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cgconvert
from cgconvert import embedded
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.read import read
from cgconvert.runtimes import source as source_module
from cgconvert.runtimes.source import SourceRuntime
from cgconvert.verification.reference import Reference

PROMPT = "def __init__(self, name):"
CONTINUATION = "\n        self.name ="


def test_logits_are_those_of_the_reference_however_the_tokens_are_fed() -> None:
    checkpoint = read(embedded.NAME)
    ids = checkpoint.tokenizer.encode(
        "import os\n\n\ndef main(path):\n    return os.listdir(path)\n"
    )
    (expected,) = Reference(checkpoint.decoder).logits([ids])
    runtime = SourceRuntime(checkpoint, "cpu")
    for pieces in ((len(ids),), (1,) * len(ids), (4, 1, 1, len(ids) - 6)):
        runtime.reset()
        edges = np.cumsum([0, *pieces])
        logits = [runtime.feed(ids[a:b]) for a, b in itertools.pairwise(edges)]
        assert np.abs(np.concatenate(logits) - expected).max() < 1e-3
    runtime.reset()
    assert np.abs(runtime.feed_last(ids) - expected[-1]).max() < 1e-3
    with pytest.raises(UsageError, match="more than the model's context"):
        runtime.feed([0] * runtime.n_positions)
    with pytest.raises(UsageError, match="outside the model's"):
        runtime.feed([checkpoint.geometry.vocab_size])


def test_each_kind_of_source_continues_a_prompt_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(embedded.path(), folder)
    (folder / "cgconvert.json").unlink(missing_ok=True)
    shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "folder")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = sorted(os.listdir(folder))
    sources = ("codegen-tiny-mono", "CODEGEN-tiny-mono", folder, read(str(folder)))
    for source in sources:
        assert cgconvert.generate(source, PROMPT, max_new_tokens=6) == PROMPT + CONTINUATION
    assert sorted(os.listdir(folder)) == before
    assert not os.listdir(tmp_path / "work")


@pytest.mark.parametrize("layout", ["torch", "torch-sharded", "gptj", "jaxformer"])
def test_each_layout_continues_a_prompt(
    layout: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint(layout)
    checkpoint = read(str(path))
    text = cgconvert.generate(path, "import os", max_new_tokens=4)
    ids = checkpoint.tokenizer.encode("import os")
    for _ in range(4):
        (logits,) = Reference(checkpoint.decoder).logits([ids])
        ids.append(int(logits[-1][: checkpoint.tokenizer.size].argmax()))
    assert text == checkpoint.tokenizer.decode(ids)


def test_a_source_and_its_artefact_generate_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = cgconvert.to_hf("codegen-tiny-mono", tmp_path / "hf").path
    assert cgconvert.generate(artefact, PROMPT, max_new_tokens=12) == cgconvert.generate(
        "codegen-tiny-mono", PROMPT, max_new_tokens=12
    )


def test_what_cannot_be_generated_with_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is a source, which cgconvert computes itself"):
        cgconvert.generate("codegen-tiny-mono", "x", runtime="transformers")
    with pytest.raises(InputError, match="did you mean codegen-350M-mono"):
        cgconvert.generate("codegen-350M-momo", "x")
    monkeypatch.setattr(source_module, "available_memory", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"needs 27\.3 MB of memory in float32, 1\.05 MB are free"):
        cgconvert.generate("codegen-tiny-mono", "x")
