"""A wrong reference is found first and said alone; a conversion bug is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint, Decoder, Layer
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.verification.other_model import check_reference
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.verify import verify
from cgconvert.write.hashing import hash_checkpoint
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.mutations import WRONG
from tests.support.artefacts import copied, write_all
from tests.support.tampering import GEOMETRY, checkpoint, tokenizer

TYPES = ("hf-float16", "hf-phi-float16", "onnx-float32", "onnx-int4", "gguf-F16", "gguf-Q8_0",
         "gguf-Q4_0")  # fmt: skip


@pytest.fixture(scope="module")
def right(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return write_all(TYPES, source, tmp_path_factory.mktemp("right"))


def elsewhere(model: Checkpoint, path: Path) -> Checkpoint:
    """The model with files of other bytes, from another place."""
    weights = path / "other.bin"
    weights.write_bytes(b"of another source")
    return replace(model, files=(weights,), origin={"given": "elsewhere"}, name="other-mono")


def on_every_layer(source: Checkpoint, change: Callable[[Layer], Layer]) -> Checkpoint:
    d = source.decoder
    return replace(source, decoder=replace(d, layers=tuple(map(change, d.layers))))


def noisy(tensor: LazyTensor, share: float) -> LazyTensor:
    values = tensor.read().float()
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(5)) * values.std()
    return InMemoryTensor(((1 - share) * values + share * noise).to(tensor.dtype.torch_dtype))


def other_weights(source: Checkpoint) -> Checkpoint:
    """Another model of the same size: every number is another one."""
    d = source.decoder
    names = ("wte", "head", "head_bias", "ln_f_weight", "ln_f_bias")
    ends: dict[str, Any] = {name: noisy(getattr(d, name), 1.0) for name in names}
    decoder: Decoder = replace(d, **ends)
    changed = replace(source, decoder=decoder)
    return on_every_layer(
        changed, lambda layer: Layer(**{name: noisy(t, 1.0) for name, t in vars(layer).items()})
    )


LIGHTLY = dict.fromkeys(TYPES, 0.02) | {"gguf-Q4_0": 0.1, "onnx-int4": 0.1}
"""The noise of a fine-tune that changes numbers by more than the rounding of the type, not by much
more: the bounds of a search would allow it."""


def fine_tune(source: Checkpoint, share: float = 0.3) -> Checkpoint:
    """A merged adapter: the values of each layer are a little different."""
    return on_every_layer(source, lambda layer: replace(layer, v=noisy(layer.v, share)))


def smaller(source: Checkpoint, path: Path) -> Checkpoint:
    (path / "smaller").mkdir()
    return checkpoint(path / "smaller", replace(GEOMETRY, n_embd=128, n_layer=2))


def other_tokens(source: Checkpoint) -> Checkpoint:
    """A tokenizer in which each letter has another id."""
    own = tokenizer()
    letters = list(own.vocabulary)
    vocabulary = {letter: own.vocabulary[letters[i - 1]] for i, letter in enumerate(letters)}
    return replace(source, tokenizer=Tokenizer.from_parts(vocabulary, own.merges, own.added))


def judged(plan: Plan, artefact: Path, reference: Checkpoint) -> str:
    sha256 = hash_checkpoint(reference)["sha256"]
    check = check_reference(artefact, plan.format, reference, sha256)
    assert check is None or check.verdict == Verdict.FAIL
    return check.detail if check else ""


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("type_", TYPES)
def test_another_model_is_found(
    type_: str, has_manifest: bool, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    plan, artefact = right[type_], copied(right[type_], tmp_path)
    if not has_manifest:
        manifest_path(artefact).unlink()
    others = {
        "tensors" if not has_manifest else "3 of 3 layers": other_weights(source),
        "it has 3 layers of 256, other-mono has 2 layers of 128": smaller(source, tmp_path),
        "tokens are not those of other-mono's tokenizer": other_tokens(source),
    }
    models = list(others.items())
    if has_manifest:
        words = "of 3 layers hold other numbers than other-mono"
        models += [(words, fine_tune(source)), (words, fine_tune(source, LIGHTLY[type_]))]
    for words, model in models:
        detail = judged(plan, artefact, elsewhere(model, tmp_path))
        is_certain = not has_manifest or "layers of 128" in words
        kind = "another model than the one" if is_certain else "not the source that"
        start = f"the reference is {kind} this artefact was made from: "
        assert detail.startswith(start), (words, detail)
        assert words in detail
        assert ("it was made from somewhere; " in detail) == has_manifest
    assert judged(plan, artefact, elsewhere(source, tmp_path)) == ""


def permuted(source: Checkpoint) -> Checkpoint:
    """A bug that takes the rows of every matrix in reverse order."""

    def reverse(tensor: LazyTensor) -> LazyTensor:
        return tensor.rows(np.arange(tensor.shape[0])[::-1].copy())

    return on_every_layer(
        source,
        lambda layer: Layer(
            **{n: reverse(t) if len(t.shape) == 2 else t for n, t in vars(layer).items()}
        ),
    )


BUGS = {name: WRONG[name] for name in sorted(WRONG)} | {"every row permuted": permuted}


@pytest.mark.parametrize("type_", ["hf-float16", "gguf-F16", "gguf-Q8_0", "onnx-int4"])
def test_a_conversion_bug_is_not_another_model(
    type_: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    """Without a manifest, the artefact is compared with the source as the bug would write it."""
    plan, artefact = right[type_], copied(right[type_], tmp_path)
    names = list(BUGS)[sorted(TYPES).index(type_) % 2 :: 2]  # each bug in two of the types
    for name in names:
        assert judged(plan, artefact, BUGS[name](source)) == "", name  # a manifest that fits
    manifest_path(artefact).unlink()
    for name in names:
        assert judged(plan, artefact, BUGS[name](source)) == "", name


def test_a_source_that_became_another_model_is_to_be_converted_again(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    changed = elsewhere(other_weights(source), tmp_path)
    detail = judged(
        right["gguf-F16"], right["gguf-F16"].output, replace(changed, origin={"given": "somewhere"})
    )
    assert detail.startswith("the source, somewhere, is another model than the one this artefact")
    assert detail.endswith("convert again")


def test_nothing_else_is_compared_with_another_model(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    plan = right["gguf-Q8_0"]
    other = elsewhere(other_weights(source), tmp_path)
    report = verify(plan.output, plan.format, plan.type, other, "cpu", threads=1)
    assert [check.name for check in report.checks] == ["reference"]
    assert report.sentence.startswith(
        f"Do not ship {plan.output}: the reference is not the source that this artefact"
    )
    assert not report.passed
