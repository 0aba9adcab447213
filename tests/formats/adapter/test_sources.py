"""Adapters as sources and beside them: their bases, tokenizers, notes, manifests and outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cgconvert
from cgconvert import embedded
from cgconvert.cli import recipe
from cgconvert.cli.main import main
from cgconvert.errors import InputError
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.verification.provenance import check_provenance
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.verification.weights import check_weights
from cgconvert.write.hashing import hash_checkpoint
from tests.conftest import first_layers
from tests.formats.adapter.adapters import (
    change_config,
    change_tensors,
    merged_by_peft,
    save_adapter,
)

TARGETS = ["qkv_proj", "fc_in", "wte"]


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "lora", target_modules=TARGETS, bias="all")


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target)


def same_files(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two models are read from the same files."""
    resolved = [[path.resolve() for path in model.files] for model in (first, second)]
    return resolved[0] == resolved[1]


def run(*arguments: str) -> int:
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def contents(path: Path) -> dict[str, bytes]:
    """All files of an artefact but the manifest, by their path in it."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in files
        if file.is_file() and file.name != "cgconvert.json"
    }


@pytest.mark.parametrize(
    ("conversion", "options"),
    [
        ("to-hf", {"dtype": "float32"}),
        ("to-hf", {"dtype": "float16", "layout": "phi"}),
        ("to-gguf", {"type": "F16"}),
        ("to-onnx", {}),
        ("to-onnx", {"bits": 4}),
        ("quantize", {"bits": 4, "effort": "fast"}),
    ],
    ids=str,
)
def test_outputs_are_those_of_the_model_that_peft_merged(
    conversion: str, options: dict[str, Any], base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Every file is the same, by one worker process or two."""
    merged = tmp_path / f"{base.name}-lora"
    merged_by_peft(base, adapter).save_pretrained(merged)
    copy_tokenizer(base, merged)
    shutil.copy(base / "config.json", merged)
    suffix = ".gguf" if conversion in ("to-gguf", "quantize") else ""
    expected = cgconvert.convert(merged, conversion, tmp_path / f"of-peft{suffix}", **options)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = tmp_path / f"of-{threads}{suffix}"
        result = cgconvert.convert(base, conversion, output, adapter=adapter, **options)
        assert contents(result.path) == contents(expected.path)
    torch.set_num_threads(1)


def test_an_adapter_names_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    by_option = cgconvert.load(base, adapter=adapter)
    assert by_option.name == "codegen-small-mono-lora"
    assert by_option.notes == ()
    for location in (str(base), f"../{base.relative_to(tmp_path)}"):
        change_config(adapter, base_model_name_or_path=location)
        checkpoint = cgconvert.load(adapter)
        assert checkpoint.name == "lora"
        assert same_files(checkpoint, by_option)
        (note,) = checkpoint.notes
        assert note.startswith(f"{adapter}: is a LoRA adapter; it is merged into its base, ")
        merged = checkpoint.decoder.layers[0].q.read()
        assert torch.equal(merged, by_option.decoder.layers[0].q.read())
        assert checkpoint.origin["given"] == str(adapter)


def test_a_base_of_the_family_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_adapter(embedded.path(), tmp_path / "lora", target_modules=["out_proj"])
    change_config(folder, base_model_name_or_path=embedded.NAME)
    assert cgconvert.load(folder).geometry == cgconvert.load(embedded.NAME).geometry
    monkeypatch.chdir(tmp_path)
    shutil.copytree(embedded.path(), tmp_path / "checkpoints" / "codegen-350M-mono")
    change_config(folder, base_model_name_or_path="codegen-350M-mono")
    assert cgconvert.load("lora").origin["base"] == "codegen-350M-mono"


