"""Importance matrices: how they are collected, and files that are quantized with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.errors import UsageError
from cgconvert.formats.gguf.imatrix import DAMPING, Imatrix, InputStatistics
from cgconvert.formats.gguf.writer import plan
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor import InMemoryTensor, SelectedRows
from cgconvert.model.tensor_names import GGUF
from cgconvert.testing import configurations, synthetic
from cgconvert.verification.thresholds import Verdict
from cgconvert.verification.weights import check_weights
from cgconvert.write.execute import execute
from cgconvert.write.journal import plan_key
from cgconvert.write.manifest import find_manifest
from tests.conftest import first_layers
from tests.support import plans
from tests.support.gguf_models import GEOMETRIES, converted, random_checkpoint
from tests.support.imatrices import collected, llama_collect, windows

SOURCE = random_checkpoint(64)


def skewed() -> Imatrix:
    """An imatrix with far larger differences between columns than a trained model's."""
    generator = torch.Generator().manual_seed(5)
    inputs = {
        name: InputStatistics(torch.randn(len(entry.squares), generator=generator).mul(3).exp(), 7)
        for name, entry in collected().inputs.items()
    }
    return replace(collected(), inputs=inputs, file="skewed.gguf", sha256="5" * 64)


Written = Callable[[str, bool], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A function that returns a file of a type, with skewed() or without; each is made once."""
    folder = tmp_path_factory.mktemp("written")

    def write(type: str, weighted: bool) -> Path:  # noqa: A002
        path = folder / f"{type}-{weighted}.gguf"
        if not path.exists():
            importance = skewed() if weighted else None
            execute(plan(SOURCE, path, type=type, importance=importance))
        return path

    return write


def blocks(path: Path) -> dict[str, np.ndarray]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def test_collected_squares_are_those_of_transformers() -> None:
    from transformers import CodeGenConfig, CodeGenForCausalLM

    geometry = GEOMETRIES[64]
    model = CodeGenForCausalLM(
        CodeGenConfig(**configurations.codegen_config(geometry, torch.float32))
    ).eval()
    state = synthetic.RandomState(geometry, seed=64, sharpness=4)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    expected: dict[str, torch.Tensor] = {}

    def watch(names: list[str], module: torch.nn.Module) -> None:
        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            squares = arguments[0].double().square().flatten(0, 1).sum(0)
            expected.update({name: expected.get(name, 0) + squares for name in names})

        module.register_forward_pre_hook(hook)

    for i, layer in enumerate(model.transformer.h):
        watch([GGUF.layer[part].format(i=i) for part in "qkv"], layer.attn.qkv_proj)
        watch([GGUF.layer["o"].format(i=i)], layer.attn.out_proj)
        watch([GGUF.layer["fc_in"].format(i=i)], layer.mlp.fc_in)
        watch([GGUF.layer["fc_out"].format(i=i)], layer.mlp.fc_out)
    watch([GGUF.model["head"]], model.lm_head)
    with torch.inference_mode():
        model(windows())
    inputs = collected().inputs
    assert inputs.keys() == expected.keys()
    for name, squares in expected.items():
        torch.testing.assert_close(inputs[name].squares.double(), squares, rtol=1e-4, atol=1e-6)
        assert inputs[name].count == windows().numel()


def test_collected_squares_are_those_of_llama_imatrix(tmp_path: Path) -> None:
    expected = llama_collect(converted(tmp_path, "F32"), windows().tolist())
    inputs = collected().inputs
    assert inputs.keys() == expected.keys()
    for name, squares in expected.items():
        np.testing.assert_allclose(inputs[name].squares, squares, rtol=1e-3, atol=1e-5)


def test_importance_has_mean_one_and_is_never_zero() -> None:
    squares = torch.tensor([0.0, 3.0, 9.0])
    imatrix = replace(
        collected(), inputs={"a": InputStatistics(squares, 5), "b": InputStatistics(squares * 0, 5)}
    )
    importance = imatrix.importance("a")
    assert importance is not None
    assert float(importance.mean()) == pytest.approx(1)
    assert importance[0] == pytest.approx(DAMPING / (1 + DAMPING))
    assert float(
        (importance[2] - importance[0]) / (importance[1] - importance[0])
    ) == pytest.approx(3)
    assert imatrix.importance("b") is None
    assert imatrix.importance("c") is None


def test_weighted_error_is_lower_with_an_imatrix(written: Written) -> None:
    plain, ours = (blocks(written("Q4_K_M", weighted)) for weighted in (False, True))
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(written("Q4_K_M", True)).tensors}
    decoder = SOURCE.decoder.half_split()
    for i, layer in enumerate(decoder.layers):
        for part in ("q", "k", "v", "o", "fc_in", "fc_out"):
            name = GGUF.layer[part].format(i=i)
            codec, rows = ENCODINGS[types[name]], getattr(layer, part).read().float()
            assert isinstance(codec, BlockCodec)
            importance = skewed().importance(name)
            assert importance is not None

            decoded = [
                codec.decode_rows(torch.from_numpy(f[name]), rows.shape) for f in (ours, plain)
            ]
            lost = [float(((d - rows).square() * importance).sum()) for d in decoded]
            # q and k too, although their rows lie in another order than the source's.
            assert lost[0] < 0.9 * lost[1], name
            assert np.array_equal(ours[name], codec.encode(rows, importance)[0].numpy()), name
    assert np.array_equal(plain["token_embd.weight"], ours["token_embd.weight"])


@pytest.mark.parametrize("type", ["Q8_0", "F16"])
def test_types_without_a_search_ignore_the_imatrix(written: Written, type: str) -> None:  # noqa: A002
    plain, ours = (blocks(written(type, weighted)) for weighted in (False, True))
    assert all(np.array_equal(plain[name], ours[name]) for name in plain)


def test_chunks_of_rows_give_the_same_bytes(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = written("Q4_0", True), tmp_path / "Q4_0-True.gguf"
    monkeypatch.setattr("cgconvert.write.plan.CHUNK_BYTES", 700 * 4 * 256)
    execute(plan(SOURCE, path, type="Q4_0", importance=skewed()))
    assert path.read_bytes() == whole.read_bytes()


def test_another_imatrix_does_not_resume_a_run(tmp_path: Path) -> None:
    def key(importance: Imatrix | None) -> str:
        return plan_key(plan(SOURCE, tmp_path / "x", type="Q4_K", importance=importance))

    other_imatrix = replace(skewed(), sha256="6" * 64)
    assert len({key(None), key(skewed()), key(other_imatrix)}) == 3
    assert key(skewed()) == key(skewed())


def test_manifest_and_file_name_the_imatrix(written: Written) -> None:
    path = written("Q4_K_M", True)
    manifest = find_manifest(path)
    assert manifest is not None
    recorded = {"file": "skewed.gguf", "sha256": "5" * 64}
    assert manifest.options == {"type": "Q4_K_M", "imatrix": recorded}
    fields = gguf.GGUFReader(path).fields
    metadata = {
        name: field.contents() for name, field in fields.items() if name.startswith("quantize.")
    }
    assert metadata == {
        "quantize.imatrix.file": "skewed.gguf",
        "quantize.imatrix.dataset": "noise",
        "quantize.imatrix.entries_count": 13,
        "quantize.imatrix.chunks_count": 2,
    }


@pytest.mark.parametrize("type", ["Q3_K", "Q4_0", "Q4_K_M"])
def test_verification_passes_and_catches_mistakes(tmp_path: Path, type: str) -> None:  # noqa: A002
    def failed(decoder: Decoder) -> set[str]:
        path, wrong = tmp_path / "model.gguf", replace(SOURCE, decoder=decoder)
        execute(plan(wrong, path, type=type, importance=skewed()), force=True)
        checks, _ = check_weights(path, "gguf", SOURCE.decoder)
        return {check.name for check in checks if check.verdict == Verdict.FAIL}

    assert failed(SOURCE.decoder) == set()
    first, *rest = SOURCE.decoder.layers
    louder = InMemoryTensor(first.fc_in.read().float() * 1.3)
    swapped = SelectedRows(first.v, np.arange(first.v.shape[0]))
    for layer in (replace(first, fc_in=louder), replace(first, k=swapped)):
        assert failed(replace(SOURCE.decoder, layers=(layer, *rest))) == {"weights.error"}


@pytest.mark.parametrize("text", ["my notes", ""])
def test_a_file_that_is_no_imatrix_is_refused_before_anything_is_computed(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "precious.gguf"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no imatrix of this model; choose another `save_im"):
        plans.quantize(first_layers(1), tmp_path / "m.gguf", bits=4, save_imatrix=path)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["m.gguf", "m.gguf.cgconvert.json", "../deep/m.gguf"])
def test_an_imatrix_in_the_place_of_the_output_is_refused_before_anything_is_computed(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "deep"
    with pytest.raises(UsageError, match="is where the artefact will lie; choose another `save_im"):
        plans.quantize(first_layers(1), folder / "m.gguf", bits=4, save_imatrix=folder / name)
