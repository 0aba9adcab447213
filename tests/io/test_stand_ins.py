"""Every file that is read may be a pointer or a web page, and is then called one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert.errors import InputError
from cgconvert.formats.gguf.imatrix import read_imatrix
from cgconvert.formats.read import ReadOptions, describe, read
from cgconvert.texts.text import read_text
from cgconvert.write.execute import execute
from tests.support import plans

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><title>404</title></html>"

Make = Callable[..., Path]

FILES = {
    "safetensors": (
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json",
    ),
    "safetensors-sharded": ("model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "torch": ("pytorch_model.bin",),
    "torch-sharded": ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    "jaxformer": ("1000/model/0.npz", "config.json"),
    "tarball": ("",),
    "onnx": ("onnx/model.onnx", "onnx/model.onnx_data", "config.json", "tokenizer.json"),
    "gguf": ("",),
}  # fmt: skip


def make_source(layout: str, make_checkpoint: Make, folder: Path) -> Path:
    """Write the small model as a source of this layout, or as an artefact."""
    if layout not in ("onnx", "gguf"):
        return make_checkpoint(layout)
    write = {"onnx": plans.to_onnx, "gguf": plans.to_gguf}[layout]
    output = folder / {"onnx": "onnx-repository", "gguf": "model.gguf"}[layout]
    execute(write(read(str(make_checkpoint("safetensors"))), output))
    return output


@pytest.mark.parametrize(
    ("layout", "file"), [(layout, file) for layout, files in FILES.items() for file in files]
)
def test_a_pointer_or_a_page_is_called_one(
    layout: str, file: str, make_checkpoint: Make, tokenizer_folder: Path, tmp_path: Path
) -> None:
    source = make_source(layout, make_checkpoint, tmp_path)
    path = source / file if file else source
    options = ReadOptions(tokenizer=tokenizer_folder) if layout == "tarball" else None
    describe(str(source), options)
    for content, message in (
        (POINTER, r": it is a git-lfs pointer; fetch the real file with git lfs pull$"),
        (POINTER.replace(b"git-lfs", b"hawser"), r": it is a git-lfs pointer"),
        (b"# xet version 0\nfilesize = 7\n", r": it is a git-xet pointer"),
        (PAGE, r": it is an HTML page; the download went wrong"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            describe(str(source), options)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_tokenizer_of_two_files(file: str, make_checkpoint: Make) -> None:
    source = make_checkpoint("safetensors")
    (source / "tokenizer.json").unlink()
    read(str(source))
    for content, message in (
        (POINTER, "it is a git-lfs pointer"),
        (PAGE, "it is an HTML page"),
        (b"", "the file is empty; fetch it again"),
    ):
        (source / file).write_bytes(content)
        with pytest.raises(InputError, match=rf"{file}: .*{message}"):
            read(str(source))


def test_texts_and_importance_matrices(make_checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(POINTER)
    with pytest.raises(InputError, match="file: it is a git-lfs pointer"):
        read_text(str(path))
    with pytest.raises(InputError, match="file: it is a git-lfs pointer"):
        read_imatrix(path, read(str(make_checkpoint("safetensors"))).decoder)


def test_a_tokenizer_given_by_the_user(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint("safetensors")
    shutil.copytree(source, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"tokenizer\.json: it is a git-lfs pointer"):
        read(str(source), ReadOptions(tokenizer=tmp_path / "tokenizer"))
