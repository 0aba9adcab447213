"""Which files of a folder or repository hold the weights: one rule for reading and downloading.

The rule looks at file names only. It prefers the names that transformers loads, and then accepts
one file of another name, which is what training loops save. Files of a training state and adapters
are never weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cgconvert.errors import InputError, first_few
from cgconvert.io.strict_json import read_json

__all__ = [
    "CHECKPOINT_FOLDER",
    "INDEX_SUFFIX",
    "STANDARD_NAMES",
    "SUFFIXES",
    "WeightFiles",
    "choose_weights",
    "explain_no_weights",
    "is_rank_file",
    "is_weight_file",
    "list_names",
    "shard_names",
]

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torch": (".bin", ".pt", ".pth", ".ckpt"),
}
"""Suffixes of weight files by layout, in the order of preference."""

STANDARD_NAMES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
INDEX_SUFFIX = ".index.json"

NOT_WEIGHTS = re.compile(
    r"(optim|(lr_)?sched|(grad_)?scaler|rng_state|random_state|training_args|trainer_state"
    r"|adapter|non_lora|value_head|sampler|dl_state|custom_checkpoint|zero_pp_rank|tokenizer"
    r"|ggml|openvino|imatrix).*|.*_optim_states\.pt|mp_rank_.*|model_optim_rng\.pt"
    r"|layer_\d+-model_.*",
    re.IGNORECASE,
)
"""Names with a suffix of weights that hold the state of a training run, an adapter, or weights for
another program."""

SHARD = re.compile(r"(?P<series>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d{1,12})")
"""A folder that transformers' Trainer writes into its output folder after so many steps."""

