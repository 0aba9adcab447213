"""Which files are downloaded, how half a snapshot is completed, and paths in the Hub's cache."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants as client
import pytest

from cgconvert.errors import InputError, UsageError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.sources.hub import fetch_checkpoint
from cgconvert.sources.resolve import resolve
from tests.sources.test_hub import COMMIT, Hub, serve

Make = Callable[..., Path]

REPOSITORY = "somebody/codegen-tuned"
OTHER_COMMIT = "fedcba9876" * 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, empty, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def online(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with one repository, whose files are those of the folder `repository`."""
    folder = tmp_path / "repository"
    folder.mkdir()
    server = serve({REPOSITORY: (COMMIT, folder)})
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(client, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "ENDPOINT", address)
    monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()


def files_of(source: Path, repository: Path, *, without: tuple[str, ...] = ()) -> None:
    """Put a source's files into the repository."""
    for path in source.iterdir():
        if path.name not in without:
            shutil.copy(path, repository)


def put(repository: Path, *names: str) -> None:
    """Add files that no one needs."""
    for name in names:
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not to be downloaded")


def fetched(server: Hub) -> set[str]:
    """The paths of all files that were asked for, without those of the tokenizer."""
    marker = f"/resolve/{COMMIT}/"
    names = {path.partition(marker)[2] for path in server.requested if marker in path}
    tokenizer = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "config",
                 "generation_config")  # fmt: skip
    return {name for name in names if not name.startswith(tokenizer)}


BESIDE = (
    "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "onnx/model.onnx",
    "onnx/model_quantized.onnx", "codegen.Q4_K_M.gguf", "training_args.bin", "optimizer.pt",
    "adapter_model.safetensors", "adapter_config.json", "flax_model.msgpack", "tf_model.h5",
    "modeling_codegen.py", "runs/events.safetensors", "rust_model.ot",
)  # fmt: skip

DOWNLOADS = {
    "torch": {"pytorch_model.bin"},
    "torch-sharded": {
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    },
    "safetensors": {"model.safetensors"},
    "safetensors-sharded": {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    },
}


@pytest.mark.parametrize("layout", DOWNLOADS)
def test_only_the_weights_are_downloaded(
    layout: str, make_checkpoint: Make, online: Hub, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    files_of(make_checkpoint(layout), repository)
    suffix = ".bin" if "torch" in layout else ".safetensors"
    put(repository, *BESIDE, f"model-00003-of-00003{suffix}", f"pytorch_model-9{suffix}")
    if layout == "safetensors":
        put(repository, "pytorch_model.bin", "pytorch_model.bin.index.json")
    (repository / "chat_template.jinja").write_text("{{ messages }}")
    checkpoint = read(REPOSITORY)
    assert fetched(online) == DOWNLOADS[layout] | {"chat_template.jinja"}
    assert checkpoint.name == "codegen-tuned"
    assert checkpoint.origin["revision"] == COMMIT
    online.requested.clear()
    read(REPOSITORY)
    assert not online.requested  # what was not needed is not missed


def test_a_file_of_another_name_and_a_name_with_brackets(
    make_checkpoint: Make, online: Hub, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    files_of(make_checkpoint("torch"), repository, without=("pytorch_model.bin",))
    shutil.copy(tmp_path / "source-torch" / "codegen-small-mono" / "pytorch_model.bin",
                repository / "model[1].pt")  # fmt: skip
    put(repository, "model1.gguf", "training_args.bin")
    folder, commit = fetch_checkpoint(REPOSITORY, None)
    assert (fetched(online), commit) == ({"model%5B1%5D.pt"}, COMMIT)
    assert (folder / "model[1].pt").is_file()


def test_an_adapter_is_downloaded_whole(online: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    put(repository, "adapter_model.safetensors", "adapter_model.bin", "README.md",
        "checkpoint-500/adapter_model.safetensors")  # fmt: skip
    (repository / "adapter_config.json").write_text("{}")
    folder, _ = fetch_checkpoint(REPOSITORY, None)
    assert fetched(online) == {"adapter_model.safetensors", "adapter_config.json"}
    online.requested.clear()
    assert fetch_checkpoint(REPOSITORY, None)[0] == folder
    assert not online.requested  # nothing is missing


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("codegen.gguf", "README.md"), r"no weights for transformers; it has README\.md, codegen"),
        (("onnx/model.onnx", "config.json"), r"no weights for transformers; it has config\.json"),
        (("tf_model.h5",), "has weights for TensorFlow only"),
        (("model-00001-of-00002.safetensors",), "model-00001-of.*, but lacks model-00002-of"),
    ],
)
def test_a_repository_without_weights(
    names: tuple[str, ...], message: str, online: Hub, tmp_path: Path
) -> None:
    put(tmp_path / "repository", *names)
    with pytest.raises(InputError, match=rf"^somebody/codegen-tuned: (has )?{message}"):
        fetch_checkpoint(REPOSITORY, None)
    assert fetched(online) == set()


