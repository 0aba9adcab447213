"""What the fuzzer runs commands on: files, recipes and command lines that `make` returns.

An input is bytes, so that one that broke a command can be kept in the corpus and be run again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.faults.cache_target import CacheTarget
from tests.faults.command_folder import CommandFolder
from tests.faults.inflated import inflated_bytes, inflated_json
from tests.faults.mutated_bytes import Choose, mutated_bytes, pick
from tests.faults.mutated_json import CHAT_TEMPLATES, mutated_json
from tests.faults.random_command_line import random_command_line
from tests.faults.random_recipe import random_recipe

__all__ = ["COMMAND_TARGETS", "CommandTarget"]


@dataclass(frozen=True)
class CommandTarget:
    """One kind of input.

    Attributes:
        make: Makes an input from choices and from the valid input.
        commands: The command lines that read it; one of them is run with each input.
        file: The file in the folder that the input replaces. Without one the input is a command
            line itself, as JSON.
        seed: The valid input, if `file` is not there.
    """

    make: Callable[[bytes, Choose], bytes]
    commands: tuple[str, ...] = ()
    file: str = ""
    seed: bytes = b""

    def valid(self, folder: CommandFolder) -> bytes:
        """Return the valid input that `make` changes."""
        path = folder.work / self.file
        return path.read_bytes() if path.is_file() else self.seed

    def check(self, folder: CommandFolder, data: bytes, *, every: bool = False) -> None:
        """Run a command on an input, or all of them with `every`. Raises FaultError."""
        if not self.file:
            line = json.loads(data)
            folder.run(line["arguments"], line["outputs"], line["environment"])
            return
        number = zlib.crc32(data) % len(self.commands)
        folder.replace(self.file, data)
        try:
            for command in self.commands if every else self.commands[number : number + 1]:
                arguments = command.split(" ")
                folder.run(arguments, [word for word in arguments if word.startswith("new")])
        finally:
            folder.restore()


def _source(name: str) -> tuple[str, ...]:
    return (
        f"inspect {name} --tensors", f"inspect {name} --json", f"to-gguf {name} -o new.gguf",
        f"to-hf {name} -o new", f"to-hf {name} --layout phi -o new", f"to-onnx {name} -o new",
        f"to-gguf {name} --dry-run", f"quantize {name} --bits 8 -o new.gguf",
        f"quantize {name} --bits 4 --format onnx --effort fast -o new",
        f"verify earlier.gguf --quick --reference {name}", f"verify earlier --reference {name}",
        f"generate {name} x --max-new-tokens 2",
    )  # fmt: skip


def _artefact(name: str, *more: str) -> tuple[str, ...]:
    return (
        f"inspect {name}", f"verify {name} --quick --reference checkpoint",
        f"verify {name} --reference checkpoint --report new.txt --report new.html",
        f"verify {name} --quick", f"generate {name} x --max-new-tokens 2",
        f"to-gguf {name} -o new.gguf", f"quantize {name} --bits 8 -o new.gguf", *more,
    )  # fmt: skip


GENAI = "generate onnx/source x --max-new-tokens 2 --runtime onnxruntime-genai"

TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
              "tokenizer.json")  # fmt: skip

ARTEFACT_FILES = ("config.json", "generation_config.json", "cgconvert.json", *TOKENIZERS)

JSON_FILES: Mapping[str, tuple[str, ...]] = {
    **{f"checkpoint/{name}": _source("checkpoint") for name in ("config.json", *TOKENIZERS)},
    "slow/vocab.json": _source("slow"),
    "slow/added_tokens.json": _source("slow"),
    "slow/tokenizer_config.json": _source("slow"),
    "torch-sharded/source/pytorch_model.bin.index.json": _source("torch-sharded/source"),
    "safetensors-sharded/source/model.safetensors.index.json":
        _source("safetensors-sharded/source"),
    "jaxformer/source/config.json": _source("jaxformer/source"),
    "jaxformer/source/1000/ckpt.json": _source("jaxformer/source"),
    "adapter/source/adapter_config.json": _source("adapter/source"),
    **{f"hf/source/{name}": _artefact("hf/source") for name in ARTEFACT_FILES},
    **{f"{kind}/source/{name}": _artefact(f"{kind}/source")
       for kind in ("gptj", "phi") for name in ("config.json", "generation_config.json")},
    **{f"onnx/source/{name}": _artefact("onnx/source", GENAI, GENAI, GENAI)
       for name in ("genai_config.json", *ARTEFACT_FILES)},
    "gguf/source.gguf.cgconvert.json": _artefact("gguf/source.gguf"),
}  # fmt: skip

IMATRIX = ("quantize checkpoint --type Q4_0 --imatrix {0} -o new.gguf",
           "quantize checkpoint --bits 4 --effort fast --imatrix {0} --dry-run")  # fmt: skip
TEXT = ("verify earlier.gguf --quick --reference checkpoint --text text.txt",
        "quantize checkpoint --type Q4_0 --calibration text.txt --dry-run",
        "verify earlier --reference checkpoint --text text.txt --text-tokens 8")  # fmt: skip
RECIPE = ("run recipe.yaml --dry-run", "run recipe.yaml", "run -", "run recipe.yaml --force",
          "run recipe.yaml --source hf/source --dry-run --tensors")  # fmt: skip

TEXT_PIECES = (b"def f(x):\n", b"\0", b"\xff", b"\r", b"\xef\xbb\xbf", b"\xed\xa0\x80",
               b"a" * 9000, b"<|endoftext|>", "😀é\u2028".encode(), b" " * 5000,
               b"\n" * 5000, b"",
               b"version https://git-lfs.github.com/spec/v1\n", b"\x1b[31m", b"\t")  # fmt: skip


def _template(seed: bytes, choose: Choose) -> bytes:
    return mutated_bytes(pick(choose, CHAT_TEMPLATES).encode(errors="surrogatepass"), choose)


def _text(seed: bytes, choose: Choose) -> bytes:
    return b"".join(pick(choose, TEXT_PIECES) for _ in range(choose(0, 6)))


def _recipe(seed: bytes, choose: Choose) -> bytes:
    return random_recipe(choose)


def _json(seed: bytes, choose: Choose) -> bytes:
    return (mutated_json if choose(0, 9) else inflated_json)(seed, choose)


def _bytes(seed: bytes, choose: Choose) -> bytes:
    return (mutated_bytes if choose(0, 9) else inflated_bytes)(seed, choose)


def _line(seed: bytes, choose: Choose) -> bytes:
    return json.dumps(vars(random_command_line(choose))).encode()


COMMAND_TARGETS: Mapping[str, CommandTarget | CacheTarget] = {
    "command-line": CommandTarget(_line),
    "run": CommandTarget(_recipe, RECIPE, "recipe.yaml"),
    "cache": CacheTarget(),
    "text": CommandTarget(_text, TEXT, "text.txt"),
    **{name: CommandTarget(_bytes, tuple(line.format(name) for line in IMATRIX), name)
       for name in ("imatrix.gguf", "imatrix.dat")},
    **{file: CommandTarget(_json, commands, file) for file, commands in JSON_FILES.items()},
    "checkpoint/generation_config.json":
        CommandTarget(mutated_json, _source("checkpoint"), "checkpoint/generation_config.json",
                      b'{"eos_token_id": 4095, "bos_token_id": 1}'),
    "checkpoint/chat_template.jinja":
        CommandTarget(_template, _source("checkpoint"), "checkpoint/chat_template.jinja"),
    "hf/source/chat_template.jinja":
        CommandTarget(_template, _artefact("hf/source"), "hf/source/chat_template.jinja"),
    "slow/merges.txt": CommandTarget(_bytes, _source("slow"), "slow/merges.txt"),
}  # fmt: skip
