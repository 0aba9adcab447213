"""What a folder from the Hub has to hold, and folders of the Hub's cache that a user names by path.

The cache has a folder for each repository, models--organisation--name, with a folder for each
commit in snapshots/, whose files are links into blobs/, and the commit of each branch in refs/
(huggingface_hub, docs/source/en/guides/manage-cache.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from cgconvert.errors import InputError, first_few
from cgconvert.io.reading import read_head
from cgconvert.model.chat_templates import CHAT_TEMPLATE, CHAT_TEMPLATE_FOLDER, OLD_CHAT_TEMPLATE
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.weight_files import WeightFiles, choose_weights, list_names, shard_names

__all__ = [
    "CachedRepository",
    "cached_repository",
    "description_names",
    "has_tokenizer",
    "missing_files",
    "snapshot_of",
    "weight_names",
]

CONFIG = "config.json"
CONFIG_FILES = (
    CONFIG,
    "generation_config.json",
    CHAT_TEMPLATE,
    OLD_CHAT_TEMPLATE,
    *TOKENIZER_FILES,
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files that make a tokenizer; either of the two."""

_REPOSITORY = re.compile(r"models--[\w.-]+")
REF_BYTES = 64
"""Bytes of a file of the Hub's cache that are read: it has a commit of 40."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def weight_names(names: Iterable[str]) -> list[str]:
    """Choose the files with the weights among all files of a repository, by their paths.

    The rule is that for folders. An index stands for the shards that it names. An adapter's files
    are chosen if there are no weights; nothing is if there is neither.
    """
    paths = set(names)
    weights = choose_weights(paths)
    if weights is not None:
        return [weights.index] if weights.index else list(weights.files)
    adapters = [name for name in ADAPTERS if name in paths]
    return [ADAPTER_CONFIG, adapters[0]] if adapters and ADAPTER_CONFIG in paths else []


def description_names(names: Iterable[str]) -> list[str]:
    """Choose the files that describe a model, among all files of a repository, by their paths.

    They are those of configuration, tokenizer and chat templates, at the root of the repository or
    in the folder that has the weights.
    """
    paths = sorted(set(names))
    chosen = []
    for place in _places(choose_weights(paths)):
        templates = f"{place}{CHAT_TEMPLATE_FOLDER}/"
        chosen += [f"{place}{name}" for name in CONFIG_FILES if f"{place}{name}" in paths]
        chosen += [path for path in paths if path.startswith(templates)]
    return chosen


def missing_files(folder: Path, *, needs_tokenizer: bool = True) -> list[str]:
    """Name what a folder lacks of a model or an adapter; a link to nothing counts as absent.

    Raises InputError if an index in it is broken.
    """
    names = set(list_names(folder))
    weights = choose_weights(names)
    if weights is None:
        if ADAPTER_CONFIG in names and names & set(ADAPTERS):
            return []
        missing = ["weights"]
    elif weights.index:
        index = folder / weights.index
        missing = [name for name in shard_names(index) if not index.with_name(name).is_file()]
    else:
        missing = []
    places = _places(weights)
    if not any(f"{place}{CONFIG}" in names for place in places):
        missing.append(CONFIG)
    if needs_tokenizer and not any(has_tokenizer(names, place) for place in places):
        missing.append("tokenizer.json")
    return missing


def has_tokenizer(names: Collection[str], place: str = "") -> bool:
    """Whether a tokenizer's files are among these paths, in the folder `place`, ending in /."""
    return any(all(f"{place}{name}" in names for name in files) for files in TOKENIZERS)


def _places(weights: WeightFiles | None) -> tuple[str, ...]:
    """The folders that may hold configuration and tokenizer, each with a slash at its end."""
    return ("", f"{weights.folder}/") if weights and weights.folder else ("",)


@dataclass(frozen=True)
class CachedRepository:
    """A path in the Hub's cache: the repository's id, the commit, and the file or folder there."""

    repository: str
    commit: str
    path: Path


