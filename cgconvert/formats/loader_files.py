"""Files that a program would load from an artefact's folder beside those that were checked.

A folder is handed on as a whole: its user opens it in transformers, vLLM, optimum, transformers.js,
onnxruntime-genai or llama.cpp, and each of them looks for files by name. So a file that belongs to
no format is named, and one that such a program would take is a fault. The table says which program
takes what, from the program's own code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from cgconvert.errors import InputError

__all__ = ["LOADER_FILES", "LoaderFile", "Unchecked", "unchecked_files"]

MAX_FILES = 20_000
"""The most files that are looked at below a folder; `.git` does not count."""


@dataclass(frozen=True)
class LoaderFile:
    """Files that a program loads, or prefers to those that were checked.

    Attributes:
        patterns: Shell patterns of their paths in the folder, in lower case; a `*` stands for any
            characters but `/`, and a pattern that begins with `**/` holds in every folder below.
        effect: What a program does with them, in words that follow the name in brackets.
    """

    patterns: tuple[str, ...]
    effect: str

    def matches(self, name: str) -> bool:
        """Whether the file at the path `name` in the folder is one of these."""
        lowered = name.lower()
        base = lowered.rpartition("/")[2]
        return any(
            fnmatchcase(base, pattern.removeprefix("**/"))
            if pattern.startswith("**/")
            else lowered.count("/") == pattern.count("/") and fnmatchcase(lowered, pattern)
            for pattern in self.patterns
        )


@dataclass(frozen=True)
class Unchecked:
    """What lies in an artefact's folder, or in its configurations, and was not checked.

    Attributes:
        folder: The folder.
        loaded: A phrase for each file or entry that a program would load or obey, with its effect.
        unknown: The paths in the folder of files that belong to no format and that no program
            loads.
        unknown_entries: A phrase for each entry of a configuration that no format has.
        own: The paths in the folder of the artefact's own files, some of which may be absent.
    """

    folder: Path
    loaded: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unknown_entries: tuple[str, ...] = ()
    own: frozenset[str] = field(default=frozenset(), compare=False)

    def __or__(self, other: Unchecked) -> Unchecked:
        """What two searches of the same folder have named together."""
        return Unchecked(
            self.folder,
            self.loaded + other.loaded,
            self.unknown + other.unknown,
            self.unknown_entries + other.unknown_entries,
            self.own | other.own,
        )


LOADER_FILES: tuple[LoaderFile, ...] = (
    # transformers, modeling_utils.py: _get_resolved_checkpoint_files takes model.safetensors before
    # an index. vLLM, default_loader.py: _prepare_weights takes "consolidated*" first, then every
    # *.safetensors that an index names, and all of them where there is none.
    LoaderFile(
        ("*.safetensors", "**/consolidated*.safetensors"),
        "vLLM loads every safetensors file of a folder, and transformers prefers model.safetensors",
    ),
    LoaderFile(
        ("*.safetensors.index.json", "*.bin.index.json"),
        "it says to transformers and vLLM which weight files to load",
    ),
    # The same functions: *.bin and *.pt, by torch.load, where there are no safetensors or where
    # the caller asks for PyTorch's; transformers 4 has TensorFlow's and Flax's too.
    LoaderFile(
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot"),
        "a second set of weights, which transformers and vLLM take where PyTorch's are asked for",
    ),
    # transformers, utils/peft_utils.py: find_adapter_config_file, without being asked.
    LoaderFile(
        ("adapter_config.json",),
        "transformers and vLLM load the adapter and the base model that it names",
    ),
    # transformers, dynamic_module_utils.py and generation/utils.py: load_custom_generate.
    LoaderFile(
        ("*.py", "custom_generate", "custom_generate/*"),
        "code that transformers and vLLM run with trust_remote_code",
    ),
    LoaderFile(
        ("modules.json",),
        "sentence-transformers and vLLM take the modules that it names for the model",
    ),
    # vLLM, transformers_utils/config.py: get_config.
    LoaderFile(("hf_quant_config.json",), "vLLM reads the weights as quantized the way it says"),
    LoaderFile(
        ("params.json",),
        "vLLM takes it for the configuration, beside weights named consolidated",
    ),
    # transformers, tokenization_utils_base.py: from_pretrained; vLLM, tokenizers/registry.py.
    LoaderFile(
        ("tekken.json", "tokenizer.model*", "tiktoken.model"),
        "vLLM and transformers prefer it to tokenizer.json, or take it where that is absent",
    ),
    # onnxruntime-extensions, tokenizer_jsconfig.hpp: it overwrites tokenizer_config.json.
    LoaderFile(
        ("tokenizer_module.json",),
        "onnxruntime-genai reads it over tokenizer_config.json",
    ),
    LoaderFile(
        ("chat_template*", "additional_chat_templates*", "additional_chat_templates/*"),
        "transformers and onnxruntime-genai take the chat template from it",
    ),
    # onnxruntime-genai 0.18 opens a folder that has it as a model package.
    LoaderFile(
        ("manifest.json", "genai_config.json"),
        "onnxruntime-genai takes the graph and its settings from it",
    ),
    # optimum, modeling_decoder.py: _from_pretrained looks at **/*.onnx, and prefers decoder_model*;
    # transformers.js, utils/dtypes.js: the name ends in the type that the caller chooses.
    LoaderFile(
        ("**/*.onnx",),
        "a second graph: optimum looks at every graph of a folder, and transformers.js chooses "
        "one by its type",
    ),
    # transformers.js and optimum open "GRAPH_data" by name, whatever the graph says; a graph that
    # is loaded from memory has its data in the working folder.
    LoaderFile(
        ("**/*.onnx_data*", "**/*.onnx.data*"),
        "data of a graph, which clients open by this name",
    ),
    # llama.cpp, common/download.cpp: common_download_get_hf_plan lists all files of a repository.
    LoaderFile(
        ("**/*.gguf",),
        "llama.cpp loads it if it is given the repository's name",
    ),
    LoaderFile(("preset.ini",), "llama.cpp takes all its arguments from it, before any model"),
)
"""The files of a folder for transformers, vLLM, optimum, transformers.js or onnxruntime-genai."""

# transformers' Trainer leaves them, and no loader of models reads them (vLLM, weight_utils.py:
# filter_files_not_needed_for_inference).
TRAINING_STATE = (
    "training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt",
    "rng_state*.pth",
)  # fmt: skip

HARMLESS = (
    "readme*", "license*", "licence*", "notice*", "use_policy*", "changelog*", "citation*",
    "*.md", ".gitattributes", ".gitignore", ".ds_store", "thumbs.db",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "cgconvert.json",
)  # fmt: skip
"""Files that no program loads, and that nobody misses in a model's folder."""

