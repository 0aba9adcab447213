"""What interrupted runs have left: `clean` finds it, and removes it."""

from __future__ import annotations

from pathlib import Path

from cgconvert.api.sources import check_type
from cgconvert.errors import InputError
from cgconvert.io.file_names import can_exist
from cgconvert.write.leftovers import Leftover, find_leftovers, remove_leftover

__all__ = ["Leftover", "clean"]


def clean(path: str | Path = ".", *, delete: bool = False) -> list[Leftover]:
    """Find what interrupted runs have left in a folder and below it, and remove it if asked.

    Only hidden files and folders with the names and the content of cgconvert's temporary ones are
    found. They must belong to the user; links are left out. What a run is writing now is never
    removed.

    Args:
        path: A folder, or the output of the run that was interrupted.
        delete: Remove what is found, apart from what is running.

    Returns:
        What was found, sorted by path: each with its path, output, bytes, age and progress. With
        `delete`, only what is removed.

    Raises:
        InputError: The path does not exist, and no run has left anything for it.

    Example:
        >>> cgconvert.clean()
        []
    """
    check_type("path", path, str, Path)
    path = Path(path)
    if not can_exist(path):
        raise InputError(f"{path}: no file has such a name")
    leftovers = sorted(find_leftovers(path), key=lambda leftover: leftover.path)
    if not leftovers and not path.exists():
        raise InputError(f"{path}: no such file or folder, and nothing was left for it")
    if not delete:
        return leftovers
    idle = [leftover for leftover in leftovers if not leftover.is_running]
    return [leftover for leftover in idle if remove_leftover(leftover)]
