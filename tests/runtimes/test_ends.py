"""Generation stops at the ends that an artefact names, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cgconvert.cli.main import main
from tests.support.fine_tunes import FIRST_ID, fine_tune

TOKENS = ("<eom>", "<a>", "<b>", "<c>")
RUNTIMES = ("transformers", "llama.cpp", "onnxruntime", "onnxruntime-genai")
COMMANDS = {"transformers": "to-hf", "llama.cpp": "to-gguf"}


def generated(runtime: str, source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Convert a fine-tune, and return what the command prints after the prompt `def`."""
    output = folder / ("model.gguf" if runtime == "llama.cpp" else "model")
    command = COMMANDS.get(runtime, "to-onnx")
    for arguments in (
        [command, str(source), "-o", str(output)],
        ["generate", str(output), "def", "--runtime", runtime, "--max-new-tokens", "3"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code
    return capsys.readouterr().out.removesuffix("\n").removeprefix("def")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("likely", "options"),
    [
        (FIRST_ID, {"roles": {"eos_token": "<eom>"}}),
        (FIRST_ID, {"generation": {"eos_token_id": [3967, FIRST_ID]}}),
        (FIRST_ID + 2, {
            "roles": {"eos_token": "<eom>"},
            "generation": {"eos_token_id": [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]},
        }),
    ],
)  # fmt: skip
def test_generation_stops_at_once(
    runtime: str, likely: int, options: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = fine_tune(tmp_path / "source", tokens=TOKENS, likely=likely, **options)
    assert generated(runtime, source, tmp_path, capsys) == ""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_token_is_no_end(
    runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fine_tune(
        tmp_path / "source", tokens=TOKENS, likely=FIRST_ID + 3, roles={"eos_token": "<eom>"}
    )
    assert generated(runtime, source, tmp_path, capsys) == "<c>" * 3
