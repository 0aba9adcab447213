"""What is no model of the family is called by its name, and no path is looked for on the Hub."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import huggingface_hub.constants as client
import pytest
from huggingface_hub import close_session

from cgconvert import embedded
from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.read import describe, read
from cgconvert.model import family
from cgconvert.sources.resolve import is_path, resolve
from tests.sources.test_hub import COMMIT, Hub, serve
from tests.support.foreign_models import MODELS, write_gguf, write_graph, write_model

Make = Callable[..., Path]


def error_of(location: str | Path, command: Callable[[str], object] = read) -> str:
    with pytest.raises(InputError) as caught:
        command(str(location))
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_another_architecture_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    folder = write_model(name, tmp_path / "model")
    for command in (read, describe):
        error = error_of(folder, command)
        assert name in error.partition("(")[0], error
        assert "convert" in error, error
        assert "mp_num" not in error, error


@pytest.mark.parametrize("name", ["Llama", "Phi-3", "GPT-2", "T5", "BERT", "OPT", "MPT"])
def test_weights_without_a_configuration_are_known_by_their_tensors(
    name: str, tmp_path: Path
) -> None:
    folder = write_model(name, tmp_path / "model")
    (folder / "config.json").unlink()
    assert name in error_of(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "codegen"}))
    assert name in error_of(folder)


def test_a_configuration_without_weights(tmp_path: Path) -> None:
    folder = write_model("Qwen2", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "is Qwen2 (model_type 'qwen2')" in error_of(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "codegen"}))
    assert "has a config.json and no weights; fetch" in error_of(folder)


def test_quantized_weights_of_another_model_are_called_by_its_name(tmp_path: Path) -> None:
    folder = write_model("Mistral", tmp_path / "model", quantization_config={"quant_method": "awq"})
    assert "is Mistral" in error_of(folder)


@pytest.mark.parametrize(
    ("architecture", "title"),
    [("llama", "Llama"), ("qwen2", "Qwen2"), ("starcoder", "StarCoder"), ("gptneox", "GPT-NeoX"),
     ("bloom", "BLOOM"), ("t5", "T5"), ("sd1", "Stable Diffusion"), ("new-one", "another model")],
)  # fmt: skip
def test_another_gguf_is_called_by_its_name(architecture: str, title: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture)
    for location in (path, tmp_path):
        for command in (read, describe):
            error = error_of(location, command)
            assert f"is {title}" in error, error
            assert f"general.architecture '{architecture}'" in error


def test_another_graph_is_called_by_its_name(tmp_path: Path) -> None:
    write_graph(tmp_path / "onnx" / "model.onnx")
    assert "has a graph (onnx/model.onnx) and no config.json" in error_of(tmp_path)
    shutil.copy(embedded.path() / "tokenizer.json", tmp_path)
    for model_type, title in (("vit", "ViT"), ("gpt2", "GPT-2"), ("mine", "another model")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        for command in (read, describe):
            assert f"is {title} (model_type '{model_type}')" in error_of(tmp_path, command)


NO_MODELS: dict[str, tuple[dict[str, str], str]] = {
    "tokenizer": ({"tokenizer.json": "{}", "vocab.json": "{}"}, "has a tokenizer and no weights"),
    "parquet": ({"data/train-00000.parquet": "PAR1"}, "is a dataset (data/train-00000.parquet)"),
    "dataset": ({"dataset_infos.json": "{}", "x.txt": ""}, "is a dataset (dataset_infos.json)"),
    "jsonl": ({"train.jsonl": "{}"}, "is a dataset (train.jsonl)"),
    "pipeline": (
        {"model_index.json": '{"_class_name": "FluxPipeline"}', "unet/x.safetensors": "x"},
        "is a diffusers pipeline, which generates no text (model_index.json, FluxPipeline)",
    ),
    "several": (
        {"codegen-2B/config.json": "{}", "codegen-2B/pytorch_model.bin": "x"},
        "has models in subfolders; give one: codegen-2B",
    ),
    "flax": ({"config.json": "{}", "flax_model.msgpack": "x"}, "has weights for Flax only"),
    "empty": ({}, "is an empty folder"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_is_called_so(kind: str, tmp_path: Path) -> None:
    files, message = NO_MODELS[kind]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    assert message in error_of(folder)


def test_an_adapter_of_another_model_is_refused_before_its_base_is_fetched(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format(factor): torch.zeros(8, 16) for factor in "AB"}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b", "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    error = error_of(tmp_path)
    assert "is an adapter whose model is Llama or a relative" in error
    assert "Hub" not in error


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model, which counts what it is asked for; the cache is empty."""
    model = tmp_path / "on-the-hub"
    model.mkdir()
    server = serve({"Salesforce/codegen-350M-mono": (COMMIT, model)})
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(client, "ENDPOINT", address)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()