DEEPSPEED_MODULE = re.compile(r"(?P<tag>[^/]+)/mp_rank_(?P<rank>\d+)_model_states\.pt")
DEEPSPEED_SPLIT = re.compile(r"([^/]+/)?zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
"""Files of DeepSpeed: the whole model (ZeRO 0 to 2), and a part of each rank (ZeRO 3)."""

PIPELINE_LAYER = re.compile(r"([^/]+/)*layer_\d+-model_.*states\.pt")
"""A file of DeepSpeed's pipelines, with the weights of one layer."""

OTHER_FORMATS = (".gguf", ".onnx")
"""Suffixes of files beside which a file of any name is no sign of weights."""

MAX_NAME = 60
"""The most characters of a shard's name: each has at most 4 bytes, and file systems allow 255."""

MAX_ENTRIES, MAX_FOLDERS = 20_000, 1000
"""The most files that `list_names` lists, and the most folders that it looks into."""
MAX_DEPTH = 3
"""Levels of folders that `list_names` lists: run/checkpoint-500/global_step500/file."""


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights, by their paths relative to the folder or repository.

    Attributes:
        layout: "safetensors" or "torch".
        files: The weight files; empty if `index` names them.
        index: The JSON file that names the shards, or "".
        folder: The subfolder that holds configuration and tokenizer, or "" for the folder itself.
        note: What a user should know about the choice, or "".
    """

    layout: str
    files: tuple[str, ...] = ()
    index: str = ""
    folder: str = ""
    note: str = ""

    def within(self, folder: str) -> WeightFiles:
        """The same files as seen from the folder above `folder`."""
        return replace(
            self,
            files=tuple(f"{folder}/{name}" for name in self.files),
            index=self.index and f"{folder}/{self.index}",
            folder=f"{folder}/{self.folder}".rstrip("/"),
        )


def choose_weights(names: Iterable[str]) -> WeightFiles | None:
    """Choose the weight files among the files of a folder or repository.

    The folder's own files have precedence over those in subfolders. Of subfolders only the last
    checkpoint of transformers' Trainer, and the whole model in a DeepSpeed checkpoint count.

    Args:
        names: Paths relative to the folder, with "/" between folders. Neither order nor repetition
            matters.

    Returns:
        The weights, or None if there are none or several that exclude each other;
        `explain_no_weights` then has the reason.
    """
    paths = sorted(set(names))
    own = [path for path in paths if "/" not in path]
    if weights := _standard(own) or _single(own):
        return weights
    # DeepSpeed's script writes shards into a folder if it is called as its older versions were.
    misplaced = _standard(_inside(paths, STANDARD_NAMES["torch"]))
    if misplaced:
        return replace(misplaced.within(STANDARD_NAMES["torch"]), folder="")
    if weights := _deepspeed(paths):
        return weights
    steps = _checkpoints(paths)
    for step in sorted(steps, reverse=True):
        folder = steps[step]
        if weights := choose_weights(_inside(paths, folder)):
            chosen = "the only checkpoint" if len(steps) == 1 else f"the last of {len(steps)}"
            note = f"the weights are those of {folder}, {chosen} in the folder"
            return replace(
                weights.within(folder), note="; ".join(filter(None, (note, weights.note)))
            )
    return None


def explain_no_weights(names: Iterable[str]) -> str:
    """Say why `choose_weights` finds no weights among these files, and what to do.

    Returns a phrase that continues "PATH: ", or "" if nothing there looks like weights.
    """
    paths = sorted(set(names))
    own = [path for path in paths if "/" not in path]
    if text := _explain_several(own):
        return text
    if steps := _checkpoints(paths):
        folder = steps[max(steps)]
        if text := explain_no_weights(_inside(paths, folder)):
            return f"{folder} {text}"
    return _explain_split(paths) or _explain_other_files(own)


def is_weight_file(path: Path) -> bool:
    """Return whether the suffix of this file is that of weights."""
    return any(path.suffix in suffixes for suffixes in SUFFIXES.values())


def is_rank_file(name: str) -> bool:
    """Return whether a file of this name holds the weights of one rank of DeepSpeed ZeRO 3 only."""
    return DEEPSPEED_SPLIT.fullmatch(name) is not None


def list_names(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders for `choose_weights`.

    Hidden files and folders are left out, links to folders are not followed, and at most
    MAX_ENTRIES files of MAX_FOLDERS folders are listed. A folder that cannot be read is empty.
    """
    names: list[str] = []
    for count, (parent, folders, files) in enumerate(os.walk(folder)):
        relative = os.path.relpath(parent, folder)
        prefix = "" if relative == "." else f"{relative}/"
        names += [
            prefix + name
            for name in files
            if not name.startswith(".") and _is_file(Path(parent, name))
        ]
        if len(names) >= MAX_ENTRIES or count >= MAX_FOLDERS:
            return names[:MAX_ENTRIES]
        is_deepest = prefix.count("/") + 1 >= MAX_DEPTH
        folders[:] = [] if is_deepest else sorted(n for n in folders if not n.startswith("."))
    return names


def _is_file(path: Path) -> bool:
    """Whether this is a file; a link that may not be followed (/proc has some) is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def shard_names(index: Path) -> tuple[str, ...]:
    """Read the names of the shards in an index, sorted; they lie in the folder of the index.

    Raises InputError if the index is broken or a name is not that of a file in the same folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: names a shard that is not text")
    names = sorted(set(weight_map.values()))
    for name in names:
        is_plain = name.isprintable() and len(name) <= MAX_NAME and not name.startswith(".")
        if not is_plain or "/" in name or "\\" in name:
            raise InputError(f"{index}: names a shard outside its folder: {name!r}")
    return tuple(names)


def _inside(paths: list[str], folder: str) -> list[str]:
    """Return the paths in a subfolder, relative to it."""
    return [path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")]


def _standard(own: list[str]) -> WeightFiles | None:
    """Choose weights by the names that transformers loads."""
    for layout, name in STANDARD_NAMES.items():
        if name in own:
            return WeightFiles(layout, (name,))
        if f"{name}{INDEX_SUFFIX}" in own:
            return WeightFiles(layout, index=f"{name}{INDEX_SUFFIX}")
    return None


def _candidates(own: list[str], layout: str) -> list[tuple[str, ...]]:
    """Return every group of files that could be the weights: a single file, or all its shards."""
    groups: dict[str, list[str]] = {}
    for name in own:
        if name.endswith(SUFFIXES[layout]) and not NOT_WEIGHTS.fullmatch(name):
            shard = SHARD.fullmatch(name)
            series = f"{shard['series']}-of-{shard['count']}{shard['suffix']}" if shard else name
            groups.setdefault(series, []).append(name)
    return [tuple(files) for files in groups.values()]


def _missing_shards(files: tuple[str, ...]) -> list[str]:
    """Name the shards that a series of files lacks; a single file lacks none."""
    shard = SHARD.fullmatch(files[0])
    if shard is None:
        return []
    present = set(files)
    names = (
        f"{shard['series']}-{number:05d}-of-{shard['count']}{shard['suffix']}"
        for number in range(1, int(shard["count"]) + 1)
    )
    return [name for name in names if name not in present]


def _single(own: list[str]) -> WeightFiles | None:
    """Choose the only file, or the only complete series of shards, of another name."""
    if "config.json" not in own and any(name.endswith(OTHER_FORMATS) for name in own):
        return None
    for layout in SUFFIXES:
        candidates = _candidates(own, layout)
        if candidates:
            is_whole = len(candidates) == 1 and not _missing_shards(candidates[0])
            return WeightFiles(layout, candidates[0]) if is_whole else None
    return None


def _checkpoints(paths: list[str]) -> dict[int, str]:
    """Return the Trainer's checkpoint folders by their step."""
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    matches = filter(None, map(CHECKPOINT_FOLDER.fullmatch, folders))
    return {int(match[1]): match[0] for match in matches}


def _modules(paths: list[str]) -> dict[str, list[str]]:
    """Return DeepSpeed's files of whole models or tensor-parallel ranks, by their folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        if match := DEEPSPEED_MODULE.fullmatch(path):
            folders.setdefault(match["tag"], []).append(path)
    return folders


def _deepspeed(paths: list[str]) -> WeightFiles | None:
    """Choose the whole model in the last step of a DeepSpeed checkpoint of ZeRO 0, 1 or 2.

    Returns None if there is none, or if the model is split over ranks or layers.
    """
    if any(DEEPSPEED_SPLIT.fullmatch(path) or PIPELINE_LAYER.fullmatch(path) for path in paths):
        return None
    # A file may be given with the folder in which it lies.
    own = [path for path in paths if DEEPSPEED_MODULE.fullmatch(f"./{path}")]
    folders = _modules(paths) or ({"": own} if own else {})

    def step(tag: str) -> tuple[int, str]:
        digits = re.search(r"\d+$", tag)
        return (int(digits[0][-12:]) if digits else -1, tag)

    files = folders[max(folders, key=step)] if folders else []
    if len(files) != 1:
        return None
    note = (
        f"the weights are DeepSpeed's copy in half precision, {files[0]}; its script "
        "zero_to_fp32.py makes float32 weights from the optimizer's"
    )
    return WeightFiles("torch", tuple(files), note=note)


def _explain_several(own: list[str]) -> str:
    """Explain that several files could be the weights, or that shards are missing."""
    for layout in SUFFIXES:
        candidates = _candidates(own, layout)
        if len(candidates) > 1:
            names = first_few([files[0] for files in candidates], 3, separator=", ")
            return f"has several weight files ({names}); give the path of the one to read"
        if candidates and (missing := _missing_shards(candidates[0])):
            listed = first_few(missing, 3, separator=", ")
            return f"has {candidates[0][0]}, but lacks {listed}; fetch what is missing"
    return ""


def _explain_split(paths: list[str]) -> str:
    """Explain that the weights are distributed over the processes of a training run."""
    if any(map(DEEPSPEED_SPLIT.fullmatch, paths)) or "zero_to_fp32.py" in paths:
        return (
            "is a DeepSpeed ZeRO checkpoint, whose weights are distributed over its ranks; run "
            "'python zero_to_fp32.py . merged' in the folder that has this script, put config.json "
            "and the tokenizer beside its output, and give that"
        )
    if any(map(PIPELINE_LAYER.fullmatch, paths)):
        return (
            "is a checkpoint of DeepSpeed's pipelines, split over layers; convert it to Hugging "
            "Face's layout with the program that wrote it"
        )
    if any(len(files) > 1 for files in _modules(paths).values()) or any(
        re.fullmatch(r"([^/]+/)*(mp_rank_\d+_model_states|model_optim_rng)\.pt", path)
        for path in paths
    ):
        return (
            "is a checkpoint of Megatron or DeepSpeed, split over tensor-parallel ranks (mp_rank_"
            "00, ...); convert it to Hugging Face's layout with the program that wrote it"
        )
    distributed = [path for path in paths if path.endswith(".distcp")]
    if distributed:
        folder = distributed[0].rpartition("/")[0] or "."
        return (
            f"is a distributed checkpoint of torch (FSDP); run 'accelerate merge-weights {folder} "
            "merged' in it, put config.json and the tokenizer beside its output, and give that"
        )
    return ""


OTHER_FRAMEWORKS = {
    "flax_model.msgpack": ("Flax", "from_flax"),
    "tf_model.h5": ("TensorFlow", "from_tf"),
}


def _explain_other_files(own: list[str]) -> str:
    """Explain that there is only something else than weights that can be read."""
    for name, (framework, option) in OTHER_FRAMEWORKS.items():
        if name in own or f"{name}{INDEX_SUFFIX}" in own:
            return (
                f"has weights for {framework} only ({name}); load them with transformers 4 and "
                f"{option}=True and save them with save_pretrained"
            )
    adapters = [name for name in own if name.startswith("adapter_model.")]
    if adapters:
        return (
            f"has only an adapter ({adapters[0]}), no model; give the path of the folder that "
            "holds this file as the source"
        )
    states = [
        name for name in own if NOT_WEIGHTS.fullmatch(name) and name.endswith(SUFFIXES["torch"])
    ]
    if states:
        return f"has the state of a training run only ({states[0]}), no weights"
    return ""
