"""What interrupted runs have left: how much is complete, what continues it, and its removal.

A leftover is the staging folder of an artefact, a report or another file. Its name alone proves
little: it has to be this user's, and to hold a lock and only what a staging folder has.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.io.commit import SUFFIX
from cgconvert.io.reading import read_bytes, read_head
from cgconvert.io.staging import (
    Staging,
    is_locked,
    is_staging_folder,
    is_temporary,
    staging_folder,
)
from cgconvert.write.journal import START, Journal, plan_key
from cgconvert.write.ownership import Replacement
from cgconvert.write.plan import LazyPlan, Plan

__all__ = [
    "STEPS_KEY",
    "STEP_COUNT",
    "Leftover",
    "Unfinished",
    "disk_bytes",
    "find_leftovers",
    "progress_of",
    "remove_leftover",
    "steps_folder",
    "unfinished",
]

STEPS_KEY, STEP_COUNT = "key", "count"
"""Files beside completed steps: the key of all that they depend on, and the number of all steps."""

STEP_NAMES = ("wte.safetensors", "head.safetensors", "choices.json")
"""Files of completed steps, beside those of the layers."""

UNVISITED = (".git",)
"""Folders that are not searched."""


@dataclass(frozen=True)
class Leftover:
    """What an interrupted run has left, or what a running one is writing.

    Attributes:
        path: The hidden folder.
        output: The artefact or file that was to be written.
        nbytes: Its bytes on the disk.
        modified: When it was last written, in seconds since 1970.
        progress: How much is complete: "43 %", "12 of 22 steps"; "" if a run of the same plan would
            start over.
        is_running: Whether a run is writing it now.
    """

    path: Path
    output: Path
    nbytes: int
    modified: float
    progress: str
    is_running: bool


@dataclass(frozen=True)
class Unfinished:
    """What an interrupted run has left for the output of a plan.

    Attributes:
        continues: How much of the same plan is complete; "" if it starts over.
        drops: How much of another plan is complete, whose work will be removed; "" if there is
            none.
    """

    continues: str = ""
    drops: str = ""


def unfinished(plan: LazyPlan, *, allow_nonfinite: bool = False) -> Unfinished:
    """Look at what an interrupted run has left for the output of a plan; nothing is computed."""
    folder = staging_folder(plan.output)
    if not is_staging_folder(folder):
        return Unfinished()
    steps = {path.name: _steps(path) for path in folder.glob("steps/*")}
    continues = steps.pop(_steps_name(plan), "")
    drops = next(filter(None, steps.values()), "")
    if isinstance(plan, Plan):
        journal = Journal(folder / "journal", plan_key(plan, nonfinite=allow_nonfinite))
        if journal.position != START:
            continues = _percent(journal.nbytes, plan.nbytes)
        else:
            drops = _written(folder) or drops
    return Unfinished(continues, drops)


def steps_folder(folder: Path, plan: LazyPlan) -> Path:
    """The folder in which a plan stores its completed steps: one of its own, named by its key."""
    return folder / _steps_name(plan) if plan.steps_key else folder


def find_leftovers(path: Path) -> Iterator[Leftover]:
    """Find what interrupted runs have left in a folder and below it, or for the output `path`.

    Links are not followed. What belongs to another user is left out.
    """
    for candidate in dict.fromkeys((path, staging_folder(path))):
        if (leftover := _leftover(candidate)) is not None:
            yield leftover
    if not path.is_dir() or path.is_symlink() or is_temporary(path.name):
        return
    for parent, folders, _ in os.walk(path):
        for name in sorted(folders):
            if is_temporary(name) and (leftover := _leftover(Path(parent, name))) is not None:
                yield leftover
        folders[:] = sorted(
            name for name in folders if not is_temporary(name) and name not in UNVISITED
        )


def remove_leftover(leftover: Leftover) -> bool:
    """Remove a leftover; return whether it is gone. One that a run is writing stays."""
    # It only decides whether an earlier output that a commit moved away may be removed.
    guard = Replacement(force=False, is_folder=False)
    return Staging(leftover.output, guard).remove()


def progress_of(folder: Path) -> str:
    """Say how much of a run is complete, by its staging folder; "" if it would start over."""
    return _written(folder) or next(filter(None, map(_steps, folder.glob("steps/*"))), "")


def disk_bytes(path: Path) -> int:
    """Bytes on the disk of a file, or of all files in a folder."""
    return sum(_blocks(file) for file in _files(path))


def _leftover(path: Path) -> Leftover | None:
    """Describe the leftover at `path`; None if it is not one of cgconvert's."""
    if not is_staging_folder(path):
        return None
    files = list(_files(path))
    times = [file.lstat().st_mtime for file in files if os.path.lexists(file)]
    return Leftover(
        path=path,
        output=path.with_name(path.name.removeprefix(".").removesuffix(SUFFIX)),
        nbytes=sum(map(_blocks, files)),
        modified=max([path.lstat().st_mtime, *times]),
        progress=progress_of(path),
        is_running=is_locked(path),
    )


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        yield path
        return
    for parent, _, names in os.walk(path):
        yield from (Path(parent, name) for name in names)


def _blocks(file: Path) -> int:
    """Bytes of a file on the disk; 0 if it has gone."""
    with contextlib.suppress(OSError):
        status = file.lstat()
        return int(getattr(status, "st_blocks", -(-status.st_size // 512))) * 512
    return 0


def _written(folder: Path) -> str:
    """Say how much of the output is written, by the journal in its staging folder."""
    total = nbytes = 0
    with contextlib.suppress(InputError, ValueError, TypeError, AttributeError):
        for line in read_bytes(folder / "journal").splitlines():
            entry = json.loads(line)
            total, nbytes = int(entry.get("total", total)), int(entry.get("bytes", nbytes))
    return _percent(nbytes, total)


def _percent(nbytes: int, total: int) -> str:
    return f"{100 * nbytes // total} %" if nbytes and total else ""


def _steps(folder: Path) -> str:
    """Say how many steps of a plan are complete.

    Some steps depend on the types that were chosen: those of the choice with the most steps count.
    """
    try:
        count = int(read_head(folder / STEP_COUNT, 16))
    except (InputError, ValueError):
        return ""
    by_types = [
        sum(file.name in STEP_NAMES or file.name.startswith("layer-") for file in files.iterdir())
        for files in folder.iterdir()
        if files.is_dir()
    ]
    complete = (folder / STEP_NAMES[-1]).is_file() + max(by_types, default=0)
    return f"{complete} of {count} steps" if complete else ""


def _steps_name(plan: LazyPlan) -> str:
    return plan.steps_key[:16]
