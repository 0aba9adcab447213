"""transformers sees nothing of a source but what cgconvert admitted."""

from __future__ import annotations

import json
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cgconvert.formats.read import read
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.witness.call import call
from cgconvert.verification.witness.view import link_weights, write_config, write_tokenizer
from tests.support.fine_tunes import CHAT, fine_tune

HOSTILE_CONFIG = {
    "transformers_weights": "../elsewhere.safetensors",
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "adapter_config": {"base_model_name_or_path": "someone/model"},
    "_name_or_path": "someone/model",
}
HOSTILE_TOKENIZER = {
    "fast_tokenizer_files": ["../../elsewhere.json"],
    "tokenizer_file": "/etc/passwd",
    "vocab_file": "/etc/passwd",
    "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]},
    "init_inputs": ["/etc/passwd"],
    "name_or_path": "someone/model",
}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def hostile(tmp_path: Path) -> Checkpoint:
    """A source whose files name others, with more files beside than are read."""
    folder = fine_tune(tmp_path / "source", templates={"default": CHAT})
    for name, entries in (
        ("config.json", HOSTILE_CONFIG), ("tokenizer_config.json", HOSTILE_TOKENIZER)
    ):  # fmt: skip
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    payload = pickle.dumps(Payload(tmp_path / "payload has run"))
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (folder / name).write_bytes(payload)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    (folder / "code.py").write_text("raise SystemExit('the code of a checkpoint ran')")
    return read(str(folder))


def view_of(source: Checkpoint) -> dict[str, Any]:
    """The files of the private folder: the contents of JSON, the targets of links."""
    with closing(AdmittedFiles(source.path, source.path)) as view:
        write_tokenizer(source, view)
        write_config(source, view.folder)
        link_weights(source, view)
        return {
            path.relative_to(view.folder).as_posix(): (
                path.resolve() if path.is_symlink() else path.read_text(encoding="utf-8")
            )
            for path in sorted(view.folder.rglob("*"))
        }


def test_a_private_folder_has_the_admitted_files_and_entries_alone(
    hostile: Checkpoint, tmp_path: Path
) -> None:
    files = view_of(hostile)
    assert set(files) == {
        "added_tokens.json", "chat_template.jinja", "config.json", "model.safetensors",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert files["model.safetensors"] == (hostile.path / "model.safetensors").resolve()
    for name, entries in (
        ("config.json", HOSTILE_CONFIG), ("tokenizer_config.json", HOSTILE_TOKENIZER)
    ):  # fmt: skip
        assert not json.loads(files[name]).keys() & entries.keys()


def test_the_witness_answers_and_nothing_of_the_source_runs(
    hostile: Checkpoint, tmp_path: Path
) -> None:
    witness = call(hostile, ["a = 1"], [[40, 50]], 2, None, SilentProgress())
    assert witness.model, witness.no_model
    assert witness.tokenizer, witness.no_tokenizer
    assert not (tmp_path / "payload has run").exists()


def test_padding_and_truncation_of_a_tokenizer_are_left_out(tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "source")
    path = folder / "tokenizer.json"
    entries = json.loads(path.read_text())
    fixed = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
             "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    path.write_text(json.dumps(entries | {"padding": fixed}))
    source = read(str(folder))
    stored = json.loads(view_of(source)["tokenizer.json"])
    assert stored["padding"] is None
    assert stored["model"] == entries["model"]
