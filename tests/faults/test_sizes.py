"""Options that are given pipes, devices, files of the kernel, and files of gigabytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cgconvert import embedded
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.texts import text as texts
from cgconvert.texts.text import Text
from tests.faults.server import Server
from tests.faults.test_matrix import CPU_SECONDS, MEMORY_BYTES, snapshot, write_input
from tests.faults.valid_inputs import ValidInputs


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 8 << 40)


FILES: Mapping[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": link("/dev/zero"),
    "a file of the kernel": link("/proc/self/mem"),
    "8 TiB": hole,
    "a folder": Path.mkdir,
}

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "text": ("verify", "valid.gguf", "--reference", "valid", "--text", "file"),
    "calibration": ("quantize", "valid", "--bits", "4", "--calibration", "file", "-o", "o.gguf"),
    "dry run": (
        "quantize", "valid", "--bits", "4", "--calibration", "file", "-o", "o.gguf", "--dry-run",
    ),
    "tokenizer": ("to-gguf", "valid", "--tokenizer", "file", "-o", "o.gguf"),
    "config": ("to-gguf", "valid", "--config", "file", "-o", "o.gguf"),
    "imatrix": ("quantize", "valid", "--bits", "4", "--imatrix", "file", "-o", "o.gguf"),
    "adapter": ("to-gguf", "valid", "--adapter", "file", "-o", "o.gguf"),
    "reference": ("verify", "valid.gguf", "--reference", "file"),
    "source": ("to-onnx", "file", "-o", "o"),
    "inspect": ("inspect", "file"),
    "verify": ("verify", "file"),
    "generate": ("generate", "file", "x"),
    "recipe": ("run", "file"),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_no_regular_file_is_refused_in_one_line(
    option: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    write_input("safetensors", valid_inputs, tmp_path)
    for kind, make in FILES.items():
        path = tmp_path / "file"
        make(path)
        before = snapshot(tmp_path)
        outcome = server.run(*OPTIONS[option], cwd=tmp_path)
        command_and_output = f"{option}, {kind}: {outcome}"
        assert outcome.code in (2, 3), command_and_output
        assert outcome.err.startswith("cgconvert: file: "), command_and_output
        assert outcome.err.count("\n") == 1, command_and_output
        assert outcome.seconds < CPU_SECONDS, command_and_output
        assert outcome.grown < MEMORY_BYTES, command_and_output
        assert snapshot(tmp_path) == before, command_and_output
        path.rmdir() if kind == "a folder" else path.unlink()


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
def test_numbers_that_concern_no_weights_cost_nothing(
    kind: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    source = write_input(kind, valid_inputs, tmp_path)
    config = json.loads((source / "config.json").read_text())
    labels = {str(i): "x" for i in range(90_000)}
    for entry in ({"num_labels": 10**9}, {"id2label": labels}, {"max_length": 10**18}):
        (source / "config.json").write_text(json.dumps(config | entry))
        for arguments in (
            ("inspect", "source"),
            ("verify", "valid.gguf", "--reference", "source", "--quick"),
            ("to-gguf", "source", "--dry-run", "-o", "o.gguf"),
        ):
            outcome = server.run(*arguments, cwd=tmp_path)
            assert outcome.code in (0, 3, 4), outcome
            assert outcome.seconds < CPU_SECONDS, outcome
            assert outcome.grown < MEMORY_BYTES, outcome


def test_only_the_beginning_of_a_long_text_is_turned_into_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = Tokenizer.load(embedded.path())
    monkeypatch.setattr(texts, "MAX_ENCODED_BYTES", 100)
    text = Text("text", ("x = 1\n" * 1000, "y"), "")
    assert len(text.ids(tokenizer)) < 120
    assert len(text.ids(tokenizer, 500)) == 500
