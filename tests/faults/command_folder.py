"""A folder with every kind of file, in which commands run, and what must hold after each of them.

Whatever the command line and the files are, a command ends in time with a code of the table, prints
lines without control characters and one line if it fails, opens no connection, shows nothing of a
file that it was not to show, changes no file, and writes what it was told to write or nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cgconvert import embedded
from cgconvert.formats.gguf.imatrix import encoded
from tests.faults.server import Outcome, Server
from tests.faults.small_model import small_imatrix
from tests.faults.valid_inputs import RECIPE, ValidInputs
from tests.support.imatrices import legacy

__all__ = ["KINDS", "CommandFolder", "FaultError"]

KINDS = ("torch", "torch-sharded", "safetensors-sharded", "jaxformer", "tarball", "hf", "gptj",
         "phi", "onnx", "onnx-int4", "gguf", "adapter")  # fmt: skip
"""Kinds of inputs, each in a folder of this name.

Beside them, `checkpoint` has safetensors, and so has `slow`, whose tokenizer is vocab and merges.
"""

REPLACEABLE = ("earlier", "earlier.gguf", "earlier.gguf.cgconvert.json", "empty", "empty-folder",
               "hf/source", "gguf/source.gguf", "gguf/source.gguf.cgconvert.json",
               "onnx/source", "onnx-int4/source", "phi/source", "gptj/source")  # fmt: skip
"""What a command may replace if it is the named output: artefacts of cgconvert, empty files."""

SECRET = "root:x:0:0:a-line-that-no-message-shows"
SECRETS = (SECRET[:6], *(str(int.from_bytes(SECRET[:size].encode(), "little")) for size in (4, 8)))
"""What shows that a message quotes the file: its text, or its first bytes as a number."""

CODES = (0, 2, 3, 4, 5)
REFUSAL_SECONDS, REFUSAL_BYTES = 5.0, 1 << 30
"""What it may cost to refuse an input (exit codes 2 and 3): CPU time and memory."""

NOTE = re.compile(r"\[?\d+(/| of )\d+|cgconvert: without a cache: ")
"""How lines on stderr begin that are no failure: progress, on a busy machine, and a warning."""

WALL_SECONDS = 60
"""When a command is killed, as one that hangs."""

SPARSE_BYTES = 1 << 40


class FaultError(AssertionError):
    """Something that must never happen; the text begins with its kind."""


class CommandFolder:
    """The folder `work`, written anew whenever a command may have changed its files."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.work = folder / "work"
        self.valid_inputs = ValidInputs(folder.with_name(f"{folder.name}-valid"))
        self.write()

    def write(self) -> None:
        """Write all files, and remember them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.work.mkdir(parents=True)
        write_inputs(self.work, self.valid_inputs)
        write_strange_files(self.work)
        self.before = snapshot(self.folder)

    def replace(self, name: str, data: bytes) -> None:
        """Replace the file `name` for the next command."""
        path = self.work / name
        self.kept = path, path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        self.before = snapshot(self.folder)

    def restore(self) -> None:
        """Undo `replace`."""
        path, data = self.kept
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        self.before = snapshot(self.folder)

    def run(
        self,
        arguments: Sequence[str],
        outputs: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        stdin: str = "recipe.yaml",
    ) -> Outcome:
        """Run a command and check all that must hold. Raises FaultError.

        Args:
            arguments: The command line without the program.
            outputs: Paths that it may write; what is written under `out` is never looked at.
            environment: Variables to set, or None for those to remove.
            stdin: The file that is its standard input.
        """
        variables = {"HOME": str(self.work / "home"), "CGCONVERT_CACHE": str(self.work / "cache"),
                     "XDG_CACHE_HOME": None, **(environment or {})}  # fmt: skip
        outcome = self.server.run(*arguments, cwd=self.work, env=variables, limit=WALL_SECONDS,
                                  stdin=str(self.work / stdin))  # fmt: skip
        try:
            check_outcome(outcome, arguments)
            self._check_files(outcome, outputs)
        finally:
            self._clean()
        return outcome

    def _check_files(self, outcome: Outcome, outputs: Sequence[str]) -> None:
        after = snapshot(self.folder)
        named = [os.path.normpath(self.work / output) for output in outputs if output]
        named += [f"{path}.cgconvert.json" for path in named]
        for name in self.before.keys() | after.keys():
            path = str(self.folder / name)
            if self.before.get(name) == after.get(name) or _is_ignored(name):
                continue
            is_output = any(path == output or path.startswith(f"{output}/") for output in named)
            if name not in self.before:
                is_parent = any(output.startswith(f"{path}/") for output in named)
                if not (is_output or is_parent) or ".cgconvert-" in name:
                    raise FaultError(f"leaves: {name!a} is new")
                if outcome.code in (2, 3, 5) and not is_parent:
                    raise FaultError(f"leaves: {name!a} is new after exit code {outcome.code}")
            elif not (is_output and _is_replaceable(name)):
                verb = "changed" if name in after else "removed"
                raise FaultError(f"damages: {name!a} was {verb}")

    def _clean(self) -> None:
        """Remove what is new; write everything again if something is not as it was."""
        after = snapshot(self.folder)
        if any(after.get(name) != entry for name, entry in self.before.items()):
            self.write()
            return
        for name in sorted(after.keys() - self.before.keys(), reverse=True):
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def check_outcome(outcome: Outcome, arguments: Sequence[str]) -> None:
    """Check exit code, output, time and memory of a command. Raises FaultError."""
    lines = [line for line in outcome.err.split("\n")[:-1] if not NOTE.match(line)]
    shown = "\n".join(ascii(line[:300]) for line in [*outcome.out.split("\n")[-4:], *lines[-12:]])
    is_verbose = any(word.startswith("-") and "v" in word for word in arguments)
    if outcome.code not in CODES:
        what = lines[-1] if lines and outcome.code > 0 else f"{outcome.wall:.0f} s elapsed"
        raise FaultError(f"exit code {outcome.code}: {what[:200]!a}\n{shown}")
    if outcome.code in (2, 3) and outcome.seconds > REFUSAL_SECONDS:
        raise FaultError(f"slow: {outcome.seconds:.1f} s of CPU to refuse\n{shown}")
    if outcome.code in (2, 3) and outcome.grown > REFUSAL_BYTES:
        raise FaultError(f"memory: {outcome.grown >> 20} MiB to refuse\n{shown}")
    if any(secret in outcome.out + outcome.err for secret in SECRETS):
        raise FaultError(f"shows what is in a file\n{shown}")
    if is_verbose:
        return
    if "Traceback" in outcome.out + outcome.err:
        raise FaultError(f"traceback\n{shown}")
    is_text = "generate" in arguments  # its output is what a model wrote
    for line in [*lines, *([] if is_text else outcome.out.split("\n"))]:
        if not re.sub("[\t\xad]", "", line).isprintable():
            raise FaultError(f"control characters: {line[:300]!a}\n{shown}")
    is_line = len(lines) == 1 and lines[0].startswith("cgconvert: ")
    is_usage = outcome.code == 2 and outcome.err.startswith("Usage: ")  # of no arguments at all
    if outcome.code and not (is_line or is_usage):
        raise FaultError(f"lines: {len(lines)} with exit code {outcome.code}\n{shown}")


def write_inputs(work: Path, valid_inputs: ValidInputs) -> None:
    """Write a valid input of every kind, and what commands take beside a source."""
    for kind in KINDS:
        valid_inputs.copy(kind, work / kind)
    valid_inputs.copy("safetensors", work).rename(work / "checkpoint")
    valid_inputs.copy("safetensors", work).rename(work / "slow")
    (work / "slow" / "tokenizer.json").unlink()
    valid_inputs.copy("gguf", work)
    for suffix in ("", ".cgconvert.json"):
        (work / f"source.gguf{suffix}").rename(work / f"earlier.gguf{suffix}")
    valid_inputs.copy("hf", work).rename(work / "earlier")
    shutil.copytree(embedded.path(), work / "tokenizer", ignore=shutil.ignore_patterns("*.safe*"))
    (work / "imatrix.gguf").write_bytes(encoded(small_imatrix()))
    (work / "imatrix.dat").write_bytes(legacy(small_imatrix()))
    (work / "recipe.yaml").write_text(RECIPE.replace("source: source", "source: checkpoint")
                                      .replace("out.gguf", "out/a.gguf"))  # fmt: skip
    (work / "text.txt").write_text("def f(x):\n    return x + 1\n" * 40)


def write_strange_files(work: Path) -> None:
    """Write files that no option takes: pipes, links, huge ones, ones with strange names."""
    for name in ("empty-folder", "foreign", "home", "cache"):
        (work / name).mkdir(mode=0o700 if name == "cache" else 0o755)
    (work / "foreign" / "thesis.txt").write_text(f"{SECRET}\n")
    (work / "secret").write_text(f"{SECRET}\n")
    for name in ("empty", "unreadable"):
        (work / name).write_text("")
    (work / "unreadable").chmod(0)
    os.mkfifo(work / "fifo")
    address = work / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(work, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{address.name}")  # the whole path may be too long
        os.close(here)
    for name, minor in (("null", 3), ("zero", 5)):
        if os.geteuid() == 0:
            os.mknod(work / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    for name in ("sparse", "sparse.gguf", "sparse.tar.gz"):
        (work / name).touch()
        os.truncate(work / name, SPARSE_BYTES)
    (work / "latin1.txt").write_bytes(b"caf\xe9 " * 100)
    (work / "nul.txt").write_bytes(b"a\0b\x1b[31m\r\n" * 100)
    (work / "list.json").write_text(json.dumps([SECRET]))
    (work / "list.yaml").write_text(f"- '{SECRET}'\n")
    for name in (os.fsdecode(b"not\xffutf8"), "red\x1b[31m\nname", "-dash"):
        (work / name).write_text(SECRET)
    for name, target in {"file": "secret", "itself": "link-to-itself", "nothing": "nowhere",
                         "checkpoint": "checkpoint", "zero": "/dev/zero"}.items():  # fmt: skip
        (work / f"link-to-{name}").symlink_to(target)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return type, size and time of everything below a folder but the cache."""
    return dict(_entries(folder, ""))


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            status, name = entry.stat(follow_symlinks=False), prefix + entry.name
            is_folder = stat.S_ISDIR(status.st_mode)
            size, time = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
            yield name, (status.st_mode, size, time)
            if is_folder and name != "work/cache":
                yield from _entries(Path(entry.path), f"{name}/")


def _is_ignored(name: str) -> bool:
    return name == "work/out" or name.startswith("work/out/")


def _is_replaceable(name: str) -> bool:
    name = name.removeprefix("work/")
    return any(name == path or name.startswith(f"{path}/") for path in REPLACEABLE)