def cached(cache: Path, source: Path, commit: str = COMMIT, *, main: bool = True) -> Path:
    """Put a source into the Hub's cache; returns its snapshot."""
    folder = cache / "models--somebody--codegen-tuned"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for path in source.iterdir():
        blob = folder / "blobs" / f"{commit[:4]}-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (folder / "refs").mkdir(exist_ok=True)
    if main:
        (folder / "refs" / "main").write_text(commit)
    return snapshot


HALVES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no weights": ("torch", ("pytorch_model.bin",), "weights"),
    "no configuration": ("safetensors", ("config.json",), r"config\.json"),
    "no tokenizer": ("torch", ("tokenizer.json", "merges.txt"), r"tokenizer\.json"),
    "a shard": (
        "torch-sharded", ("pytorch_model-00002-of-00002.bin",),
        r"pytorch_model-00002-of-00002\.bin",
    ),
    "shards and configuration": (
        "safetensors-sharded", ("model-00001-of-00002.safetensors", "config.json"),
        r"model-00001-of-00002\.safetensors, config\.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("link", [False, True])
def test_half_a_snapshot_is_completed(
    half: str, link: bool, make_checkpoint: Make, online: Hub, cache: Path, tmp_path: Path
) -> None:
    """What is missing may be absent, or a link to a blob that is not there."""
    layout, names, _ = HALVES[half]
    source = make_checkpoint(layout)
    files_of(source, tmp_path / "repository")
    snapshot = cached(cache, source)
    for name in names:
        (snapshot / name).resolve().unlink()
        if not link:
            (snapshot / name).unlink()
    checkpoint = read(REPOSITORY)
    assert {path.rpartition("/")[2] for path in online.requested if "/resolve/" in path} >= {
        name for name in names if name not in ("merges.txt",)
    }
    assert checkpoint.decoder.head.read().shape == (4096, 256)
    online.requested.clear()
    read(REPOSITORY)
    assert not online.requested


@pytest.mark.parametrize("half", HALVES)
def test_half_a_snapshot_offline_says_what_is_missing(
    half: str, make_checkpoint: Make, cache: Path
) -> None:
    layout, names, message = HALVES[half]
    snapshot = cached(cache, make_checkpoint(layout))
    for name in names:
        (snapshot / name).unlink()
    expected = rf"^{REPOSITORY}: its snapshot in the Hub cache lacks {message} and cannot be down"
    with pytest.raises(InputError, match=expected) as caught:
        read(REPOSITORY)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_named(make_checkpoint: Make, cache: Path) -> None:
    folder = make_checkpoint("torch")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    expected = rf"^{re.escape(str(folder))}: has no tokenizer, and openai-community/gpt2 cannot be"
    with pytest.raises(InputError, match=expected):
        read(str(folder))


def test_a_snapshot_without_weights_names_its_repository(
    make_checkpoint: Make, cache: Path
) -> None:
    snapshot = cached(cache, make_checkpoint("torch"))
    (snapshot / "pytorch_model.bin").unlink()
    for path in (snapshot, snapshot.parents[1]):
        with pytest.raises(InputError, match=rf"has no weights; give {REPOSITORY} as the source"):
            read(str(path))


def test_a_tokenizer_of_the_user_needs_no_other(
    make_checkpoint: Make, cache: Path, tokenizer_folder: Path
) -> None:
    snapshot = cached(cache, make_checkpoint("torch"))
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "vocab.json").unlink()
    checkpoint = read(REPOSITORY, ReadOptions(tokenizer=tokenizer_folder))
    assert checkpoint.origin["revision"] == COMMIT


