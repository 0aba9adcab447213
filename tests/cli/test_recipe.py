"""Recipes: the shipped ones load, and a mistake is reported with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cgconvert import embedded
from cgconvert.cli import recipe
from cgconvert.errors import InputError
from cgconvert.model import family
from cgconvert.verification.thresholds import known_bounds

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    loaded = recipe.load(path, known_bounds())
    assert family.is_published_checkpoint(loaded.source) or loaded.source == embedded.NAME
    assert loaded.steps[-1].command == "verify"


def test_every_published_size_has_a_recipe() -> None:
    sources = [recipe.load(path).source for path in SHIPPED]
    for size in family.SIZES:
        assert any(f"-{size}-" in source for source in sources), size
    for size in family.CODEGEN2_SIZES:
        assert f"codegen2-{size}" in sources
    assert "gpt-j-6b" in sources
    assert embedded.NAME in sources


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert recipe.find(embedded.NAME).name == f"{embedded.NAME}.yaml"
    with pytest.raises(InputError, match="no such recipe; shipped are"):
        recipe.find("nonsense")


GOOD = """\
source: codegen-tiny-mono
mp_num: 4
steps:
  - to-hf: {max-shard-size: 5GB}
  - verify
  - quantize:
      bits: 4
  - to-onnx: {bits: 4, block-size: 64, symmetric: true, accuracy-level: 0}
thresholds:
  gguf Q4_0: {logits.kl_mean: 0.5}
"""


def test_a_recipe_is_read_into_steps_and_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    loaded = recipe.load(path)
    assert loaded.source_options == {"mp_num": 4}
    assert loaded.steps == (
        recipe.Step("to-hf", {"max_shard_size": "5GB"}, 4),
        recipe.Step("verify", {}, 5),
        recipe.Step("quantize", {"bits": 4}, 6),
        recipe.Step(
            "to-onnx", {"bits": 4, "block_size": 64, "symmetric": True, "accuracy_level": 0}, 8
        ),
    )
    assert loaded.thresholds == {"gguf Q4_0": {"logits.kl_mean": 0.5}}


@pytest.mark.parametrize(
    ("text", "bound"), [("1e-6", 1e-6), ("1", 1.0), ("none", None), ("null", None)]
)
def test_thresholds_are_numbers_or_none(tmp_path: Path, text: str, bound: float | None) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD.replace("0.5", text))
    loaded = recipe.load(path, known_bounds())
    assert loaded.thresholds == {"gguf Q4_0": {"logits.kl_mean": bound}}


MISTAKES = [
    ("  - verify", "  - verfy", "5: no step 'verfy'; there are to-gguf,"),
    ("bits: 4", "bits: 5", "7: bits is one of 4, 8"),
    ("bits: 4", "format: onnx", "6: quantize needs one of bits, type, max_size, bpw, max_kl"),
    ("bits: 4", "bpw: lots", "7: bpw is not a number"),
    ("bits: 4", "tensor_type: Q6_K", "7: tensor_type must be a mapping"),
    ("bits: 4", "bots: 4", "7: quantize has no option 'bots'"),
    ("bits: 4", "bits: true", "7: bits is one of 4, 8"),
    ("symmetric: true", "symmetric: 1", "8: symmetric is not true or false"),
    ("block-size: 64", "block-size: 48", "8: block_size is one of 16, 32, 64, 128, 256"),
    ("level: 0", "level: 5", "8: accuracy_level is one of 0, 1, 2, 3, 4"),
    ("mp_num: 4", "mp_num: four", "2: mp_num is not a whole number, nor auto"),
    ("mp_num: 4", "mp_num: 0", "2: mp_num 0 is not in the range x>=1"),
    ("mp_num: 4", "colour: red", "2: 'colour' is not part of a recipe"),
    ("mp_num: 4", "source: again", "2: 'source' stands twice"),
    ("source: codegen-tiny-mono", "tokenizer: x", "1: source is missing"),
    ("thresholds:\n", "thresholds: 3\n#", "9: thresholds must be a mapping"),
    ("kl_mean: 0.5", "kl_mean: low", "10: gguf Q4_0: logits.kl_mean: 'low' is not a number"),
    ("kl_mean: 0.5", "kl_mean: .inf", "10: gguf Q4_0: logits.kl_mean: inf is not a number"),
    ("kl_mean: 0.5", "kl_mean: [1]", "10: logits.kl_mean must be a single value"),
    ("kl_mean: 0.5", "mean: 0.5", "10: gguf Q4_0: no check 'logits.mean' has a bound to set"),
    ("- verify", "- verify: {runtime: vllm}", "5: runtime is one of transformers, onnxruntime,"),
    ("- verify", "- verify: {text: []}", "5: text must be a single value"),
    ("- verify", "- verify: {text_tokens: 1}", "5: text_tokens 1 is not in the range x>=2"),
    ("  - to-hf: {max-shard-size: 5GB}\n", "", "4: verify has nothing to verify"),
    ("Q4_0: {", "Q9: {", "10: no type 'gguf Q9'"),
    ("source: codegen-tiny-mono", "source: !!python/object:os.system x", "1: "),
    ("mp_num: 4", "mp_num: [4", "3: "),
]


def test_the_number_of_groups_may_be_a_word(tmp_path: Path) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(GOOD.replace("mp_num: 4", "mp_num: auto"))
    assert recipe.load(path).source_options == {"mp_num": "auto"}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_is_reported_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(f"{path}:{message}")) as caught:
        recipe.load(path, known_bounds())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "null", "[" * 5000, "a: &a [*a]", "\x00"])
def test_other_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(str(path))):
        recipe.load(path)


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        recipe.load(path)