def cached_repository(path: Path, revision: str | None = None) -> CachedRepository | None:
    """Recognise a repository's folder in the Hub's cache, or a path in one of its snapshots.

    Args:
        path: An existing path.
        revision: Branch, tag or commit; None stands for main, or for the only snapshot.

    Returns:
        The snapshot, or None if the path is none of the Hub's cache.

    Raises:
        InputError: The repository has no such snapshot, or several and no main among them; or a
            link that is needed leads nowhere.
    """
    # Not resolved: a snapshot's files are links to names that say nothing.
    absolute = Path(os.path.abspath(path))
    for parent in (absolute, *absolute.parents):
        if not _REPOSITORY.fullmatch(parent.name) or not (parent / "snapshots").is_dir():
            continue
        inside = absolute.relative_to(parent).parts
        if inside in ((), ("snapshots",)):
            snapshot = inner = _choose_snapshot(parent, revision)
        elif len(inside) > 1 and inside[0] == "snapshots":
            snapshot, inner = parent / "snapshots" / inside[1], absolute
            if revision not in (None, snapshot.name, _ref(parent, revision)):
                raise InputError(
                    f"{path}: is the snapshot {snapshot.name}, not `revision={revision}`"
                )
        else:
            return None
        _refuse_dead_links(snapshot, _id(parent))
        return CachedRepository(_id(parent), snapshot.name, inner)
    return None


def _id(folder: Path) -> str:
    """The id of the repository with this folder in the cache."""
    return folder.name.removeprefix("models--").replace("--", "/")


def snapshot_of(folder: Path, revision: str | None) -> Path | None:
    """Return the folder of a revision's snapshot; None if it is not there.

    `folder` is the repository's in the cache. `revision` is a branch, a tag or a whole commit hash;
    None stands for main.
    """
    commits = (revision, _ref(folder, revision))
    snapshots = [folder / "snapshots" / commit for commit in commits if _is_commit(commit)]
    return next((snapshot for snapshot in snapshots if snapshot.is_dir()), None)


def _ref(folder: Path, revision: str | None) -> str | None:
    """The commit that a branch or tag had when it was downloaded last."""
    try:
        commit = read_head(folder / "refs" / (revision or "main"), REF_BYTES).decode().strip()
    except (InputError, ValueError):
        return None
    return commit if _is_commit(commit) else None


def _is_commit(text: str | None) -> TypeGuard[str]:
    return text is not None and _COMMIT.fullmatch(text) is not None


def _choose_snapshot(folder: Path, revision: str | None) -> Path:
    """Return the snapshot of a revision, by default of main, or the only one."""
    snapshots = {path.name: path for path in sorted((folder / "snapshots").iterdir())
                 if path.is_dir()}  # fmt: skip
    if not snapshots:
        raise InputError(f"{folder}: has no snapshot; give {_id(folder)} to download one")
    if snapshot := snapshot_of(folder, revision):
        return snapshot
    commit = _ref(folder, revision)
    listed = first_few(list(snapshots), 3, separator=", ")
    if revision is not None:
        raise InputError(f"{folder}: has no snapshot of `revision={revision}`; it has {listed}")
    if commit is not None:
        raise InputError(
            f"{folder}: main is {commit}, of which there is no snapshot; it has {listed}: give "
            f"the path of one, or {_id(folder)} to download"
        )
    if len(snapshots) > 1:
        raise InputError(
            f"{folder}: has several snapshots and no refs/main: give the path of one: {listed}"
        )
    return next(iter(snapshots.values()))


def _refuse_dead_links(snapshot: Path, repository: str) -> None:
    """Raise InputError if a file that would be read is a link to a blob that is not there."""
    dead = {
        os.path.relpath(Path(parent, name), snapshot)
        for parent, folders, files in os.walk(snapshot)
        if len(Path(parent).relative_to(snapshot).parts) < 3
        for name in (*files, *folders)
        if not Path(parent, name).exists()
    }
    if not dead:
        return
    names = {*list_names(snapshot), *dead}
    needed = {*weight_names(names), *description_names(names)}
    weights = choose_weights(names)
    if weights and weights.index and weights.index not in dead:
        needed |= set(shard_names(snapshot / weights.index))
    lost = sorted(dead & needed)
    if lost:
        raise InputError(
            f"{snapshot / lost[0]}: is a link to {str((snapshot / lost[0]).readlink())!r}, which "
            f"is not there; give {repository} to download it again"
        )
