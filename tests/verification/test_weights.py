"""Weights and provenance without running anything: what is right passes, mistakes in files do not.

Every mistake is in a real artefact's files, each is caught by the check for what it is, with the
manifest there or not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.errors import InputError, MissingRuntimeError
from cgconvert.formats.gguf import checks, writer
from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.registry import load
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tensor import LazyTensor, StoredTensor
from cgconvert.verification import subject as subject_module
from cgconvert.verification.provenance import check_provenance
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.verify import verify
from cgconvert.verification.weights import check_weights
from cgconvert.write.execute import execute
from cgconvert.write.hashing import file_sha256, hash_checkpoint
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.support.artefacts import WRITERS, copied, write_all
from tests.support.tampering import (
    change_epsilon,
    flip_bit,
    rescale_block,
    rewrite_array,
    swap_rows,
)

QUANTIZED = {"onnx-int8", "onnx-int4", "gguf-Q8_0", "gguf-Q4_0"}
UNUSED = 319, 317
"""Rows of the vocabulary that no token has."""


@pytest.fixture(scope="module")
def right(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Every artefact as the writers write it, not to be changed."""
    return write_all(WRITERS, source, tmp_path_factory.mktemp("right"))


def checked(artefact: Path, format: str, source: Checkpoint) -> dict[str, Check]:  # noqa: A002
    files = [artefact] if artefact.is_file() else [p for p in artefact.rglob("*") if p.is_file()]
    root = artefact if artefact.is_dir() else artefact.parent
    hashes = {path.relative_to(root).as_posix(): file_sha256(path) for path in files}
    digest = hash_checkpoint(source)["sha256"]
    checks = [
        check_provenance(artefact, hashes, digest, source.origin),
        *check_weights(artefact, format, source.decoder)[0],
    ]
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == Verdict.FAIL}


@pytest.mark.parametrize("name", WRITERS)
def test_valid_artefacts_pass(name: str, source: Checkpoint, right: dict[str, Plan]) -> None:
    checks = checked(right[name].output, right[name].format, source)
    assert not failed(checks), checks
    assert {check.verdict for check in checks.values()} == {Verdict.PASS}
    assert ("weights.error" in checks) == (name in QUANTIZED)
    if name in QUANTIZED:  # the bound is met and not loose
        assert 0.9 < (checks["weights.error"].value or 0) <= 1


def wte(tensors: dict[str, LazyTensor]) -> LazyTensor:
    return next(t for n, t in tensors.items() if "wte" in n or "embed_tok" in n or "token_e" in n)


def fc_in(tensors: dict[str, LazyTensor]) -> LazyTensor:
    return next(t for n, t in tensors.items() if "fc1.w" in n or "fc_in.w" in n or "ffn_up.w" in n)


IN_FILES: dict[str, tuple[Callable[[dict[str, LazyTensor]], None], str]] = {
    "NaN in a row no token has": (
        lambda t: rescale_block(wte(t), UNUSED[0], float("nan")),
        "finite",
    ),
    "infinity in a row no token has": (
        lambda t: rescale_block(wte(t), UNUSED[0], float("inf")),
        "finite",
    ),
    "two rows no token has exchanged": (lambda t: swap_rows(wte(t), *UNUSED), "equal"),
    "a flipped bit": (lambda t: flip_bit(fc_in(t)), "equal"),
    "a scaled block": (lambda t: rescale_block(fc_in(t), 7, 1.01), "equal"),
}


