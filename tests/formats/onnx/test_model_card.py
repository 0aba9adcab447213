"""The model card of an ONNX folder: true of its source, and its snippets run."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cgconvert import embedded
from cgconvert.formats.onnx.model_card import model_card
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.onnx.writer import plan
from cgconvert.formats.read import read
from cgconvert.write.execute import execute


def front_matter(card: str) -> dict[str, object]:
    front: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_the_snippet_for_genai_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = execute(plan(read(embedded.NAME), tmp_path / "onnx", bits=4))
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "README.md" in manifest.files
    snippet = re.search(r"```python\n(import onnxruntime_genai.*?)```", card, re.DOTALL)
    assert snippet
    monkeypatch.chdir(tmp_path / "onnx")
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(snippet[1], {})
    assert printed.getvalue().startswith("def hello_world():")


@pytest.mark.parametrize(
    ("variant", "contained", "absent"),
    [
        (Variant(), ("model.onnx", "optimum", "transformers.js", "dtype: 'fp32'"), ()),
        (Variant(bits=4), ("model_q4.onnx", "optimum", "dtype: 'q4'"), ("cuda",)),
        (Variant(client="transformers.js"), ("library_name: transformers.js",), ("optimum", "og.")),
        (
            Variant("float16", target="cuda"),
            ("onnxruntime-genai-cuda", "no padding before a prompt"),
            ("optimum", "npm"),
        ),
    ],
)
def test_a_card_names_the_clients_of_its_graph(
    variant: Variant, contained: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    card = model_card(read(embedded.NAME), variant, 1_500_000)
    assert all(text in card for text in contained)
    assert not any(text in card for text in absent)
    assert "| size | 1.5 MB |" in card
    assert front_matter(card)["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize(
    ("name", "license_name"), [("codegen-350M-mono", "bsd-3-clause"), ("my-tune", None)]
)
def test_a_licence_is_named_where_it_is_known(name: str, license_name: str | None) -> None:
    source = replace(read(embedded.NAME), name=name)
    front = front_matter(model_card(source, Variant(), 1))
    assert front.get("license") == license_name
    assert ("base_model" in front) is (license_name is not None)
