"""The journal of a conversion: how far it has come, so that an interrupted run can be continued.

The journal is a file in the staging folder. Its first line has a key, and each further line has
either a position up to which everything is written and synced, or the SHA-256 of the source. The
key stands for the plan and for the identity of the source's files on the disk. A run continues from
a journal only if its own key is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.io.reading import read_bytes
from cgconvert.io.system.files import sync_descriptor
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.manifest import library_versions
from cgconvert.write.plan import Plan

__all__ = ["START", "Journal", "Position", "plan_key", "source_identity", "written_bytes"]

Position = tuple[int, int, int]
"""Index of a file in the plan, index of a tensor in that file, and a row of that tensor. Everything
before the row is written."""

START: Position = (0, 0, 0)


def plan_key(plan: Plan, **run_options: bool) -> str:
    """SHA-256 (hex) of all that determines the bytes: plan, source, library versions, options."""
    files = [
        [file.path, file.size, hashlib.sha256(file.header).hexdigest(),
         [[t.name, t.encoding.name, str(t.source.dtype), [array.offset for array in t.arrays]]
          for t in file.tensors]]
        for file in plan.files
    ]  # fmt: skip
    identity = [
        library_versions(), plan.format, plan.type, dict(plan.options), run_options, files,
        source_identity(plan.source), plan.source.layout, plan.source.geometry.as_dict(),
        dict(plan.source.origin),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def source_identity(checkpoint: Checkpoint) -> list[list[str | int]]:
    """Path, size in bytes, times in nanoseconds and inode number of each file of a checkpoint.

    The inode's change time shows every change of a file, even if the modification time was
    restored afterwards.
    """
    identities: list[list[str | int]] = []
    for path in checkpoint.files:
        s = path.stat()
        identities.append([str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino])
    return identities


def written_bytes(plan: Plan, position: Position) -> int:
    """Bytes of the output of a plan that lie before a position, gaps between arrays apart."""
    file_index, tensor_index, row = position
    nbytes = sum(file.size for file in plan.files[:file_index])
    if file_index < len(plan.files) and (tensor_index, row) != (0, 0):
        file = plan.files[file_index]
        nbytes += len(file.header) + sum(t.nbytes for t in file.tensors[:tensor_index])
        nbytes += file.tensors[tensor_index].stored_bytes(slice(0, row))
    return nbytes


class Journal:
    """The journal in the file `path`. What it has recorded counts only if its key is `key`.

    Attributes:
        position: Where the run has to begin: at START, or where an interrupted run has stopped.
        nbytes: The bytes of the output that are written before that position.
        source_sha256: The SHA-256 of the source, or "" as long as it is not known.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.position, self.nbytes, self.source_sha256 = START, 0, ""
        for entry in self._entries() if path.is_file() else ():
            if "position" in entry:
                file_index, tensor_index, row = entry["position"]
                self.position = (int(file_index), int(tensor_index), int(row))
                self.nbytes = int(entry.get("bytes", 0))
            self.source_sha256 = entry.get("source", self.source_sha256)

    def _entries(self) -> list[Mapping[str, Any]]:
        """Read the lines after the key; none if the key differs.

        A run that was killed may have cut the last line short, so reading ends at a broken line.
        """
        lines = read_bytes(self.path).decode(errors="replace").split("\n")[:-1]
        if not lines or lines[0] != json.dumps({"key": self.key}):
            return []
        entries = []
        for line in lines[1:]:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def begin(self, total_bytes: int) -> None:
        """Replace the journal by a new one: nothing of the output's `total_bytes` is written."""
        self.position, self.nbytes, self.source_sha256 = START, 0, ""
        self.path.write_text("", encoding="utf-8")
        self._append({"key": self.key})
        self._append({"total": total_bytes})

    def record(self, position: Position, nbytes: int) -> None:
        """Record that everything before `position`, `nbytes` bytes, is written and synced."""
        self._append({"position": position, "bytes": nbytes})
        self.nbytes = nbytes

    def record_source(self, sha256: str, path: Path) -> None:
        """Record the SHA-256 of the source at `path`.

        Raises InputError if the interrupted run has recorded another SHA-256.
        """
        if self.source_sha256 not in ("", sha256):
            raise InputError(f"{path}: is not what it was before; run again with `keep=False`")
        if not self.source_sha256:
            self._append({"source": sha256})

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry as one more line, and sync the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            sync_descriptor(file.fileno())