@pytest.mark.parametrize("mistake", IN_FILES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_mistake_in_a_file_is_caught(
    name: str, mistake: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact, kind = copied(right[name], tmp_path), right[name].format
    change, check = IN_FILES[mistake]
    change(dict(load(kind).stored_artefact(artefact, source.decoder).tensors))
    values = "error" if name in QUANTIZED else "equal"
    caught = failed(checked(artefact, kind, source))
    assert caught == {"provenance", f"weights.{values}"} | (
        {"weights.finite"} & {f"weights.{check}"}
    )
    manifest_path(artefact).unlink()
    checks = checked(artefact, kind, source)
    assert failed(checks) == caught - {"provenance"}
    assert checks["provenance"].verdict == Verdict.WARNING


@pytest.mark.parametrize("name", ["hf-float16", "hf-phi-float32", "onnx-int8", "gguf-F16"])
def test_an_epsilon_in_the_header(
    name: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact, kind = copied(right[name], tmp_path), right[name].format
    change_epsilon(artefact, kind)
    checks = checked(artefact, kind, source)
    assert failed(checks) == {"provenance", "weights.geometry"}
    assert "eps" in checks["weights.geometry"].detail


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_function", "gelu"), ("rotary_dim", 16), ("n_head", 8), ("n_layer", 2),
     ("n_positions", 2048), ("vocab_size", 51200), ("tie_word_embeddings", True), ("n_inner", 512)],
)  # fmt: skip
def test_a_wrong_value_in_a_config_is_caught(
    key: str, value: object, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    for name in ("hf-float16", "onnx-float32"):
        artefact = copied(right[name], tmp_path)
        config = json.loads((artefact / "config.json").read_text())
        (artefact / "config.json").write_text(json.dumps(config | {key: value}))
        checks = checked(artefact, right[name].format, source)
        assert failed(checks) == {"provenance", "weights.geometry"}
        assert key in checks["weights.geometry"].detail


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "gelu"), ("rope_theta", 5e5), ("partial_rotary_factor", 0.25),
     ("num_key_value_heads", 2), ("rope_scaling", {"type": "linear", "factor": 2.0})],
)  # fmt: skip
def test_a_wrong_value_in_a_phi_config_is_caught(
    key: str, value: object, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["hf-phi-float32"], tmp_path)
    where = artefact / "config.json"
    config = json.loads(where.read_text())
    where.write_text(json.dumps(config | {key: value}))
    assert "weights.geometry" in failed(checked(artefact, "huggingface", source))
    rope = config["rope_parameters"]
    if key in rope:
        where.write_text(json.dumps(config | {"rope_parameters": rope | {key: value}}))
        assert "weights.geometry" in failed(checked(artefact, "huggingface", source))
        new = {k: v for k, v in config.items() if k not in rope}  # as transformers 5 saves it
        where.write_text(json.dumps(new))
        assert failed(checked(artefact, "huggingface", source)) == {"provenance"}


def test_a_key_that_llama_cpp_obeys_and_codegen_has_not(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["gguf-F16"], tmp_path)
    raw = artefact.read_bytes()
    # The same length, so that nothing else moves: the base falls back to 10000, and a factor is 1e4
    old, new = b"phi2.rope.freq_base", b"phi2.rope.scale_lin"
    assert raw.count(old) == 1
    artefact.write_bytes(raw.replace(old, new))
    detail = checked(artefact, "gguf", source)["weights.geometry"].detail
    assert "freq_base is 'absent'" in detail
    assert "scale_lin is there" in detail


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [("GroupQueryAttention", "rotary_interleaved", 1), ("GroupQueryAttention", "num_heads", 2),
     ("GroupQueryAttention", "do_rotary", 0), ("GroupQueryAttention", "local_window_size", 8)],
)  # fmt: skip
def test_a_wrong_attribute_in_a_graph_is_caught(
    op: str, name: str, value: int, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["onnx-int4"], tmp_path)
    (path,) = (artefact / "onnx").glob("*.onnx")
    model = onnx.load(path, load_external_data=False)
    node = [node for node in model.graph.node if node.op_type == op][1]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    path.write_bytes(model.SerializeToString())
    checks = checked(artefact, "onnx", source)
    assert failed(checks) == {"provenance", "weights.geometry"}
    assert name in checks["weights.geometry"].detail