def test_paths_in_the_cache_are_sources(make_checkpoint: Make, cache: Path) -> None:
    snapshot = cached(cache, make_checkpoint("safetensors"))
    folder = snapshot.parents[1]
    relative = Path(os.path.relpath(folder))
    for path in (folder, snapshot, snapshot.parent, snapshot / "model.safetensors", relative):
        checkpoint = read(str(path))
        assert checkpoint.name == "codegen-tuned"
        origin = {key: checkpoint.origin[key] for key in ("given", "hub", "revision")}
        assert origin == {"given": str(path), "hub": REPOSITORY, "revision": COMMIT}
        again = ReadOptions.from_origin(checkpoint.origin)
        assert read(str(path), again).path == checkpoint.path


def test_a_repository_without_organisation(make_checkpoint: Make, cache: Path) -> None:
    snapshot = cached(cache, make_checkpoint("safetensors"))
    folder = snapshot.parents[1].rename(cache / "models--codegen")
    assert resolve(str(folder)).origin == {"hub": "codegen", "revision": COMMIT}


def test_several_snapshots(make_checkpoint: Make, cache: Path) -> None:
    source = make_checkpoint("safetensors")
    first = cached(cache, source, main=False)
    folder = first.parents[1]
    assert resolve(str(folder)).path == first
    second = cached(cache, source, OTHER_COMMIT, main=False)
    with pytest.raises(InputError, match=rf"several snapshots and no refs/main: .*{COMMIT}, fedc"):
        resolve(str(folder))
    assert resolve(str(folder), COMMIT).path == first
    (folder / "refs" / "main").write_text(OTHER_COMMIT)
    assert resolve(str(folder)).path == second
    (folder / "refs" / "main").write_text("1" * 40)
    with pytest.raises(InputError, match=r"main is 1{40}, of which there is no snapshot"):
        resolve(str(folder))
    with pytest.raises(InputError, match=r"has no snapshot of `revision=v1`; it has"):
        resolve(str(folder), "v1")
    with pytest.raises(InputError, match=r"is the snapshot 0123456789.*, not `revision=v1`"):
        resolve(str(first), "v1")


def test_a_dead_link_in_a_snapshot_is_named(make_checkpoint: Make, cache: Path) -> None:
    snapshot = cached(cache, make_checkpoint("safetensors-sharded"))
    folder = snapshot.parents[1]
    (snapshot / "README.md").symlink_to("../../blobs/nothing")  # not needed
    resolve(str(folder))
    for name in ("config.json", "tokenizer.json", "model-00002-of-00002.safetensors"):
        target = (snapshot / name).resolve()
        kept = target.read_bytes()
        target.unlink()
        for path in (folder, snapshot):
            with pytest.raises(
                InputError, match=rf"{name}: is a link to '\.\./\.\./blobs/.*{name}"
            ):
                resolve(str(path))
        target.write_bytes(kept)


def test_a_revision_of_something_local_is_refused(
    make_checkpoint: Make, cache: Path, tmp_path: Path
) -> None:
    source = make_checkpoint("safetensors")
    for location in (str(source), "codegen-tiny-mono", f"./{source.relative_to(tmp_path)}"):
        with pytest.raises(UsageError, match="`revision` chooses a commit on the Hub"):
            read(location, ReadOptions(revision="main"))
    # A name or an id with a revision means the Hub, even if there is a folder of that name.
    source.rename(tmp_path / "codegen-350M-mono")
    shutil.copytree(tmp_path / "codegen-350M-mono", tmp_path / REPOSITORY)
    for location in ("codegen-350M-mono", REPOSITORY):
        assert read(location).origin == {"given": location}
        with pytest.raises(InputError, match="not in the Hub cache and cannot be downloaded"):
            read(location, ReadOptions(revision="v2"))


def test_an_id_that_is_not_in_the_cache(cache: Path) -> None:
    with pytest.raises(InputError, match=r"^nowhere/no-such: not in the Hub cache"):
        read("nowhere/no-such")


def test_a_broken_index_in_the_repository(
    make_checkpoint: Make, online: Hub, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    files_of(make_checkpoint("torch-sharded"), repository)
    index = repository / "pytorch_model.bin.index.json"
    data = json.loads(index.read_text())
    for place, message in (
        ("../../../etc/passwd", "names a shard outside its folder"),
        ("pytorch_model-9.bin", "names pytorch_model-9.bin, which is not there"),
    ):
        data["weight_map"] |= dict.fromkeys(data["weight_map"], place)
        index.write_text(json.dumps(data))
        with pytest.raises(InputError, match=message):
            read(REPOSITORY)
        assert not any("passwd" in path for path in online.requested)
        shutil.rmtree(tmp_path / "hub" / "models--somebody--codegen-tuned")
