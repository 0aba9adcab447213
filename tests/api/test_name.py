"""The name that the user gives a model: in paths, metadata, cards and manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

import cgconvert
from cgconvert.errors import UsageError
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.read import read


@pytest.mark.parametrize("conversion", ["to-hf", "to-onnx", "to-gguf", "quantize"])
def test_each_conversion_takes_a_name(
    conversion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"type": "Q4_0", "effort": "fast"} if conversion == "quantize" else {}
    result = cgconvert.convert("codegen-tiny-mono", conversion, name="my model-1.0", **options)
    assert result.path.is_relative_to(Path("out", "my model-1.0"))
    assert result.manifest.name == "my model-1.0"
    if result.path.suffix == ".gguf":
        metadata = read_header(result.path).metadata
        assert result.path.name.startswith("my-model-1.0-")
        assert metadata["general.name"] == "my model-1.0"
        assert metadata["general.license"] == "bsd-3-clause"  # that of the model by its own name
    else:
        card = (result.path / "README.md").read_text("utf-8")
        assert "# my model-1.0\n" in card
        assert "license: bsd-3-clause" in card
        assert "codegen-tiny-mono" in card
    if conversion != "quantize":
        assert read(str(result.path)).name == "my model-1.0"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"), ("  ", "is empty"), ("a/b", "has '/'"), ("..", "begins or ends"),
        (".hidden", "begins or ends"), ("-o", "begins or ends"), ("end.", "begins or ends"),
        ("a\\b", r"has '\\\\'"), ("a\nb", "has"), ("a\x1b[31mb", "has"), ("a:b", "has ':'"),
        ("../../etc", "has '/'"), ("nul", "a device"), ("CON.txt", "a device"),
        ("x" * 121, "more than 120 bytes"), ("\udcff", "has"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_part_of_a_path_is_refused(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"the model's `name` .*{fault}"):
        cgconvert.to_gguf("codegen-tiny-mono", name=name)
    with pytest.raises(UsageError, match="the model's `name`"):
        cgconvert.quantize("codegen-tiny-mono", bits=4, name=name)
    assert not list(tmp_path.iterdir())
