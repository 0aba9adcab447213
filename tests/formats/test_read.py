"""Every original layout is read to the same numbers, and nothing is guessed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.io.cache import cache_folder
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from tests.conftest import SMALL

Make = Callable[..., Path]


def weights(source: Path, tokenizer: Path, **options: object) -> dict[str, torch.Tensor]:
    checkpoint = read(str(source), ReadOptions(tokenizer=tokenizer, **options))  # type: ignore[arg-type]
    decoder = checkpoint.decoder
    tensors = {"wte": decoder.wte.read(), "head": decoder.head.read()}
    for i, block in enumerate(decoder.layers):
        tensors[f"qkv{i}"] = block.qkv.read()
        for part in ("o", "fc_in", "fc_in_bias", "fc_out", "fc_out_bias", "ln_weight", "ln_bias"):
            tensors[f"{part}{i}"] = getattr(block, part).read()
    return {name: tensor.half() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "layout", [n for n in synthetic.LAYOUTS if n not in ("safetensors", "sparse")]
)
def test_layouts_hold_the_same_numbers(
    layout: str, make_checkpoint: Make, tokenizer_folder: Path
) -> None:
    first = weights(make_checkpoint("safetensors"), tokenizer_folder)
    second = weights(make_checkpoint(layout), tokenizer_folder)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_name_and_provenance_of_a_tarball(make_checkpoint: Make, tokenizer_folder: Path) -> None:
    archive = make_checkpoint("tarball")
    checkpoint = read(str(archive), ReadOptions(tokenizer=tokenizer_folder))
    assert checkpoint.name == "codegen-small-mono"
    assert checkpoint.origin["archive"] == archive.name
    assert len(checkpoint.origin["archive_sha256"]) == 64
    before = checkpoint.path.stat().st_mtime_ns
    again = read(str(archive), ReadOptions(tokenizer=tokenizer_folder))
    assert again.path == checkpoint.path
    assert again.path.stat().st_mtime_ns == before


def test_the_last_step_is_read_unless_another_is_named(make_checkpoint: Make) -> None:
    folder = make_checkpoint("jaxformer")
    shutil.copytree(folder / "1000", folder / "900")
    assert read(str(folder)).path.name == "1000"
    assert read(str(folder), ReadOptions(step=900)).path.name == "900"
    with pytest.raises(InputError, match="has no step 7; it has 900, 1000"):
        read(str(folder), ReadOptions(step=7))
    with pytest.raises(UsageError, match="`step` is for Jaxformer"):
        read(str(make_checkpoint("torch")), ReadOptions(step=900))


def test_eight_groups_from_the_training_configuration(
    make_checkpoint: Make, small_state: synthetic.RandomState
) -> None:
    geometry = replace(SMALL, n_head=8)
    state, eight = synthetic.regroup(small_state, geometry, 8)
    first = read(str(make_checkpoint("safetensors", geometry=geometry)))
    second = read(str(make_checkpoint("jaxformer", state, eight)))
    assert second.geometry.mp_num == 8
    for a, b in zip(first.decoder.layers, second.decoder.layers, strict=True):
        assert torch.equal(a.qkv.read(), b.qkv.read().half())


def test_bfloat16_leaves_are_read(
    make_checkpoint: Make, small_state: synthetic.RandomState
) -> None:
    """numpy saves bfloat16 as a two-byte type it does not know."""
    folder = make_checkpoint("jaxformer")
    archive = folder / "1000" / "model" / "0.npz"
    leaves = dict(np.load(archive))
    halved: dict[str, Any] = {
        name: torch.from_numpy(a).bfloat16().view(torch.int16).numpy().view("V2")
        for name, a in leaves.items()
    }
    np.savez(archive, **halved)
    expected = small_state["lm_head.weight"].float().bfloat16()
    assert torch.equal(read(str(folder)).decoder.head.read(), expected)


def test_groups_are_never_guessed(make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="give it with `mp_num`"):
        read(str(folder))
    assert read(str(folder), ReadOptions(mp_num=2)).geometry.mp_num == 2


def test_an_unknown_tpu_does_not_tell_the_groups(make_checkpoint: Make) -> None:
    folder = make_checkpoint("jaxformer")
    config = json.loads((folder / "config.json").read_text())
    del config["tpu_version"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="tpu_version is None"):
        read(str(folder))
    assert read(str(folder), ReadOptions(mp_num=4)).geometry.mp_num == 4


def test_family_names_are_found_in_their_places(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Salesforce/codegen-350M-mono: not in the Hub cache"):
        read("codegen-350M-mono")
    (tmp_path / "checkpoints").mkdir()
    make_checkpoint("safetensors").rename(tmp_path / "checkpoints" / "codegen-350M-mono")
    assert read("codegen-350M-mono").name == "codegen-350M-mono"


def test_the_hub_cache_is_used_offline(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    cache = tmp_path / "hub"
    repository = cache / "models--Salesforce--codegen-350M-mono"
    commit = "0123456789" * 4
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    make_checkpoint("torch").rename(repository / "snapshots" / commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    checkpoint = read("codegen-350M-mono")
    assert checkpoint.name == "codegen-350M-mono"
    assert checkpoint.origin["hub"] == "Salesforce/codegen-350M-mono"
    assert checkpoint.origin["revision"] == commit


def test_no_tokenizer_and_no_hub(make_checkpoint: Make) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer, .*hf download .*, with `tokenizer`"):
        read(str(make_checkpoint("tarball")))


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    make_checkpoint: Make, tokenizer_folder: Path
) -> None:
    small = replace(SMALL, vocab_size=1000)
    folder = make_checkpoint("safetensors", synthetic.RandomState(small), small)
    with pytest.raises(InputError, match=r"only 1000 rows; give the right one with `tokenizer`"):
        read(str(folder))


class Payload:
    """What a malicious pickle does."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


