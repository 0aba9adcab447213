"""A left-padded batch of different lengths gives what each sequence gives alone."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from cgconvert.errors import UsageError
from cgconvert.formats.huggingface import writer as huggingface
from cgconvert.formats.onnx import writer as onnx_format
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes import RUNTIMES, open_runtime, runtime_class
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.runtimes.runtime import Runtime, run_left_padded
from cgconvert.runtimes.transformers import TransformersRuntime
from cgconvert.verification.metrics import relative_error
from cgconvert.write.execute import execute
from cgconvert.write.plan import Plan
from tests.support.in_process import open_runtimes_here
from tests.support.tampering import GEOMETRY, checkpoint

LENGTHS = (GEOMETRY.n_positions, 17, 9, 33)
STEPS = 8

Writer = Callable[[Checkpoint, Path], Plan]


def hf(layout: str) -> Writer:
    return lambda c, out: huggingface.plan(
        c, out, dtype="float32", layout=layout, max_shard_size=10**9
    )


def graph(**options: Any) -> Writer:
    return lambda c, out: onnx_format.plan(c, out, **options)


# The bound is about four times what was measured; padding moves a token's rotary position, which
# float16 rounds, and activations are rounded to 8 bits by matrices of 8 and 4.
ARTEFACTS: dict[str, tuple[Writer, float]] = {
    "hf codegen": (hf("codegen"), 1e-6),
    "hf gptj": (hf("gptj"), 1e-6),
    "hf phi": (hf("phi"), 1e-6),
    "onnx float32": (graph(), 1e-6),
    "onnx float16": (graph(dtype="float16"), 4e-3),
    "onnx int8": (graph(bits=8), 4e-3),
    "onnx int4": (graph(bits=4), 4e-3),
    "onnx int4 float16": (graph(bits=4, dtype="float16", symmetric=True), 7e-3),
}
ONNX = [name for name in ARTEFACTS if name.startswith("onnx")]
HUGGING_FACE = [name for name in ARTEFACTS if name.startswith("hf")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Sharp attention: with all tokens seen alike, one of padding more would hardly show."""
    return checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def write(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    plans: dict[str, Plan] = {}

    def written(name: str) -> Plan:
        if name not in plans:
            plans[name] = ARTEFACTS[name][0](source, tmp_path_factory.mktemp("out") / "artefact")
            execute(plans[name])
        return plans[name]

    return written


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes are opened in this process, where a test can change them."""
    open_runtimes_here(monkeypatch)


@pytest.fixture
def run(write: Callable[[str], Plan]) -> Iterator[Callable[[str], Any]]:
    opened: list[Runtime] = []

    def start(name: str) -> Runtime:
        plan = write(name)
        opened.append(open_runtime(plan.format, plan.output, "cpu", threads=1))
        return opened[-1]

    yield start
    for runtime in opened:
        runtime.close()


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 290, length).tolist() for length in LENGTHS]


def worst_error(runtime: Runtime, steps: int) -> float:
    """Relative error of the batch's worst sequence against the sequence alone, in one pass."""
    errors = []
    for ids, padded in zip(sequences(), runtime.batch(sequences(), steps), strict=True):
        runtime.reset()
        alone = runtime.feed(ids)
        assert padded.shape == alone.shape == (len(ids), GEOMETRY.vocab_size)
        assert padded.dtype == np.float32
        errors.append(relative_error(alone, padded))
    return max(errors)


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_batch_is_each_sequence_alone(
    name: str, steps: int, run: Callable[[str], Runtime]
) -> None:
    assert worst_error(run(name), steps) <= ARTEFACTS[name][1]


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("name", ONNX)
def test_a_graph_that_does_not_mask_padding_shows(
    name: str, steps: int, write: Callable[[str], Plan], tmp_path: Path
) -> None:
    """The constant that hides padding becomes 0; sequences alone are what they were."""
    broken = tmp_path / "broken"
    shutil.copytree(write(name).output, broken)
    (path,) = (broken / "onnx").glob("*.onnx")
    model = onnx.load(path, load_external_data=False)
    (hiding,) = (tensor for tensor in model.graph.initializer if tensor.name == "unseen")
    hiding.CopyFrom(onnx.helper.make_tensor("unseen", hiding.data_type, [], [0.0]))
    path.write_bytes(model.SerializeToString())
    assert worst_error(OnnxRuntime.open(broken, "cpu", 1), steps) > 10 * ARTEFACTS[name][1]


def changed(runtime: Any, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Have the model of transformers get other inputs than it is given."""
    forward = runtime._model.forward

    @functools.wraps(forward)  # generate looks at the signature
    def changed_forward(**inputs: Any) -> Any:
        change(inputs)
        return forward(**inputs)

    runtime._model.forward = changed_forward


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_model_that_does_not_mask_padding_shows(
    name: str, steps: int, run: Callable[[str], Any]
) -> None:
    runtime = run(name)
    changed(runtime, lambda inputs: inputs["attention_mask"].fill_(1))
    assert worst_error(runtime, steps) > 1e4 * ARTEFACTS[name][1]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_step_that_counts_padding_shows(name: str, run: Callable[[str], Any]) -> None:
    """The prefill's positions leave padding out, those of the steps after it do not."""

    def count_all(inputs: dict[str, torch.Tensor]) -> None:
        if inputs["input_ids"].shape[1] == 1:
            inputs["position_ids"].fill_(inputs["attention_mask"].shape[1] - 1)

    runtime = run(name)
    changed(runtime, count_all)
    assert worst_error(runtime, STEPS) > 1e4 * ARTEFACTS[name][1]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_mask_and_positions_are_those_of_generate(name: str, run: Callable[[str], Any]) -> None:
    runtime, prompts = run(name), sequences()[1:]
    inputs_of_steps: list[list[np.ndarray]] = []

    def keep(inputs: dict[str, torch.Tensor]) -> None:
        inputs_of_steps.append(
            [inputs[key].clone().numpy() for key in ("attention_mask", "position_ids")]
        )

    changed(runtime, keep)
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    written = runtime._model.generate(
        padded, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    expected = inputs_of_steps.copy()
    inputs_of_steps.clear()
    new = written[:, width:-1].tolist()  # the last token is never fed
    runtime.batch([ids + row for ids, row in zip(prompts, new, strict=True)], steps=3)
    assert len(inputs_of_steps) == len(expected) == 4
    for step, expected_step in zip(inputs_of_steps, expected, strict=True):
        for array, expected_array in zip(step, expected_step, strict=True):
            np.testing.assert_array_equal(array, expected_array)


def test_prefill_and_steps_of_a_padded_batch_are_as_written_by_hand() -> None:
    """Prefill and steps written out by hand."""
    calls = []

    def run(
        tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: int
    ) -> tuple[np.ndarray, int]:
        calls.append((tokens.tolist(), mask.tolist(), positions.tolist(), cache))
        return tokens[..., None].astype(np.float32), cache + tokens.shape[1]

    logits_of_sequences = run_left_padded(run, 0, [[5, 6, 7, 8, 9], [1, 2, 3]], 2)
    assert [logits[:, 0].tolist() for logits in logits_of_sequences] == [[5, 6, 7, 8, 9], [1, 2, 3]]
    assert calls == [
        ([[5, 6, 7], [0, 0, 1]], [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]], 0),
        ([[8], [2]], [[1, 1, 1, 1], [0, 0, 1, 1]], [[3], [1]], 3),
        ([[9], [3]], [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], [[4], [2]], 4),
    ]


@pytest.mark.parametrize("name", ["hf codegen", "onnx float32"])
def test_a_batch_leaves_the_cache_as_it_is(name: str, run: Callable[[str], Runtime]) -> None:
    runtime, ids = run(name), sequences()[1]
    whole = runtime.feed(ids)
    runtime.reset()
    first = runtime.feed(ids[:5])
    runtime.batch(sequences(), STEPS)
    assert relative_error(whole, np.concatenate([first, runtime.feed(ids[5:])])) <= 1e-6


@pytest.mark.parametrize("name", ["hf codegen", "onnx float32"])
def test_impossible_batches_are_refused(name: str, run: Callable[[str], Runtime]) -> None:
    runtime = run(name)
    assert runtime.batch([]) == []
    with pytest.raises(UsageError, match="97 tokens are more than the model's context of 96"):
        runtime.batch([[1] * 97, [1]])
    with pytest.raises(UsageError, match="2 tokens cannot be prefilled before 2 decode steps"):
        runtime.batch([[1, 2, 3], [1, 2]], 2)
    with pytest.raises(UsageError, match="0 tokens cannot be prefilled"):
        runtime.batch([[1, 2, 3], []])
    with pytest.raises(UsageError, match="decode steps is -1"):
        runtime.batch([[1, 2, 3]], -1)


def test_runtimes_without_batches_refuse_one() -> None:
    kinds = [runtime_class(format_, name) for format_, names in RUNTIMES.items() for name in names]
    for kind in {*kinds} - {TransformersRuntime, OnnxRuntime}:
        assert not kind.takes_batches
        with pytest.raises(UsageError, match=f"{kind.name} takes one sequence at a time"):
            kind.__new__(kind).batch([[1]])