HIDDEN_FOLDERS = (".git", ".cache")
"""Folders of git and of the Hub's client, in which only programs that search all folders look."""


def unchecked_files(folder: Path, own: Collection[str]) -> Unchecked:
    """List the files below a folder that are not among its artefact's own.

    Nothing is opened, and links to folders are not followed.

    Args:
        folder: The folder.
        own: The paths in the folder of the artefact's own files.

    Raises:
        InputError: The folder cannot be listed, or has more than MAX_FILES files.
    """
    loaded, unknown = [], []
    parents = {parent.as_posix() for name in own for parent in Path(name).parents}
    number = 0
    for name, is_regular in _files_below(folder):
        is_hidden = name.split("/")[0] in HIDDEN_FOLDERS and "/" in name
        number += not is_hidden
        if number > MAX_FILES:
            raise InputError(f"{folder}: has more than {MAX_FILES:,} files; it is no artefact")
        if (name in own and is_regular) or name in parents:
            continue
        effect = next((entry.effect for entry in LOADER_FILES if entry.matches(name)), None)
        if effect is not None and name not in own and not _matches(name, TRAINING_STATE):
            loaded.append(f"{name} ({effect})")
        elif not is_hidden and not _matches(name, HARMLESS):
            unknown.append(name)
    return Unchecked(folder, tuple(loaded), tuple(unknown), own=frozenset(own))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the last part of a path matches a pattern."""
    base = name.rpartition("/")[2].lower()
    return any(fnmatchcase(base, pattern) for pattern in patterns)


def _files_below(folder: Path) -> Iterator[tuple[str, bool]]:
    """List everything below a folder that is no folder itself, in order of names.

    Yields the path in the folder, and whether it is a regular file or a link to one.
    """
    remaining = [""]
    while remaining:
        prefix = remaining.pop()
        try:
            with os.scandir(folder / prefix) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder / prefix}: cannot be listed: {error.strerror}") from error
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                remaining.append(f"{name}/")
            else:
                yield name, entry.is_file()
