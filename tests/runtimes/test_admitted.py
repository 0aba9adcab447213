"""What was checked is what runs: each runtime gets an artefact's admitted files, and no other."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cgconvert
from cgconvert.errors import InputError
from cgconvert.io.system import open_file_links
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes import RUNTIMES, open_runtime, runtime_class
from cgconvert.verification import subject
from cgconvert.verification.verify import verify
from tests.support.cuda_packages import written

IDS = [40, 50, 60, 70]
NAMES = [(format_, name) for format_, table in RUNTIMES.items() for name in table]
TOKENIZER = {
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}  # fmt: skip
SETTINGS = {"config.json", "generation_config.json"}
ONNX = {"onnx/model.onnx", "onnx/model.onnx_data", *SETTINGS, *TOKENIZER}
ADMITTED: Mapping[str, set[str]] = {
    "transformers": {"model.safetensors", *SETTINGS, *TOKENIZER},
    "onnxruntime": ONNX,
    "onnxruntime-genai": {"genai_config.json", *ONNX},
    "llama.cpp": {"model.gguf"},
}
DECOYS = (
    "pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "adapter_model.bin", "modeling_codegen.py", "tokenizer.model", "chat_template.json",
    "onnx/ort_config.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "a required privilege is not held by the client")


@pytest.fixture(scope="module")
def originals(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(source, tmp_path_factory.mktemp("originals"))


@pytest.fixture
def artefacts(originals: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of an artefact of each format, in folders that other files lie in."""
    copies = {}
    for format_, path in originals.items():
        folder = tmp_path / format_
        if path.is_dir():
            shutil.copytree(path, folder)
            copies[format_] = folder
        else:
            folder.mkdir()
            copies[format_] = folder / "m-00001-of-00002.gguf"
            shutil.copyfile(path, copies[format_])
    return copies


def change_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def folder_of(artefact: Path) -> Path:
    return artefact if artefact.is_dir() else artefact.parent


@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_a_runtime_gets_the_admitted_files_alone(
    format_: str, name: str, artefacts: dict[str, Path]
) -> None:
    folder = folder_of(artefacts[format_])
    for decoy in DECOYS:
        if (folder / decoy).parent.is_dir():
            (folder / decoy).write_bytes(b"a decoy")
    if format_ == "gguf":
        (folder / "m-00002-of-00002.gguf").write_bytes(b"a decoy")
    with closing(runtime_class(format_, name).admit(artefacts[format_])) as files:
        lying = {
            path.relative_to(files.folder).as_posix()
            for path in files.folder.rglob("*")
            if not path.is_dir()
        }
        assert lying == ADMITTED[name] == files.files.keys()