def test_an_adapter_on_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    second = save_adapter(base, tmp_path / "second", target_modules=["fc_in"])
    change_config(second, base_model_name_or_path="../lora")
    change_config(adapter, base_model_name_or_path=str(base))
    both, in_order = cgconvert.load(second), cgconvert.load(base, adapter=[adapter, second])
    for name in ("q", "fc_in"):
        tensors = [getattr(model.decoder.layers[1], name).read() for model in (both, in_order)]
        assert torch.equal(*tensors)
    assert same_files(both, in_order)
    assert in_order.name == "codegen-small-mono-lora-second"
    assert len(both.notes) == 2
    with pytest.raises(cgconvert.UsageError, match="is loaded already"):
        cgconvert.load(both, adapter=adapter)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "",
            "does not name its base model; give the base as the source and this folder with `adap",
        ),
        (None, "does not name its base model"),
        (
            "nowhere",
            "its base model: nowhere: no such file or folder.*; give the base as the source",
        ),
        ("../../../../nowhere", "its base model: .*no such file"),
        ("SELF", "names its own folder as its base model"),
        ("../lora", "names its own folder as its base model"),
        ("../circle", "more than 4 adapters, one on the other"),
        ("/dev/zero", "no checkpoint found|not a regular file"),
        ("/proc/self", "no checkpoint found|has no weights"),
        ("base\nmodel", "base_model_name_or_path is not a name or a path"),
        ("\x00", "base_model_name_or_path is not a name or a path"),
        ("a" * 5000, "base_model_name_or_path is not a name or a path"),
        ("a/" * 2000, "its base model: "),
        (["base"], "base_model_name_or_path is not a name or a path"),
        ("https://example.org/base", "its base model: .*no such file"),
        ("organisation/absent", "its base model: organisation/absent: not in the Hub cache"),
    ],
)
def test_a_base_that_is_not_there_is_one_line(
    location: Any, message: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(adapter, tmp_path / "circle")
    change_config(tmp_path / "circle", base_model_name_or_path="../circle/../lora")
    location = str(adapter) if location == "SELF" else location
    change_config(adapter, base_model_name_or_path=location)
    with pytest.raises(InputError, match=message) as caught:
        cgconvert.load(adapter)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_the_adapters_tokenizer_is_used(base: Path, tmp_path: Path) -> None:
    """A tokenizer saved with the adapter has the tokens that were added for it."""
    rows = cgconvert.load(base).geometry.vocab_size + 3
    folder = save_adapter(base, tmp_path / "lora", rows=rows, target_modules=["qkv_proj"])
    copy_tokenizer(base, folder)
    entries = json.loads((folder / "tokenizer.json").read_text())
    size = max(max(entries["model"]["vocab"].values()), *(t["id"] for t in entries["added_tokens"]))
    added = entries["added_tokens"][0] | {"id": size + 1, "content": "<start>"}
    entries["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(entries))
    (folder / "added_tokens.json").unlink(missing_ok=True)
    change_config(folder, base_model_name_or_path=str(base))
    for checkpoint in (cgconvert.load(folder), cgconvert.load(base, adapter=folder)):
        assert checkpoint.tokenizer.encode("<start>") == [size + 1]
        assert checkpoint.geometry.vocab_size == rows
        assert folder / "tokenizer.json" in checkpoint.files
        assert base / "tokenizer.json" not in checkpoint.files
        assert f"{folder}: the adapter's tokenizer is used in place of its base's" in (
            checkpoint.notes
        )
    own = cgconvert.load(folder, tokenizer=base)
    assert own.tokenizer.size == size + 1
    result = cgconvert.to_hf(folder, tmp_path / "hf")
    assert cgconvert.load(result.path).tokenizer.encode("<start>") == [size + 1]


def test_more_tokens_than_rows_are_refused(base: Path, adapter: Path) -> None:
    copy_tokenizer(base, adapter)
    path = adapter / "tokenizer.json"
    entries = json.loads(path.read_text())
    size = max(max(entries["model"]["vocab"].values()), *(t["id"] for t in entries["added_tokens"]))
    entries["added_tokens"] += [
        entries["added_tokens"][0] | {"id": size + i, "content": f"<new {i}>"}
        for i in range(1, 200)
    ]
    path.write_text(json.dumps(entries))
    (adapter / "added_tokens.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"the tokenizer has \d+ entries, the embedding only"):
        cgconvert.load(base, adapter=adapter)


def test_weights_beside_an_adapter_are_taken_as_they_are(base: Path, adapter: Path) -> None:
    unmerged = cgconvert.load(base).decoder.layers[0].q.read()
    merged = cgconvert.load(base, adapter=adapter).decoder.layers[0].q.read()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, base)
    both = cgconvert.load(base)
    assert torch.equal(both.decoder.layers[0].q.read(), unmerged)
    (note,) = both.notes
    assert "the adapter beside the weights is not merged into them" in note
    chosen = cgconvert.load(base, adapter=base)
    assert torch.equal(chosen.decoder.layers[0].q.read(), merged)
    assert not any("beside the weights" in note for note in chosen.notes)


def test_values_that_cannot_be_stored_name_both_files(base: Path, adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: {n: t * torch.inf for n, t in tensors.items()})
    base_file = r"/model.safetensors: tensor transformer.wte.weight; .*/lora/adapter_model.safe"
    with pytest.raises(InputError, match=rf"{base_file}.*lora_embedding_A: \d+ values are NaN"):
        cgconvert.to_gguf(base, adapter.parent / "x.gguf", adapter=adapter)


def test_inspect_describes_base_and_adapter(
    base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = cgconvert.inspect(base, adapter=adapter)
    names = [tensor.name for tensor in description.tensors]
    assert "base_model.model.transformer.h.0.attn.qkv_proj.lora_A.weight" in names
    assert "transformer.h.0.attn.qkv_proj.weight" in names
    assert len(names) == len(set(names))
    assert description.provenance["adapter"] == [str(adapter)]
    assert run("inspect", str(base), "--adapter", str(adapter)) == 0
    assert f"given {base}, adapter {adapter}" in capsys.readouterr().out


def test_verify_reads_base_and_adapter_again(tmp_path: Path) -> None:
    """Also for several artefacts of one base, whose adapters differ."""
    base = cgconvert.to_hf(first_layers(1), tmp_path / "base", dtype="float32").path
    results = []
    for name, targets in {"one": ["qkv_proj"], "two": ["fc_in", "fc_out"]}.items():
        save_adapter(base, tmp_path / name, target_modules=targets, lora_bias=name == "two")
        output = tmp_path / f"{name}.gguf"
        results.append(cgconvert.to_gguf(base, output, adapter=tmp_path / name))
    verification = cgconvert.verify(results)
    assert verification.passed, verification.to_text()
    explicit = cgconvert.verify(results[0], reference=base, adapter=tmp_path / "one")
    assert explicit.passed, explicit.to_text()


def test_another_adapter_fails(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A changed adapter, another one, and none: named by provenance and by the weights."""
    result = cgconvert.to_hf(base, tmp_path / "hf", adapter=adapter)
    assert result.manifest.source["origin"]["adapter"] == [str(adapter)]
    hashed = {file["name"] for file in result.manifest.source["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"} <= hashed
    hashes = {name: str(entry["sha256"]) for name, entry in result.manifest.files.items()}

    def verdicts(source: Checkpoint) -> tuple[Check, Check]:
        digest = hash_checkpoint(source)["sha256"]
        checks, _ = check_weights(result.path, "huggingface", source.decoder)
        (equal,) = (check for check in checks if check.name == "weights.equal")
        return check_provenance(result.path, hashes, digest, source.origin), equal

    right = verdicts(cgconvert.load(base, adapter=adapter))
    assert [check.verdict for check in right] == [Verdict.PASS, Verdict.PASS]
    copy = shutil.copytree(adapter, tmp_path / "copy")
    change_config(copy, lora_alpha=99)
    for other in (cgconvert.load(base), cgconvert.load(base, adapter=copy)):
        provenance, equal = verdicts(other)
        assert [provenance.verdict, equal.verdict] == [Verdict.WARNING, Verdict.FAIL]
        assert f"made from {base} with {adapter}, of another SHA-256" in provenance.detail
    change_config(adapter, lora_alpha=99)
    provenance, equal = verdicts(cgconvert.load(base, adapter=adapter))
    assert [provenance.verdict, equal.verdict] == [Verdict.FAIL, Verdict.FAIL]
    assert f"the source, {base} with {adapter}, is not what it was made" in provenance.detail


def test_commands_and_recipes_take_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    second = save_adapter(base, tmp_path / "second", target_modules=["fc_out"])
    arguments = ["to-hf", str(base), "--adapter", str(adapter), "--adapter", str(second)]
    assert run(*arguments, "-o", str(tmp_path / "hf")) == 0
    expected = cgconvert.load(base, adapter=[adapter, second]).decoder.layers[0]
    stored = cgconvert.load(tmp_path / "hf").decoder.layers[0]
    for name in ("q", "fc_in", "fc_out"):
        assert torch.equal(getattr(stored, name).read(), getattr(expected, name).read().half())
    path = tmp_path / "recipe.yaml"
    steps = f"source: {base}\nsteps: [to-gguf]\n"
    path.write_text(f"{steps}adapter: {adapter}\n")
    assert recipe.load(path)[0].source_options == {"adapter": (str(adapter),)}
    path.write_text(f"{steps}adapter: [{adapter}, {second}]\n")
    assert recipe.load(path)[0].source_options == {"adapter": (str(adapter), str(second))}
    path.write_text(f"{steps}adapter: [1]\n")
    with pytest.raises(InputError, match=r"recipe.yaml:3: adapter 1 is not a path"):
        recipe.load(path)
