"""Names of files that are not UTF-8, hold control characters, or cannot be names at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import cgconvert
from cgconvert.errors import CgconvertError
from tests.faults.server import Server
from tests.faults.valid_inputs import INPUT_NAMES, ValidInputs

STRANGE = os.fsdecode(b"na\xffme\x1b[31m\n")
"""Not UTF-8, a control sequence that turns text red, and a line break."""

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inspect": ("safetensors", ("inspect", "{input}")),
    "to-gguf": ("safetensors", ("to-gguf", "{input}", "-o", "{name}.gguf")),
    "to-hf": ("torch", ("to-hf", "{input}", "-o", "{name}-hf")),
    "to-onnx": ("gguf", ("to-onnx", "{input}", "-o", "{name}-onnx")),
    "jaxformer": ("jaxformer", ("to-gguf", "{input}", "--dry-run")),
    "quantize": ("onnx", ("quantize", "{input}", "--bits", "8", "-o", "{name}-q.gguf")),
    "tarball": ("tarball", ("to-gguf", "{input}", "-o", "a.gguf", "--tokenizer", "tokenizer")),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_strange_name_works(
    case: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path, tokenizer_folder: Path
) -> None:
    kind, template = COMMANDS[case]
    source = valid_inputs.copy(kind, tmp_path)
    suffixes = INPUT_NAMES[kind].partition(".")
    renamed = source.rename(tmp_path / f"{STRANGE}{suffixes[1]}{suffixes[2]}")
    if renamed.is_dir():
        (renamed / f"{STRANGE}.json").write_text("[]")
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder)
    arguments = [part.format(input=renamed.name, name=STRANGE) for part in template]
    environment = {"CGCONVERT_CACHE": str(tmp_path / "cache")}
    outcome = server.run(*arguments, cwd=tmp_path, env=environment)
    assert outcome.code == 0, outcome.err
    for line in (outcome.out + outcome.err).split("\n"):
        assert line.isprintable(), line
    if "-o" in arguments:
        output = tmp_path / arguments[arguments.index("-o") + 1]
        beside = output.with_name(f"{output.name}.cgconvert.json")
        manifest = output / "cgconvert.json" if output.is_dir() else beside
        content = json.loads(manifest.read_bytes())
        assert content["source"]["origin"]["given"] == renamed.name
        assert content["name"].isprintable()
        again = server.run("inspect", output.name, cwd=tmp_path)
        assert again.code == 0, again.err


@pytest.mark.parametrize("kind", ["hf", "onnx", "gguf"])
@pytest.mark.parametrize("command", ["generate", "verify"])
def test_a_runtime_cannot_open_what_is_not_utf8(
    kind: str, command: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    valid_inputs.copy("safetensors", tmp_path)
    (tmp_path / "source").rename(tmp_path / "valid")
    source = valid_inputs.copy(kind, tmp_path)
    renamed = source.rename(tmp_path / f"{STRANGE}{source.suffix}")
    arguments = {
        "generate": ("generate", renamed.name, "x"),
        "verify": ("verify", renamed.name, "--reference", "valid"),
    }[command]
    outcome = server.run(*arguments, cwd=tmp_path)
    assert outcome.code == 3, outcome.err
    (line,) = outcome.err.strip("\n").split("\n")
    assert line.isprintable()
    assert "its name is not UTF-8, which no runtime can open; rename it" in line


@pytest.mark.parametrize("command", ["inspect", "to-gguf", "verify", "generate", "run", "clean"])
@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000])
def test_a_name_that_is_too_long_is_one_line(
    command: str, name: str, server: Server, tmp_path: Path
) -> None:
    outcome = server.run(command, name, *("x",) * (command == "generate"), cwd=tmp_path)
    assert outcome.code == 3, outcome
    assert outcome.err.startswith("cgconvert: n"), outcome
    assert outcome.err.endswith(": no file has such a name\n"), outcome


def test_the_base_of_an_adapter_may_have_no_possible_name(
    server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    config = valid_inputs.copy("adapter", tmp_path) / "adapter_config.json"
    entries = json.loads(config.read_bytes())
    for name in ("n" * 5000, "n/" * 3000, "a\0b", "\ud800"):
        config.write_text(json.dumps({**entries, "base_model_name_or_path": name}))
        outcome = server.run("inspect", "source", cwd=tmp_path)
        assert outcome.code == 3, outcome
        assert outcome.err.count("\n") == 1, outcome
        assert "source/adapter_config.json: " in outcome.err


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "n" * 300, "n/" * 3000])
def test_what_cannot_be_a_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls: dict[str, Callable[[], object]] = {
        "source": lambda: cgconvert.load(name),
        "organisation": lambda: cgconvert.load(f"{name}/{name}"),
        "tokenizer": lambda: cgconvert.load("codegen-tiny-mono", tokenizer=name),
        "config": lambda: cgconvert.load("codegen-tiny-mono", config=name),
        "output": lambda: cgconvert.to_gguf("codegen-tiny-mono", f"{name}.gguf"),
        "output folder": lambda: cgconvert.to_hf("codegen-tiny-mono", name),
        "artefact": lambda: cgconvert.verify(name),
        "artefact to run": lambda: next(cgconvert.stream_generate(name, "x")),
        "model to describe": lambda: cgconvert.inspect(name),
        "path to clean": lambda: cgconvert.clean(name),
    }
    for label, call in calls.items():
        with pytest.raises(CgconvertError):
            call()
        assert list(tmp_path.iterdir()) == [], label
