"""A file of another kind in the place of each that is read: no message shows what is in it."""

from __future__ import annotations

import pytest

from tests.faults.command_folder import SECRET, CommandFolder
from tests.faults.server import Server

COMMANDS = ("inspect {0}", "to-gguf {0} -o new.gguf", "verify earlier --quick --reference {0}")
IMATRIX = ("quantize checkpoint --type Q4_0 --imatrix {0} -o new.gguf",)

FILES = {
    "checkpoint": ("config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
                   "special_tokens_map.json", "generation_config.json", "model.safetensors"),
    "slow": ("vocab.json", "merges.txt"),
    "torch/source": ("pytorch_model.bin",),
    "torch-sharded/source": ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"),
    "jaxformer/source": ("config.json", "1000/ckpt.json", "1000/model/0.npz"),
    "adapter/source": ("adapter_config.json", "adapter_model.safetensors"),
    "onnx/source": ("onnx/model.onnx", "onnx/model.onnx_data", "cgconvert.json"),
    "hf/source": ("cgconvert.json", "README.md"),
    "tarball/source.tar.gz": ("",),
    "gguf/source.gguf": ("",),
    "imatrix.gguf": ("",),
    "imatrix.dat": ("",),
    "recipe.yaml": ("",),
    "text.txt": ("",),
}  # fmt: skip
"""What a command gets, and the files of it that are replaced; `""` is the file itself."""

READERS = {
    "imatrix.gguf": IMATRIX,
    "imatrix.dat": IMATRIX,
    "recipe.yaml": ("run {0}",),
    "text.txt": ("verify earlier --quick --reference checkpoint --text {0}",),
}
"""The commands of those that are no source."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: Server) -> CommandFolder:
    return CommandFolder(tmp_path_factory.mktemp("kinds") / "run", server)


@pytest.mark.parametrize("source", FILES)
def test_no_message_shows_what_is_in_a_file_of_another_kind(
    source: str, folder: CommandFolder
) -> None:
    for number, name in enumerate(FILES[source]):
        folder.replace(f"{source}/{name}".rstrip("/"), f"{SECRET}\nbin:*:1\n".encode())
        commands = READERS.get(source, COMMANDS)
        command = commands[number % len(commands)].format(source)
        folder.run(command.split(" "), ["new.gguf"])  # looks for what the file has in all output
        folder.restore()
