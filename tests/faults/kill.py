"""Kills conversions at random moments: the output must be complete or unchanged.

    python -m tests.faults.kill --moments 200

After each kill the output is absent, as it was before, or complete. Then the same command runs
again, every other time with --no-keep: its output has the bytes of an uninterrupted run, and no
other file is left.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch

from cgconvert import embedded
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from tests.faults.server import Outcome, Server

__all__ = ["WRITERS", "Killer", "Tally"]

GEOMETRY = Geometry(
    n_layer=2, n_embd=256, n_head=4, rotary_dim=32, n_positions=64, vocab_size=4096, mp_num=4
)
NAME = "source"
WRITERS: dict[str, tuple[str, ...]] = {
    "to-hf": ("to-hf", NAME, "-o", "out/hf"),
    "to-hf, shards": ("to-hf", NAME, "--max-shard-size", "2MB", "-o", "out/hf"),
    "to-hf phi": ("to-hf", NAME, "--layout", "phi", "-o", "out/phi"),
    "to-onnx": ("to-onnx", NAME, "-o", "out/onnx"),
    "to-onnx float16": ("to-onnx", NAME, "--dtype", "float16", "-o", "out/onnx"),
    "quantize onnx 4": ("quantize", NAME, "--bits", "4", "--format", "onnx",
                        "--effort", "fast", "-o", "out/onnx"),
    "to-gguf F16": ("to-gguf", NAME, "-o", "out/m.gguf"),
    "to-gguf Q8_0": ("to-gguf", NAME, "--type", "Q8_0", "-o", "out/m.gguf"),
    "quantize gguf 4": ("quantize", NAME, "--type", "Q4_0", "--effort", "fast", "-o", "out/m.gguf"),
    "tarball to-gguf": ("to-gguf", f"{NAME}.tar.gz", "--tokenizer", "{tokenizer}",
                        "-o", "out/m.gguf"),
}  # fmt: skip

Hashes = dict[str, str]


def file_hashes(folder: Path) -> Hashes:
    """SHA-256 of every file below a folder, by its relative path; remembered hashes apart."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "hashes"
    }


@dataclass
class Tally:
    """States of the output after the kills, faults, and how many runs resumed from a journal."""

    after: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    resumed: int = 0


class Killer:
    """Runs and kills conversions of a checkpoint that there are two versions of.

    An artefact of version 1 lies where one of version 2 is being written, so mixtures show.
    """

    def __init__(self, server: Server, folder: Path, seed: int) -> None:
        self.server, self.folder, self.random = server, folder, random.Random(seed)
        self.expected: dict[str, tuple[Hashes, Hashes, float]] = {}
        for version in (1, 2):
            state = synthetic.RandomState(GEOMETRY, seed=version, dtype=torch.float16)
            for layout in ("safetensors", "tarball"):
                place = self.folder / f"{layout}{version}"
                made = synthetic.write(layout, state, GEOMETRY, place, NAME, embedded.path())
                if layout == "tarball":
                    made.rename(place / f"{NAME}.tar.gz")

    def run(self, work: Path, writer: str, *more: str, **options: object) -> Outcome:
        arguments = [part.format(tokenizer=embedded.path()) for part in WRITERS[writer]]
        env = {"CGCONVERT_CACHE": str(work / "cache")}
        options = {"journal": 1 << 16, "processes": 2, **options}
        return self.server.run(*arguments, *more, cwd=work, env=env, **options)

    def kill_once(self, writer: str, tally: Tally, number: int) -> None:
        """Kill one run at a random time, check its output, and check the output of the next run."""
        earlier, complete, seconds = self._expected(writer)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            work, replaced, resume = Path(name), number % 2 == 1, number % 4 >= 2
            self.write_source(work, 1)
            if replaced:
                assert self.run(work, writer).code == 0
            self.write_source(work, 2)
            more = ("--force",) if replaced else ()
            when = self.random.uniform(0, seconds)
            killed = self.run(work, writer, *more, kill=[signal.SIGKILL, when])
            there = file_hashes(work / "out")
            staged = [p for p in work.glob("out/.*/journal") if '"position"' in p.read_text()]
            state = self._state({k: v for k, v in there.items() if k[0] != "."},
                                earlier if replaced else {}, complete)  # fmt: skip
            tally.after[state if killed.code < 0 else "finished before"] += 1
            again = self.run(work, writer, "--force", *(() if resume else ("--no-keep",)))
            tally.resumed += bool(resume and staged)
            left = [str(p) for p in work.rglob("*") if "cgconvert-tmp" in p.name]
            if state == "partial" or again.code or file_hashes(work / "out") != complete or left:
                tally.faults.append(
                    f"{writer}, killed after {when:.4f} s: {state}; then {again.code} "
                    f"{again.err.strip()} {left}"
                )

    def _expected(self, writer: str) -> tuple[Hashes, Hashes, float]:
        """Return the hashes of uninterrupted runs from both versions, and a run's seconds."""
        if writer not in self.expected:
            hashes, seconds = [], 0.0
            for version in (1, 2):
                with tempfile.TemporaryDirectory(dir=self.folder) as name:
                    self.write_source(Path(name), version)
                    done = self.run(Path(name), writer)
                    assert done.code == 0, done.err
                    hashes.append(file_hashes(Path(name) / "out"))
                    seconds = done.wall
            self.expected[writer] = (hashes[0], hashes[1], seconds)
        return self.expected[writer]

    def write_source(self, work: Path, version: int) -> None:
        shutil.rmtree(work / NAME, ignore_errors=True)
        shutil.copytree(self.folder / f"safetensors{version}", work, dirs_exist_ok=True)
        shutil.copy(self.folder / f"tarball{version}" / f"{NAME}.tar.gz", work)

    def _state(self, there: Hashes, earlier: Hashes, complete: Hashes) -> str:
        if there == complete:
            return "complete"
        if there == earlier:
            return "as before"
        # Killed between the renames of a file and its manifest: one of them, complete.
        rest = {name: sha for name, sha in there.items() if sha in earlier.values()}
        new = {name: sha for name, sha in there.items() if sha in complete.values()}
        if len(there) == 1 and (rest or new):
            return "without its manifest"
        return "partial"


@click.command()
@click.option("--moments", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(moments: int, seed: int) -> None:
    """Kill every writer in turn; exit with 1 if an output was partial or a byte differed."""
    server, tally = Server(), Tally()
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(server, Path(folder), seed)
        for number in range(moments):
            writer = list(WRITERS)[number // 4 % len(WRITERS)]
            killer.kill_once(writer, tally, number)
    server.close()
    for state, count in tally.after.most_common():
        click.echo(f"{count:5} {state}")
    click.echo(f"{tally.resumed:5} runs went on from a journal")
    click.echo("\n".join(tally.faults) or "no target partial, every run after it byte for byte")
    raise SystemExit(bool(tally.faults))


if __name__ == "__main__":
    main()
