"""The journal of a conversion: how far it has come, so that an interrupted one can continue.

It is a file in the staging folder: a line with a key, then a line for each place up to which
everything is written and synced. The key stands for the plan and for the source's files as they are
on the disk. Any change to one of these, even one that restores its modification time, changes its
inode's change time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.manifest import libraries
from cgconvert.write.plan import Plan

__all__ = ["START", "Journal", "Place", "key_of", "sources"]

Place = tuple[int, int, int]
"""File of the plan, item of the file, row of the item: everything before it is written."""

START: Place = (0, 0, 0)


def key_of(plan: Plan, **choices: bool) -> str:
    """Hash of everything that determines the bytes: the plan, its source, the libraries.

    `choices` are further options of the run.
    """
    files = [
        [file.path, file.size, hashlib.sha256(file.header).hexdigest(),
         [[i.name, i.encoding.name, str(i.source.dtype), [p.offset for p in i.pieces]]
          for i in file.items]]
        for file in plan.files
    ]  # fmt: skip
    identity = [
        libraries(), plan.format, plan.type, dict(plan.options), choices, files,
        sources(plan.source), plan.source.layout, plan.source.geometry.as_dict(),
        dict(plan.source.origin),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sources(checkpoint: Checkpoint) -> list[list[str | int]]:
    """Path, size, times and inode of each of the source's files."""
    identities: list[list[str | int]] = []
    for path in checkpoint.files:
        s = path.stat()
        identities.append([str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino])
    return identities


class Journal:
    """The journal at `path`, read where its key is `key`.

    `place` is where the run that holds the staging folder has to begin; `source` is the digest of
    the source, "" where it is not known yet.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.place, self.source = START, ""
        for entry in self._entries() if path.is_file() else ():
            place = entry.get("place")
            if place is not None:
                self.place = (int(place[0]), int(place[1]), int(place[2]))
            self.source = entry.get("source", self.source)

    def _entries(self) -> list[Mapping[str, Any]]:
        """The entries if the key is the same. The last line may be cut short: it is left out."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        if not lines or lines[0] != json.dumps({"key": self.key}):
            return []
        entries = []
        for line in lines[1:]:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def begin(self) -> None:
        """Start a new journal: nothing is written yet."""
        self.place, self.source = START, ""
        self.path.write_text("")
        self._append({"key": self.key})

    def reached(self, place: Place) -> None:
        """Note that everything before `place` is written and synced."""
        self._append({"place": place})

    def hashed(self, sha256: str, path: Path) -> None:
        """Note the digest of the source at `path`. Raises InputError where it was another one."""
        if self.source not in ("", sha256):
            raise InputError(f"{path}: is not what it was before; run again without `resume=True`")
        if not self.source:
            self._append({"source": sha256})

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
