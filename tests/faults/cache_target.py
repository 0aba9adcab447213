"""Damaged entries of the cache: a command ends as it does without them."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

from tests.faults.command_folder import CommandFolder, FaultError
from tests.faults.mutated_bytes import Choose, mutated_bytes
from tests.faults.server import Outcome

__all__ = ["CacheTarget"]

COMMANDS = (
    "verify earlier --quick --reference checkpoint",
    "verify earlier --quick --reference adapter/source",  # another model: it fails
    "verify earlier.gguf --reference tarball/source.tar.gz --tokenizer tokenizer --quick",
    "to-gguf tarball/source.tar.gz --tokenizer tokenizer -o new.gguf",
)


class CacheTarget:
    """Its inputs are seeds of the changes, since the names of entries depend on the versions."""

    def __init__(self) -> None:
        self.expected: dict[str, tuple[int, list[str]]] = {}

    def valid(self, folder: CommandFolder) -> bytes:
        return b""

    def make(self, seed: bytes, choose: Choose) -> bytes:
        return str(choose(0, 1 << 30)).encode()

    def check(self, folder: CommandFolder, data: bytes, *, every: bool = False) -> None:
        """Damage up to three entries, and run a command. Raises FaultError."""
        for command in () if self.expected else COMMANDS:
            self.expected[command] = _verdict(_run(folder, command, "without-entries"))
        chance = random.Random(data)
        command = chance.choice(COMMANDS)
        _run(folder, command, "cache")
        entries = sorted(path for path in (folder.work / "cache").rglob("*") if path.is_file())
        for path in chance.sample(entries, min(3, len(entries))):
            _damage(path, entries, chance)
        verdict = _verdict(_run(folder, command, "cache"))
        if verdict != self.expected[command]:
            raise FaultError(f"cache: {verdict} in place of {self.expected[command]}: {command}")
        if chance.random() < 0.3:
            shutil.rmtree(folder.work / "cache")
            (folder.work / "cache").mkdir(0o700)


def _run(folder: CommandFolder, command: str, cache: str) -> Outcome:
    environment = {"CGCONVERT_CACHE": str(folder.work / "cache" / cache)}
    return folder.run(command.split(), ["new.gguf"], environment)


def _verdict(outcome: Outcome) -> tuple[int, list[str]]:
    """The exit code, and the lines that say how many checks passed."""
    return outcome.code, re.findall(r"^\d+ checks: .*$", outcome.out, re.MULTILINE)


def _damage(path: Path, entries: list[Path], chance: random.Random) -> None:
    data, kind = path.read_bytes(), chance.randint(0, 6)
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        entry = str(chance.choice(entries))
        path.symlink_to(chance.choice(["/dev/zero", "/nowhere", path.name, entry]))
    elif kind == 3:
        regular = [entry for entry in entries if entry.is_file() and entry.stat().st_size < 1 << 30]
        path.write_bytes(chance.choice(regular).read_bytes() if regular else b"")
    elif kind == 4:
        path.write_bytes(data)
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(mutated_bytes(data, chance.randint))