def test_a_value_for_each_layer(
    source: Checkpoint, right: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = right["gguf-F16"].output
    header = read_header(path)
    heads = {"phi2.attention.head_count": np.full(3, 4)}
    changed = replace(header, metadata={**header.metadata, **heads})
    monkeypatch.setattr(checks, "read_header", lambda path: changed)
    detail = checked(path, "gguf", source)["weights.geometry"].detail
    assert detail == "phi2.attention.head_count is array([4, 4, 4]), not 4"


@pytest.mark.parametrize(
    ("name", "value"), [("bits", 3), ("bits", 8), ("block_size", 64), ("block_size", 0)]
)
def test_an_operator_that_does_not_fit_its_arrays_is_an_error(
    name: str, value: int, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["onnx-int4"], tmp_path)
    (path,) = (artefact / "onnx").glob("*.onnx")
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(a for a in node.attribute if a.name == name).i = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model_q4\.onnx: layers\.0\.qkv: "):
        check_weights(artefact, "onnx", source.decoder)
    del node.input[1:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="not the inputs of MatMulNBits"):
        check_weights(artefact, "onnx", source.decoder)


@pytest.mark.parametrize("name", ["onnx-float32", "onnx-float16"])
def test_a_rotary_table_may_differ_in_the_last_place_and_no_more(
    name: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right[name], tmp_path)
    table = load("onnx").stored_artefact(artefact, source.decoder).tensors["rotary.cos"]
    assert isinstance(table, StoredTensor)
    size = torch.finfo(table.dtype.torch_dtype).eps

    def off(by: float) -> None:
        def change(numbers: torch.Tensor) -> None:
            assert numbers[0, 0] + numbers[0, 1] == 2  # cos 0
            numbers[0, 0] = 1 - by * size

        rewrite_array(table, change)

    off(1)
    assert failed(checked(artefact, "onnx", source)) == {"provenance"}
    (data,) = (right[name].output / "onnx").glob("*.onnx_data")
    shutil.copy(data, artefact / "onnx" / data.name)
    off(2)
    assert failed(checked(artefact, "onnx", source)) == {"provenance", "weights.equal"}


def checks_of(artefact: Path, source: Checkpoint) -> dict[str, Check]:
    """The checks of a GGUF file's weights, by name."""
    return {check.name: check for check in check_weights(artefact, "gguf", source.decoder)[0]}


# The whole of verify.


@pytest.mark.parametrize("name", ["hf-float16", "onnx-float32", "gguf-F16"])
def test_nan_where_no_prompt_looks_fails_by_its_weights_alone(
    name: str, source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    plan, artefact = right[name], copied(right[name], tmp_path)
    tensors = load(plan.format).stored_artefact(artefact, source.decoder).tensors
    rescale_block(wte(dict(tensors)), UNUSED[0], float("nan"))
    manifest_path(artefact).unlink()
    report = verify(artefact, plan.format, plan.type, source, "cpu", new_tokens=2, threads=1)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert failed({check.name: check for check in report.checks}) == {
        "weights.finite",
        "weights.equal",
    }
    assert verdicts["provenance"] == Verdict.WARNING
    assert verdicts["logits.nmse"] == Verdict.PASS


def test_a_file_that_does_not_load_fails_by_the_missing_tensor(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["gguf-F16"], tmp_path)
    raw = artefact.read_bytes()
    artefact.write_bytes(raw.replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_uq.weight"))
    report = verify(artefact, "gguf", "F16", source, "cpu", new_tokens=2, threads=1)
    checks = {check.name: check for check in report.checks}
    assert failed(checks) == {"provenance", "weights.tensors", "runtime"}
    assert "blk.2.ffn_up.weight is missing" in checks["weights.tensors"].detail
    assert "blk.2.ffn_up.weight is missing" in checks["runtime"].detail
    assert "logits.nmse" not in checks


def absent(*_: object, **__: object) -> None:
    raise MissingRuntimeError("llama-cpp-python", "llamacpp")


def test_without_its_runtime_an_artefact_fails_and_its_files_are_compared(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_module, "open_runtime", absent)
    artefact = copied(right["gguf-F16"], tmp_path)
    report = verify(artefact, "gguf", "F16", source, "cpu", new_tokens=2, threads=1)
    assert failed({check.name: check for check in report.checks}) == {"runtime"}
    assert report.is_only_unrun
    advice = "install 'llama-cpp-python>="
    assert advice in report.runtime["missing"]
    assert advice in report.sentence
    assert report.sentence.startswith(f"Do not ship {artefact} yet: what is stored is right, but")
    raw = artefact.read_bytes()
    artefact.write_bytes(raw.replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_uq.weight"))
    report = verify(artefact, "gguf", "F16", source, "cpu", new_tokens=2, threads=1)
    assert failed({check.name: check for check in report.checks}) == {
        "provenance",
        "weights.tensors",
        "runtime",
    }
    assert not report.is_only_unrun
    assert "blk.2.ffn_up.weight is missing" in report.sentence


def test_the_error_of_a_runtime_is_told_in_words(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a report may have typed neither a flag nor an argument."""
    artefact = copied(right["gguf-F16"], tmp_path)
    raw = artefact.read_bytes()
    artefact.write_bytes(raw.replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_uq.weight"))

    def full(*_: object, **__: object) -> None:
        raise InputError('no memory on cuda, use `device="cpu"`')

    monkeypatch.setattr(subject_module, "open_runtime", full)
    report = verify(artefact, "gguf", "F16", source, "cpu", new_tokens=2, threads=1)
    (check,) = (check for check in report.checks if check.name == "runtime")
    assert check.detail == "no memory on cuda, use device cpu"


@pytest.mark.parametrize("type_", ["F16", "Q8_0"])
def test_a_matrix_that_is_called_adjusted_is_judged_like_any_matrix(
    type_: str, source: Checkpoint, tmp_path: Path
) -> None:
    """Calibration adjusts vectors alone, whatever the header of a file says."""
    names = ("blk.0.attn_q.weight", "blk.0.attn_norm.bias")
    plan = writer.plan(source, tmp_path / "model.gguf", type=type_, adjusted=names)
    execute(plan)
    by_name = checks_of(plan.output, source)
    assert by_name["weights.adjusted"].detail == "blk.0.attn_norm.bias 0"
    assert failed(by_name) == set()
    tensor = load("gguf").stored_artefact(plan.output, source.decoder).tensors[names[0]]
    rescale_block(tensor, 3, 4.0)
    by_name = checks_of(plan.output, source)
    name = "weights.equal" if type_ == "F16" else "weights.error"
    assert failed(by_name) == {name}
    assert names[0] in by_name[name].detail


def test_an_unreadable_file_is_an_error_and_no_failed_check(
    source: Checkpoint, right: dict[str, Plan], tmp_path: Path
) -> None:
    artefact = copied(right["hf-float16"], tmp_path)
    weights = artefact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        check_weights(artefact, "huggingface", source.decoder)


# The bound of each type.


@pytest.mark.parametrize("scale", [1e-9, 3e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize(
    "codec", [MatMulNBits(4), MatMulNBits(4, symmetric=True), MatMulNBits(8, symmetric=True)]
)
def test_no_rounding_to_nearest_is_beyond_its_bound(codec: MatMulNBits, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, 64, generator=generator) * scale
    rows[::3] += 3 * scale  # blocks of one sign
    params = codec.unpack_arrays(codec.encode(rows))
    blocks = rows.reshape(-1, codec.block_size)
    assert codec.rounding is not None
    assert codec.rounding.error_ratio(params, blocks, codec).max() <= 1
    if scale > 1e-3:  # where a scale is a normal float16, one wrong by 1 % is seen in every block
        d = (params.d.float() * 1.01).half()
        wrong = replace(params, d=d, dmin=None if params.dmin is None else d)
        assert codec.rounding.error_ratio(wrong, blocks, codec).min() > 1