PATHS = (
    "checkpoints/no-such", "./no/such", "./no-such", "../no-such", "~/no-such", "/no/such",
    ".hidden", "no/such/model", "no/such/", "C:\\models\\codegen", "C:/models", "models\\codegen",
    "no/model.gguf", "model.safetensors", "codegen-350M-mono.tar.gz", "a/codegen.tgz",
    "checkpoints/codegen-350M-mono",
)  # fmt: skip


@pytest.mark.parametrize("location", PATHS)
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(
    location: str, online: Hub, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert is_path(location)
    error = error_of(location)
    assert error.startswith(f"{location}: no such file or folder")
    assert not online.requested


def test_an_absent_path_names_its_neighbour_or_the_download(tmp_path: Path) -> None:
    (tmp_path / "codegen-tuned").mkdir()
    near = tmp_path / "codegen-tunes"
    assert f"did you mean {tmp_path / 'codegen-tuned'}?" in error_of(near)
    published = tmp_path / "codegen-2b-mono"
    assert "to have it downloaded, give codegen-2B-mono" in error_of(published)
    assert f"nor a folder {tmp_path / 'no'}" in error_of(tmp_path / "no" / "such")


def test_addresses_and_empty_names_are_refused() -> None:
    address = "https://huggingface.co/Salesforce/codegen-350M-mono/tree/main"
    assert "give the Hub's id, Salesforce/codegen-350M-mono" in error_of(address)
    assert "download it and give the path" in error_of("https://example.com/model.gguf")
    for location in ("", "  "):
        with pytest.raises(UsageError, match="the source is empty"):
            read(location)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("codegen_350M_mono", "codegen-350M-mono"),
        ("codegen-350-mono", "codegen-350M-mono"),
        ("codegen-350M-momo", "codegen-350M-mono"),
        ("codegen350M-mono", "codegen-350M-mono"),
        ("codegen2-3.7B", "codegen2-3_7B"),
        ("codegen-6B-muti", "codegen-6B-multi"),
        ("codegen-tiny", "codegen-tiny-mono"),
        ("codegen-350M", "codegen-350M-nl, codegen-350M-multi or codegen-350M-mono"),
        ("nsql-350", "nsql-350M"),
        ("gptj-6b", "gpt-j-6b"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(name: str, nearest: str) -> None:
    assert error_of(name) == f"{name}: no such file or folder; did you mean {nearest}?"


@pytest.mark.parametrize("name", [n for n in (*family.NAMES, embedded.NAME) if n != "gpt-j-6B"])
def test_names_in_any_case_are_those_of_the_hub(name: str) -> None:
    for spelling in (name.lower(), name.upper(), name):
        assert family.canonical_name(spelling).lower() == name.lower()
    assert family.canonical_name(name) == name
    if name != embedded.NAME:
        identity = family.hub_id(name)
        assert family.canonical_id(identity.upper()) == identity


def test_a_checkpoint_is_found_in_any_case(
    make_checkpoint: Make, online: Hub, tmp_path: Path
) -> None:
    assert resolve("CodeGen-Tiny-MONO").name == embedded.NAME
    (tmp_path / "checkpoints").mkdir()
    make_checkpoint("safetensors").rename(tmp_path / "checkpoints" / "codegen-350M-mono")
    assert resolve("codegen-350m-MONO").name == "codegen-350M-mono"
    assert not online.requested
    for location in ("codegen-2b-mono", "salesforce/codegen-2b-mono"):
        assert "Salesforce/codegen-2B-mono: not in the Hub cache" in error_of(location)
    models = {path.partition("?")[0] for path in online.requested if "/models/" in path}
    assert models == {"/api/models/Salesforce/codegen-2B-mono"}


def test_what_the_hub_does_not_have_is_said_so(online: Hub) -> None:
    error = error_of("Salesforce/codegen-350M-momo")
    assert "there is no such model on the Hub" in error
    assert "did you mean codegen-350M-mono?" in error
    assert "check the name" in error_of("somebody/something")


def test_another_model_on_the_hub_is_not_downloaded(online: Hub, tmp_path: Path) -> None:
    (tmp_path / "on-the-hub" / "model_index.json").write_text("{}")
    (tmp_path / "on-the-hub" / "pytorch_model.bin").write_text("")
    assert "is a diffusers pipeline" in error_of("codegen-350M-mono")
    assert not any("/resolve/" in path for path in online.requested)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def refused_address() -> str:
    """An address at which nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


NETWORKS: dict[str, tuple[str, dict[str, str], str]] = {
    "silent": ("SILENT", {}, "no answer in time; HF_HUB_ETAG_TIMEOUT=30 waits longer"),
    "refused": ("REFUSED", {}, "connection refused"),
    "no name": ("http://no-such-host.invalid", {}, "cannot be reached (its name is not resolved"),
    "dead proxy": (
        "http://hub.invalid",
        {"HTTP_PROXY": "http://me:secret@127.0.0.1:9"},
        "through the proxy http://127.0.0.1:9 (connection refused)",
    ),
    "silent proxy": ("http://hub.invalid", {"http_proxy": "SILENT"}, "(no answer in time"),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_network_one_line_says_where_to_put_the_files(
    network: str, silent: str, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, settings, message = NETWORKS[network]
    places = {"SILENT": silent, "REFUSED": refused_address()}
    monkeypatch.setattr(client, "ENDPOINT", places.get(endpoint, endpoint))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, places.get(value, value))
    close_session()  # a session keeps the proxies of its beginning
    begin = time.perf_counter()
    error = error_of("codegen-350m-mono")
    assert time.perf_counter() - begin < 5
    close_session()
    assert message in error
    assert "secret" not in error
    assert "hf download Salesforce/codegen-350M-mono --local-dir codegen-350M-mono" in error
    assert "./checkpoints/codegen-350M-mono" in error


def test_offline_says_where_to_put_the_files(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; run 'hf download" in error_of("codegen-350M-mono")
    with pytest.raises(InputError, match=r"--revision v1 .* path of the folder, without"):
        resolve("codegen-350M-mono", "v1")  # with a revision ./checkpoints is not looked at


def test_a_command_whose_hub_never_answers_ends_at_once(silent: str, tmp_path: Path) -> None:
    """The request's thread still waits: the process ends without it."""
    environment = os.environ | {
        "HF_ENDPOINT": silent, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "-m", "cgconvert", "to-gguf", "codegen-350M-mono"]
    completed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert completed.returncode == 3, completed.stderr
    (line,) = completed.stderr.splitlines()
    assert "no answer in time" in line
    assert not (tmp_path / "out").exists()


def test_a_silent_hub_is_given_up_in_time(
    silent: str, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ENDPOINT", silent)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    begin = time.perf_counter()
    assert "no answer in time" in error_of("somebody/something")
    assert time.perf_counter() - begin < 3


class _Status:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class GatedRepoError(Exception):
    response = _Status(403)


class HfHubHTTPError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Server Error")
        self.response = _Status(status)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("x"), "is gated: accept its terms at .*/a/b, then run 'hf auth login'"),
        (HfHubHTTPError(401), r"the Hub refuses it \(401\); run 'hf auth login'"),
        (HfHubHTTPError(403), r"the Hub refuses it \(403\)"),
        (HfHubHTTPError(404), "there is no such model on the Hub"),
        (HfHubHTTPError(429), "answers 429; try again later, or run 'hf download a/b"),
        (HfHubHTTPError(503), "answers 503; try again later"),
        (OSError("CERTIFICATE_VERIFY_FAILED: certificate has expired"), "is not trusted here"),
    ],
)
def test_each_refusal_of_the_hub_says_what_to_do(error: Exception, message: str) -> None:
    from cgconvert.sources.hub_errors import explain_failure

    with pytest.raises(CgconvertError, match=message):
        raise InputError(explain_failure(error, "a/b"))