@pytest.mark.parametrize("way", ["descriptor", "name", "copy"])
@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_what_is_exchanged_after_the_check_is_not_run(
    format_: str, name: str, way: str, artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "descriptor":
        monkeypatch.setattr(open_file_links, "PROCESSES", Path("nowhere"))
    if way == "copy":
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    runtime, path = runtime_class(format_, name), artefacts[format_]
    with closing(runtime.open(path, "cpu", 1)) as opened:
        expected = opened.feed(IDS)
    with closing(runtime.admit(path)) as files:
        for admitted in files.files.values():
            admitted.unlink()
            admitted.write_bytes(b"what a stranger put there")
        if format_ == "onnx" and way == "descriptor":  # it wants to see where a link leads
            with pytest.raises(InputError, match="cannot load it"):
                runtime.load(files.path, "cpu", 1)
        else:
            with closing(runtime.load(files.path, "cpu", 1)) as loaded:
                assert np.array_equal(loaded.feed(IDS), expected)
        with pytest.raises(InputError, match="was changed or replaced while it was in use"):
            files.check_unchanged()


CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
LOADING: tuple[tuple[str, str, Any], ...] = (
    (CONFIG, "transformers_weights", "../elsewhere.safetensors"),
    (CONFIG, "auto_map", {"AutoModelForCausalLM": "code.Model"}),
    (CONFIG, "quantization_config", {"quant_method": "gptq"}),
    (CONFIG, "attn_implementation", "someone/kernel"),
    (CONFIG, "configuration_files", ["config.9.0.0.json"]),
    (CONFIG, "architectures", ["LlamaForCausalLM"]),
    (CONFIG, "tokenizer_class", "LlamaTokenizer"),
    (CONFIG, "text_config", {"n_layer": 1}),
    (CONFIG, "base_model_name_or_path", "someone/model"),
    (CONFIG, "activation_function", {"a": {"b": {"c": "deep"}}}),
    (CONFIG, "activation_function", "x" * 5000),
    ("generation_config.json", "auto_map", {"a": "code.f"}),
    (TOKENIZER_CONFIG, "fast_tokenizer_files", ["tokenizer.9.0.0.json"]),
    (TOKENIZER_CONFIG, "tokenizer_file", "../elsewhere.json"),
    (TOKENIZER_CONFIG, "vocab_file", "../elsewhere.json"),
    (TOKENIZER_CONFIG, "init_inputs", ["../elsewhere.json"]),
    (TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": ["code.T", None]}),
    (TOKENIZER_CONFIG, "tokenizer_class", "XLMRobertaTokenizer"),
    (TOKENIZER_CONFIG, "tokenizer_class", ["GPT2Tokenizer"]),
)


@pytest.mark.parametrize(("file", "key", "value"), LOADING)
def test_an_entry_that_loads_something_else_is_refused_by_name(
    file: str, key: str, value: Any, artefacts: dict[str, Path]
) -> None:
    for format_, name in NAMES:
        folder = artefacts[format_]
        if format_ == "gguf":
            continue
        change_json(folder / file, {key: value})
        with pytest.raises(InputError) as caught:
            runtime_class(format_, name).admit(folder)
        assert str(caught.value).startswith(f"{folder / file}: ")
        assert key in str(caught.value)
        assert "\n" not in str(caught.value)


UNKNOWN: Mapping[str, dict[str, Any]] = {
    CONFIG: {"num_labels": 10**9, "is_decoder": True, "_commit_hash": "abc", "x": "y",
             "_name_or_path": "someone/model", "pruned_heads": {"0": [1]}},
    "generation_config.json": {"max_length": 3, "cache_implementation": "offloaded"},
    TOKENIZER_CONFIG: {"name_or_path": "someone/model", "_commit_hash": "abc", "backend": "other",
                       "from_slow": True, "chat_template": "{{ 1 }}", "processor_class": "P"},
    "special_tokens_map.json": {"tokenizer_class": "LlamaTokenizer", "x": "y"},
    "tokenizer.json": {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right",
                                   "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                                   "pad_token": "!"}, "x": "y"},
}  # fmt: skip


def test_entries_that_are_not_allowed_do_not_reach_the_runtime(artefacts: dict[str, Path]) -> None:
    folder = artefacts["huggingface"]
    with closing(runtime_class("huggingface").open(folder, "cpu", 1)) as runtime:
        expected, ids = runtime.feed(IDS), runtime.tokenize("def f(x):\n    return")
    for name, entries in UNKNOWN.items():
        change_json(folder / name, entries)
    with closing(runtime_class("huggingface").admit(folder)) as files:
        for name, entries in UNKNOWN.items():
            stored = json.loads((files.folder / name).read_text())
            assert not {key for key in entries if stored.get(key) is not None}, name
    with closing(runtime_class("huggingface").open(folder, "cpu", 1)) as runtime:
        assert np.array_equal(runtime.feed(IDS), expected)
        assert runtime.tokenize("def f(x):\n    return") == ids


def test_errors_of_a_runtime_name_the_artefact(artefacts: dict[str, Path]) -> None:
    folder = artefacts["huggingface"]
    change_json(folder / CONFIG, {"activation_function": "no such function"})
    for opening in (partial(open_runtime, "huggingface"), runtime_class("huggingface").open):
        with pytest.raises(InputError) as caught:
            opening(folder, "cpu", threads=1)
        assert str(caught.value).startswith(f"{folder}: transformers cannot load it")
        assert "cgconvert-" not in str(caught.value)


@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_an_artefact_that_is_replaced_while_it_is_loaded_is_said_to_be(
    format_: str, name: str, artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_class(format_, name)
    path = artefacts[format_]

    def load(*_: Any, **__: Any) -> Any:
        shutil.rmtree(folder_of(path))
        raise InputError("a part of the file is missing")

    monkeypatch.setattr(runtime, "load", load)
    with pytest.raises(InputError, match="was changed or replaced while it was in use"):
        runtime.open(path)


def test_an_index_names_shards_alone(source: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    cgconvert.to_hf(source, output=folder, max_shard_size="100kB")
    change_json(folder / "model.safetensors.index.json", {"metadata": {"x": "y"}, "z": 1})
    with closing(runtime_class("huggingface").admit(folder)) as files:
        index = json.loads((files.folder / "model.safetensors.index.json").read_text())
        assert index.keys() == {"metadata", "weight_map"}
        assert index["metadata"] == {}
        shards = {path.name for path in files.folder.glob("*.safetensors")}
        assert shards == set(index["weight_map"].values())


@pytest.mark.parametrize("moment", ["before the runtime", "while it runs", "after it"])
def test_a_file_that_changes_while_it_is_verified_is_an_error(
    moment: str, artefacts: dict[str, Path], source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artefacts["gguf"]

    def change() -> None:
        data = path.read_bytes()
        path.write_bytes(data)

    place = {"before the runtime": "open_runtime", "while it runs": "observe_quickly",
             "after it": "run_checks"}[moment]  # fmt: skip
    function = getattr(subject, place)

    def changing(*arguments: Any, **options: Any) -> Any:
        change()
        return function(*arguments, **options)

    monkeypatch.setattr(subject, place, changing)
    with pytest.raises(InputError, match=f"^{path}: was changed or replaced while it was in use"):
        verify(path, "gguf", "F16", source, "cpu", quick=True, threads=1)


def test_a_file_that_changes_while_it_generates_is_an_error(artefacts: dict[str, Path]) -> None:
    path = artefacts["gguf"]
    pieces = cgconvert.stream_generate(path, "import os", max_new_tokens=3)
    next(pieces)
    path.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=f"^{path}: was changed or replaced"):
        list(pieces)
