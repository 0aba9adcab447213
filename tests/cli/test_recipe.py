"""Recipes: the shipped ones load, and a mistake is reported with its line."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from cgconvert import embedded
from cgconvert.cli import recipe, shipped
from cgconvert.cli.main import cli
from cgconvert.errors import InputError
from cgconvert.model import family
from cgconvert.verification.thresholds import known_bounds

STEPS = ("to-hf", "to-onnx", "to-gguf", "quantize", "verify")

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    (loaded,) = recipe.load(path, known_bounds())
    assert family.is_published_checkpoint(loaded.source) or loaded.source == embedded.NAME
    assert loaded.steps[-1].command == "verify"


@pytest.mark.parametrize("name", family.NAMES)
def test_a_published_name_chooses_the_recipe_of_its_size(name: str) -> None:
    path = shipped.find(name)
    (loaded,) = recipe.load(path, source=shipped.implied_source(name))
    assert loaded.source == name
    own, chosen = family.geometry(name), family.geometry(path.stem)
    assert (own.n_layer, own.n_embd) == (chosen.n_layer, chosen.n_embd)
    same_model = [p.stem for p in SHIPPED if p.stem != embedded.NAME and
                  family.published(p.stem).model == family.published(name).model
                  and family.geometry(p.stem).n_layer == own.n_layer]  # fmt: skip
    assert not same_model or path.stem in same_model


NAMES = [
    ("CODEGEN-350m-mono", "codegen-350M-mono", None),
    ("codegen-350M-mono.yaml", "codegen-350M-mono", None),
    ("codegen2-3_7B", "codegen2-3_7B", None),
    ("Codegen-2b-Multi", "codegen-2B-mono", "codegen-2B-multi"),
    ("salesforce/CodeGen-2B-nl", "codegen-2B-mono", "Salesforce/codegen-2B-nl"),
    ("EleutherAI/gpt-j-6b", "gpt-j-6b", None),
    (embedded.NAME.upper(), embedded.NAME, None),
]


@pytest.mark.parametrize(("name", "chosen", "source"), NAMES)
def test_names_may_be_in_any_case_and_have_an_organisation(
    name: str, chosen: str, source: str | None
) -> None:
    assert shipped.find(name).stem == chosen
    assert shipped.implied_source(name) == source


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("codegen-350M-mon", "no such recipe; did you mean codegen-350M-mono or"),
        ("nonsense", "no such recipe; shipped are codegen-tiny-mono, codegen-350M-mono, "),
        ("someone/codegen-2B-nl", "is no recipe; for a model of your own: codegen-350M-mono --sou"),
        ("nowhere/mine.yaml", "no such recipe; shipped are"),
    ],
)
def test_what_is_no_recipe_is_told_with_what_to_do(name: str, advice: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{name}: {advice}")):
        shipped.find(name)


def test_every_published_size_has_a_recipe() -> None:
    sources = [recipe.load(path)[0].source for path in SHIPPED]
    for size in family.SIZES:
        assert any(f"-{size}-" in source for source in sources), size
    for size in family.CODEGEN2_SIZES:
        assert f"codegen2-{size}" in sources
    assert "gpt-j-6b" in sources
    assert embedded.NAME in sources


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert shipped.find(embedded.NAME).name == f"{embedded.NAME}.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(GOOD)
    assert shipped.find(str(own)) == own


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
    (loaded,) = recipe.load(path)
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
    (loaded,) = recipe.load(path, known_bounds())
    assert loaded.thresholds == {"gguf Q4_0": {"logits.kl_mean": bound}}


MISTAKES = [
    ("  - verify", "  - verfy", "5: no step 'verfy'; there are to-gguf,"),
    ("bits: 4", "bits: 5", "7: bits 5 is not one of 4, 8"),
    ("bits: 4", "format: onnx", "6: quantize needs one of bits, type, max_size, bpw, max_kl"),
    ("bits: 4", "bpw: lots", "7: bpw lots is not a number"),
    ("bits: 4", "tensor_type: Q6_K", "7: tensor_type must be a mapping"),
    ("bits: 4", "bots: 4", "7: quantize has no option 'bots'"),
    ("bits: 4", "bits: true", "7: bits is not one of 4, 8"),
    ("symmetric: true", "symmetric: 1", "8: symmetric 1 is not true or false"),
    ("block-size: 64", "block-size: 48", "8: block_size 48 is not one of 16, 32, 64, 128, 256"),
    ("level: 0", "level: 5", "8: accuracy_level 5 is not one of 0, 1, 2, 3, 4"),
    ("mp_num: 4", "mp_num: four", "2: mp_num four is not a whole number, nor auto"),
    ("mp_num: 4", "mp_num: 0", "2: mp_num 0 is not in the range 1<=x<=4096"),
    ("mp_num: 4", "colour: red", "2: 'colour' is not part of a recipe"),
    ("mp_num: 4", "source: again", "2: 'source' stands twice"),
    ("source: codegen-tiny-mono", "tokenizer: x", "1: source is missing"),
    ("thresholds:\n", "thresholds: 3\n#", "9: thresholds must be a mapping"),
    ("kl_mean: 0.5", "kl_mean: low", "10: gguf Q4_0: logits.kl_mean: 'low' is not a number"),
    ("kl_mean: 0.5", "kl_mean: .inf", "10: gguf Q4_0: logits.kl_mean: inf is not a number"),
    ("kl_mean: 0.5", "kl_mean: [1]", "10: logits.kl_mean must be a single value"),
    ("kl_mean: 0.5", "mean: 0.5", "10: gguf Q4_0: no check 'logits.mean' has a bound to set"),
    (
        "- verify",
        "- verify: {runtime: vllm}",
        "5: runtime vllm is not one of transformers,",
    ),
    ("- verify", "- verify: {text: []}", "5: text: the list is empty"),
    ("- verify", "- verify: {text: [[a]]}", "5: text must be a single value"),
    ("- verify", "- verify: {device: [cpu, cuda]}", "5: device must be a single value; for a step"),
    ("- verify", "- verify: {threshold: {mean: 1}}", "5: threshold: no check 'mean'"),
    ("- verify", "- verify: {mp_num: 0}", "5: mp_num 0 is not in the range"),
    ("bits: 4", "matrix: {bits: [4, 5]}", "7: bits 5 is not one of 4, 8"),
    ("bits: 4", "matrix: {bits: []}", "7: bits has no value in the matrix"),
    ("bits: 4", "matrix: {}", "7: the matrix is empty"),
    ("bits: 4", "matrix: 4", "7: matrix must be a mapping"),
    ("bits: 4", "matrix: {bots: [4]}", "7: quantize has no option 'bots'"),
    ("bits: 4", "matrix: {bits: [4], bits: [8]}", "7: 'bits' stands twice"),
    ("bits: 4", "matrix: {max-size: [1GB], max_size: [2GB]}", "7: 'max_size' stands twice"),
    ("bits: 4", "bits: 4\n      matrix: {bits: [8]}", "7: bits stands among the options and"),
    ("bits: 4", "matrix: {bits: [4], bpw: [5]}", "6: quantize needs one of bits, type"),
    ("bits: 4", "bpw: [4, 5]", "7: bpw must be a single value; for a step for each value write"),
    ("bits: 4", "bits: 4\n      output: x-${{ matrix.bits }}", "8: ${{ matrix.bits }} is not"),
    ("bits: 4", "bits: 4\n      output: ${{ secrets.TOKEN }}", "8: ${{ secrets.TOKEN }} is not"),
    ("mp_num: 4", "matrix: {type: [Q8_0]}", "2: no step uses type of the matrix"),
    ("mp_num: 4", f"matrix: {{mp_num: {list(range(1, 300))}}}", "2: the matrix has more than 256"),
    ("- verify", "- verify: {text_tokens: 1}", "5: text_tokens 1 is not in the range 2<=x<="),
    ("  - to-hf: {max-shard-size: 5GB}\n", "", "4: verify has nothing to verify"),
    ("Q4_0: {", "Q9: {", "10: no type 'gguf Q9'"),
    ("source: codegen-tiny-mono", "source: !!python/object:os.system x", "1: "),
    ("mp_num: 4", "mp_num: [4", "3:6: is not YAML: expected ',' or ']', but got ':'"),
]


def read(tmp_path: Path, text: str, source: str | None = None) -> tuple[recipe.Recipe, ...]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return recipe.load(path, known_bounds(), source)


MATRICES = [
    "  - quantize: {effort: fast, matrix: {type: [Q8_0, q4_k_m]}}",
    "  - quantize: {effort: fast}\n    matrix: {type: [Q8_0, Q4_K_M]}",
    "  - quantize:\n      effort: fast\n      matrix:\n        type:\n          - Q8_0\n"
    "          - Q4_K_M",
    "  - matrix: {type: [Q8_0, Q4_K_M]}\n    quantize: {effort: fast}",
    "  - quantize: {matrix: {effort: fast, type: [Q8_0, Q4_K_M]}}",
]


@pytest.mark.parametrize("steps", MATRICES)
def test_a_matrix_is_a_step_for_each_value(tmp_path: Path, steps: str) -> None:
    (loaded,) = read(tmp_path, f"source: codegen-tiny-mono\nsteps:\n{steps}\n  - verify\n")
    assert [step.command for step in loaded.steps] == ["quantize", "quantize", "verify"]
    assert [dict(step.options) for step in loaded.steps] == [
        {"effort": "fast", "type": "Q8_0"}, {"effort": "fast", "type": "Q4_K_M"}, {},
    ]  # fmt: skip


def test_a_matrix_combines_its_values_and_names_them_in_texts(tmp_path: Path) -> None:
    (loaded,) = read(
        tmp_path,
        "source: codegen-tiny-mono\n"
        "steps:\n"
        "  - to-onnx:\n"
        "      bits: 4\n"
        "      output: onnx-${{ matrix.block-size }}-${{matrix.symmetric}}\n"
        "      matrix: {block-size: [32, 64], symmetric: [true, false]}\n",
    )
    values = [(s.options["output"], s.options["block_size"]) for s in loaded.steps]
    assert values == [
        ("onnx-32-true", 32), ("onnx-32-false", 32), ("onnx-64-true", 64), ("onnx-64-false", 64),
    ]  # fmt: skip


PER_SOURCE = """\
matrix:
  source: [codegen-350M-mono, codegen-350M-multi]
  type: [Q8_0, Q4_K_M]
