"""From every layout of every geometry to every format, each run in its real runtime.

The oracle is transformers' own CodeGenForCausalLM in float32 on the original weights.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cgconvert import embedded
from cgconvert.formats.read import ReadOptions, read
from cgconvert.io.cache import cache_folder
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.runtimes import open_runtime
from cgconvert.testing import synthetic
from cgconvert.verification import metrics
from cgconvert.write.execute import execute
from cgconvert.write.plan import Plan
from tests.conftest import cut
from tests.support import plans
from tests.support.logit_distances import kl_divergence

MODELS = ("350M", "2B", "6B", "16B", embedded.NAME)
LAYOUTS = ("tarball", "torch-sharded", "safetensors", "jaxformer")
LENGTHS = (3, 40, 17)


@dataclass
class Model:
    """A checkpoint's weights, and what transformers makes of them."""

    name: str
    geometry: Geometry
    state: dict[str, torch.Tensor]
    folder: Path

    @property
    def trained(self) -> bool:
        return self.name == embedded.NAME

    def source(self, layout: str) -> tuple[Checkpoint, Path]:
        """The model in one of the original layouts, and the folder to remove after use."""
        folder = self.folder / layout
        path = synthetic.write(
            layout, self.state, self.geometry, folder, self.name, embedded.path()
        )
        return read(str(path), ReadOptions(tokenizer=embedded.path())), folder

    @property
    def prompts(self) -> list[list[int]]:
        """Tokens of real code for the trained model, any tokens for the random ones."""
        if self.trained:
            text = Path(synthetic.__file__).read_text()
            ids = read(embedded.NAME).tokenizer.encode(text)
            return [ids[100 : 100 + 4 * n] for n in LENGTHS]
        rng = np.random.default_rng(0)
        return [rng.integers(0, 4000, size=n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == embedded.NAME:
        geometry = read(embedded.NAME).geometry
        with safe_open(embedded.path() / "model.safetensors", "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # No -0.0, which Jaxformer's embedding, a sum of two, cannot give.
        state = {name: state[name] + 0.0 for name in synthetic.tensor_shapes(geometry)}
        name = embedded.NAME
    else:
        geometry = cut(request.param)
        state = dict(synthetic.RandomState(geometry, seed=3, sharpness=2))
        name = f"codegen-{request.param}-mono"
    yield Model(name, geometry, state, folder)
    shutil.rmtree(folder)
    gc.collect()


def write(plan: Plan) -> Path:
    execute(plan, force=True)
    return plan.output


def weights_sha256(folder: Path) -> list[str]:
    from cgconvert.write.manifest import find_manifest

    manifest = find_manifest(folder)
    assert manifest is not None
    return [str(manifest.files["model.safetensors"]["sha256"])]


def test_every_layout_gives_the_same_weights(model: Model) -> None:
    """Bit-equal to the original, and the same bytes whichever layout they came from."""
    hashes = set()
    for layout in LAYOUTS:
        checkpoint, folder = model.source(layout)
        output = model.folder / "hf"
        write(plans.to_hf(checkpoint, output, max_shard_size=100 * 10**9))
        hashes.update(weights_sha256(output))
        shutil.rmtree(folder)
        shutil.rmtree(cache_folder(), ignore_errors=True)
    assert len(hashes) == 1
    with safe_open(output / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state)
        for name, tensor in model.state.items():
            assert torch.equal(file.get_tensor(name), tensor), name


@dataclass
class Oracle:
    logits: list[np.ndarray]
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def oracle(model: Model) -> Iterator[Oracle]:
    """transformers' logits on the source itself, which is a folder it can load."""
    from transformers import CodeGenForCausalLM

    checkpoint, folder = model.source("safetensors")
    theirs = CodeGenForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [theirs(torch.tensor([ids])).logits[0].numpy() for ids in model.prompts]
    del theirs
    gc.collect()
    yield Oracle(logits, checkpoint)
    shutil.rmtree(folder)


def full_and_cached(
    path: Path,
    kind: str,
    prompts: Sequence[list[int]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    runtime = open_runtime(kind, path, "cpu", threads=2)
    full, cached = [], []
    try:
        for ids in prompts:
            runtime.reset()
            full.append(runtime.feed(ids))
            runtime.reset()
            half = len(ids) // 2
            steps = [runtime.feed(ids[:half])] if half else []
            steps += [runtime.feed([token]) for token in ids[half:]]
            cached.append(np.concatenate(steps))
    finally:
        runtime.close()
    return full, cached


def relative_error(oracle: Oracle, logits: list[np.ndarray]) -> float:
    return metrics.relative_error(np.concatenate(oracle.logits), np.concatenate(logits))


def mean_kl(oracle: Oracle, logits: list[np.ndarray]) -> float:
    tokens = oracle.checkpoint.tokenizer.size
    reference, candidate = np.concatenate(oracle.logits), np.concatenate(logits)
    return float(kl_divergence(reference[:, :tokens], candidate[:, :tokens]).mean())


def test_onnx_float32_has_the_sources_logits(model: Model, oracle: Oracle) -> None:
    output = model.folder / "onnx"
    write(plans.to_onnx(oracle.checkpoint, output))
    full, cached = full_and_cached(output, "onnx", model.prompts)
    shutil.rmtree(output)
    assert relative_error(oracle, full) <= 1e-5
    assert relative_error(oracle, cached) <= 1e-5


@pytest.mark.parametrize("type_", ["F32", "F16", "Q8_0"])
def test_gguf_has_the_sources_logits(model: Model, oracle: Oracle, type_: str) -> None:
    output = model.folder / f"model-{type_}.gguf"
    write(plans.to_gguf(oracle.checkpoint, output, type=type_))
    full, cached = full_and_cached(output, "gguf", model.prompts)
    output.unlink()
    bounds = {"F32": (1e-6, 1e-5), "F16": (1e-6, 1e-5), "Q8_0": (3e-4, 1e-2)}
    bound = bounds[type_][0 if model.trained else 1]
    assert mean_kl(oracle, full) <= bound
    assert mean_kl(oracle, cached) <= bound


@pytest.mark.parametrize("layout", ["codegen", "gptj", "phi"])
def test_huggingface_float32_has_the_sources_logits(
    model: Model, oracle: Oracle, layout: str
) -> None:
    output = model.folder / f"hf-{layout}"
    plan = plans.to_hf(oracle.checkpoint, output, dtype="float32", layout=layout)
    write(plan)
    full, cached = full_and_cached(output, "huggingface", model.prompts)
    shutil.rmtree(output)
    assert relative_error(oracle, full) <= 1e-5
    assert relative_error(oracle, cached) <= 1e-5