def repickled(folder: Path, raw: bytes) -> None:
    """Put another data.pkl into a torch file."""
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old:
        members = {i.filename: old.read(i) for i in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in members.items():
            new.writestr(name, raw if name.endswith("/data.pkl") else data)


def test_a_pickle_that_calls_something_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, witness = make_checkpoint("torch"), tmp_path / "witness"
    for protocol in range(6):
        repickled(folder, pickle.dumps({"a": Payload(witness)}, protocol=protocol))
        with pytest.raises(InputError, match="refused"):
            read(str(folder))
    good = pickle.dumps({"a": 1}, protocol=2)
    repickled(folder, good + pickle.dumps(Payload(witness), protocol=2))
    with pytest.raises(InputError, match="refused: bytes follow the end"):
        read(str(folder))
    assert not witness.exists()


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))


BROKEN: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "torch cut short": (
        "torch",
        "pytorch_model.bin",
        lambda p: p.write_bytes(p.read_bytes()[:100_000]),
        "not a sound zip archive",
    ),
    "an empty file": (
        "torch", "pytorch_model.bin", lambda p: p.write_bytes(b""), "the file is empty",
    ),
    "a git-lfs pointer": (
        "torch",
        "pytorch_model.bin",
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "it is a git-lfs pointer",
    ),
    "an HTML page": (
        "torch",
        "pytorch_model.bin",
        lambda p: p.write_bytes(b"<!doctype html><html></html>"),
        "it is an HTML page",
    ),
    "safetensors cut short": (
        "safetensors",
        "model.safetensors",
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        "is truncated",
    ),
    "safetensors with bytes behind": (
        "safetensors",
        "model.safetensors",
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        "has trailing bytes",
    ),
    "safetensors with a header that lies": (
        "safetensors",
        "model.safetensors",
        lambda p: rewrite(p, lambda d: d.__setitem__(slice(0, 8), b"\xff" * 8)),
        "not a safetensors file, or truncated",
    ),
    "config is not JSON": (
        "safetensors", "config.json", lambda p: p.write_text("{"), "is not valid JSON",
    ),
    "config is missing": ("torch", "config.json", Path.unlink, "cannot be read"),
    "config lies about the heads": (
        "torch",
        "config.json",
        lambda p: p.write_text(p.read_text().replace('"n_head": 4', '"n_head": 6')),
        "n_embd 256 is not a multiple of n_head 6",
    ),
    "config lies about the layers": (
        "torch",
        "config.json",
        lambda p: p.write_text(p.read_text().replace('"n_layer": 2', '"n_layer": 3')),
        r"transformer\.h\.2\.ln_1\.weight is missing",
    ),
    "a shard is missing": (
        "torch-sharded",
        "pytorch_model-00002-of-00002.bin",
        Path.unlink,
        "names pytorch_model-00002-of-00002.bin, which is not there",
    ),
    "an index that points outside": (
        "safetensors-sharded",
        "model.safetensors.index.json",
        lambda p: p.write_text(p.read_text().replace('"model-00001', '"../model-00001')),
        "names a shard outside its folder",
    ),
    "npz cut short": (
        "jaxformer",
        "1000/model/0.npz",
        lambda p: p.write_bytes(p.read_bytes()[:-5000]),
        "not a sound zip archive",
    ),
    "npz with objects": (
        "jaxformer",
        "1000/model/0.npz",
        lambda p: np.savez(p, *[np.array([{}], dtype=object)] * 14),
        "expected float32, float16 or bfloat16",
    ),
    "npz of another shape": (
        "jaxformer",
        "1000/model/0.npz",
        lambda p: np.savez(p, *[np.zeros((3, 3), np.float32)] * 14),
        r"arr_0.npy \(embed.b\) is \[3, 3\], the configuration says \[256\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_clear_line(case: str, make_checkpoint: Make) -> None:
    layout, file, damage, message = BROKEN[case]
    folder = make_checkpoint(layout)
    damage(folder / file)
    with pytest.raises(InputError, match=message) as caught:
        read(str(folder))
    assert "\n" not in str(caught.value)


def tar_with(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_tarballs_that_reach_outside_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "evil.json"
    link = tarfile.TarInfo("codegen/config.json")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    cases = {
        "points outside": tarfile.TarInfo("../../config.json"),
        "holds no config.json": link,
        "holds config.json twice": tarfile.TarInfo("a/config.json"),
    }
    for message, info in cases.items():
        members = [(info, b"" if info is link else b"{}")]
        if "twice" in message:
            members.append((tarfile.TarInfo("b/config.json"), b"{}"))
        path = tar_with(tmp_path / f"{len(message)}.tar.gz", *members)
        with pytest.raises(InputError, match=message):
            read(str(path))
    assert not outside.exists()
    assert not cache_folder().exists()


def test_a_tarball_cut_short_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    archive = make_checkpoint("tarball")
    archive.write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(InputError, match=r"not a readable \.tar\.gz|truncated"):
        read(str(archive))
    assert not cache_folder().exists()


def test_a_tensor_whose_numbers_are_scattered_is_refused(make_checkpoint: Make) -> None:
    folder = make_checkpoint("torch")
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    state["lm_head.bias"] = torch.stack([state["lm_head.bias"]] * 2, 1)[:, 0]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"lm_head\.bias is not contiguous"):
        read(str(folder))


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    for source in ("no/such/folder", str(tmp_path), "nonsense"):
        with pytest.raises(CgconvertError):
            read(source)


def test_a_geometry_needs_whole_numbers(make_checkpoint: Make) -> None:
    folder = make_checkpoint("torch")
    config = json.loads((folder / "config.json").read_text())
    for value in ("4", 4.5, True, -1, 1 << 40):
        (folder / "config.json").write_text(json.dumps(config | {"n_head": value}))
        with pytest.raises(InputError, match=r"n_head is .*not a positive whole number"):
            read(str(folder))


def test_geometry_is_read_and_not_taken_from_the_name(make_checkpoint: Make) -> None:
    checkpoint = read(str(make_checkpoint("torch", name="codegen-16B-mono")))
    assert checkpoint.geometry == Geometry(
        n_layer=2, n_embd=256, n_head=4, rotary_dim=32, n_positions=128, vocab_size=4096, mp_num=4
    )