mp_num: 4
steps:
  - to-gguf: {type: "${{ matrix.type }}", output: "${{ matrix.source }}.gguf"}
  - verify
"""


def test_a_matrix_at_the_top_is_a_recipe_for_each_combination(tmp_path: Path) -> None:
    recipes = read(tmp_path, PER_SOURCE)
    assert [(r.source, r.steps[0].options["type"]) for r in recipes] == [
        ("codegen-350M-mono", "Q8_0"), ("codegen-350M-mono", "Q4_K_M"),
        ("codegen-350M-multi", "Q8_0"), ("codegen-350M-multi", "Q4_K_M"),
    ]  # fmt: skip
    assert all(r.steps[0].options["output"] == f"{r.source}.gguf" for r in recipes)
    assert all(len(r.steps) == 2 and r.source_options == {"mp_num": 4} for r in recipes)


def test_the_examples_of_the_documentation_are_recipes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(examples) == 3
    for text in examples:
        source = None if "source" in text else "codegen-tiny-mono"
        assert read(tmp_path, text, source)


def test_a_source_of_the_command_line_takes_the_place_of_all_others(tmp_path: Path) -> None:
    recipes = read(tmp_path, PER_SOURCE, "./mine")
    assert [(r.source, r.steps[0].options["type"]) for r in recipes] == [
        ("./mine", "Q8_0"), ("./mine", "Q4_K_M"),
    ]  # fmt: skip
    assert recipes[0].steps[0].options["output"] == "./mine.gguf"
    (loaded,) = read(tmp_path, GOOD, "./mine")
    assert (loaded.source, loaded.source_options) == ("./mine", {"mp_num": 4})
    (loaded,) = read(tmp_path, GOOD.replace("source: codegen-tiny-mono\n", ""), "./mine")
    assert loaded.source == "./mine"


def test_steps_take_the_options_of_their_commands(tmp_path: Path) -> None:
    """All that a command has a flag for, but the plan alone and what concerns the terminal."""
    for name, command in ((name, cli.get_command(click.Context(cli), name)) for name in STEPS):
        assert command is not None
        flags = {parameter.name for parameter in command.params if parameter.expose_value}
        assert flags - recipe.steps()[name].keys() == (
            {"artefact"} if name == "verify" else {"source", "dry_run", "tensors"}
        ), name
    (loaded,) = read(
        tmp_path,
        "source: codegen-tiny-mono\n"
        "steps:\n"
        "  - to-gguf: {allow-nonfinite: true, force: true, mp_num: auto, adapter: [a, b]}\n"
        "  - verify: {report: [a.html, b.xml], text: stdlib, threshold: {logits.kl_mean: none},"
        " reference: x}\n",
    )
    assert dict(loaded.steps[0].options) == {
        "allow_nonfinite": True, "force": True, "mp_num": "auto", "adapter": ("a", "b"),
    }  # fmt: skip
    assert dict(loaded.steps[1].options) == {
        "report": ("a.html", "b.xml"), "text": ("stdlib",), "threshold": {"logits.kl_mean": None},
        "reference": "x",
    }  # fmt: skip


def test_a_recipe_or_a_step_may_be_without_the_cache(tmp_path: Path) -> None:
    (loaded,) = read(
        tmp_path, "source: x\ncache: false\nsteps: [to-hf, to-gguf: {cache: false}, verify]\n"
    )
    assert not loaded.cache
    assert [step.options.get("cache") for step in loaded.steps] == [None, False, None]
    (loaded,) = read(tmp_path, "source: x\nsteps: [to-hf]\n")
    assert loaded.cache


def test_the_number_of_groups_may_be_a_word(tmp_path: Path) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(GOOD.replace("mp_num: 4", "mp_num: auto"))
    assert recipe.load(path)[0].source_options == {"mp_num": "auto"}


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
