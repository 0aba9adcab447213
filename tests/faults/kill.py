"""Kills conversions at random moments and looks at what is there: all of an artefact or nothing.

    python -m tests.faults.kill --moments 200

After each kill the target is absent, or what it was before, or complete. Then the same command is
given again, every other time with --resume: its output has the bytes of a run that was left alone,
and nothing else is left.
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

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Every file below a folder by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Tally:
    """What was there after the kills, and how often a run went on where another had ended."""

    after: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    resumed: int = 0


class Killer:
    """Two versions of a source, so that an earlier artefact differs from the one being written."""

    def __init__(self, server: Server, folder: Path, seed: int) -> None:
        self.server, self.folder, self.random = server, folder, random.Random(seed)
        self.whole: dict[str, tuple[Tree, Tree, float]] = {}
        for version in (1, 2):
            state = synthetic.RandomState(GEOMETRY, seed=version, dtype=torch.float16)
            for layout in ("safetensors", "tarball"):
                place = self.folder / f"{layout}{version}"
                made = synthetic.write(layout, state, GEOMETRY, place, NAME, embedded.path())
                if layout == "tarball":
                    made.rename(place / f"{NAME}.tar.gz")

    def run(self, work: Path, writer: str, *more: str, **how: object) -> Outcome:
        arguments = [part.format(tokenizer=embedded.path()) for part in WRITERS[writer]]
        env = {"CGCONVERT_CACHE": str(work / "cache")}
        how = {"journal": 1 << 16, "processes": 2, **how}
        return self.server.run(*arguments, *more, cwd=work, env=env, **how)

    def moment(self, writer: str, tally: Tally, number: int) -> None:
        """One kill, the look at what is there, and the run after it."""
        earlier, complete, seconds = self._whole(writer)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            work, replaced, resume = Path(name), number % 2 == 1, number % 4 >= 2
            self._source(work, 1)
            if replaced:
                assert self.run(work, writer).code == 0
            self._source(work, 2)
            more = ("--force",) if replaced else ()
            when = self.random.uniform(0, seconds)
            killed = self.run(work, writer, *more, kill=[signal.SIGKILL, when])
            there = tree(work / "out")
            staged = [p for p in work.glob("out/.*/journal") if '"place"' in p.read_text()]
            found = self._judge(work, {k: v for k, v in there.items() if k[0] != "."},
                                earlier if replaced else {}, complete)  # fmt: skip
            tally.after[found if killed.code < 0 else "finished before"] += 1
            again = self.run(work, writer, "--force", *(("--resume",) if resume else ()))
            tally.resumed += bool(resume and staged)
            left = [str(p) for p in work.rglob("*") if "cgconvert-tmp" in p.name]
            if found == "partial" or again.code or tree(work / "out") != complete or left:
                tally.faults.append(
                    f"{writer}, killed after {when:.4f} s: {found}; then {again.code} "
                    f"{again.err.strip()} {left}"
                )

    def _whole(self, writer: str) -> tuple[Tree, Tree, float]:
        """What runs left alone write from both versions, and how long one takes."""
        if writer not in self.whole:
            trees, seconds = [], 0.0
            for version in (1, 2):
                with tempfile.TemporaryDirectory(dir=self.folder) as name:
                    self._source(Path(name), version)
                    done = self.run(Path(name), writer)
                    assert done.code == 0, done.err
                    trees.append(tree(Path(name) / "out"))
                    seconds = done.wall
            self.whole[writer] = (trees[0], trees[1], seconds)
        return self.whole[writer]

    def _source(self, work: Path, version: int) -> None:
        shutil.rmtree(work / NAME, ignore_errors=True)
        shutil.copytree(self.folder / f"safetensors{version}", work, dirs_exist_ok=True)
        shutil.copy(self.folder / f"tarball{version}" / f"{NAME}.tar.gz", work)

    def _judge(self, work: Path, there: Tree, earlier: Tree, complete: Tree) -> str:
        unpacked = work.glob("cache/unpacked/[!.]*")
        if not all((p / ".cgconvert-archive.json").is_file() for p in unpacked):
            return "partial"
        if there == complete:
            return "complete"
        if there == earlier:
            return "as before"
        # Between the renames of a file and its manifest: each is whole, none is of the other.
        rest = {name: sha for name, sha in there.items() if sha in earlier.values()}
        new = {name: sha for name, sha in there.items() if sha in complete.values()}
        if len(there) == 1 and (rest or new):
            return "without its manifest"
        return "partial"


@click.command()
@click.option("--moments", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(moments: int, seed: int) -> None:
    """Kill every writer in turn; leaves with 1 where a target was partial or a byte differed."""
    server, tally = Server(), Tally()
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(server, Path(folder), seed)
        for number in range(moments):
            writer = list(WRITERS)[number // 4 % len(WRITERS)]
            killer.moment(writer, tally, number)
    server.close()
    for what, count in tally.after.most_common():
        click.echo(f"{count:5} {what}")
    click.echo(f"{tally.resumed:5} runs went on from a journal")
    click.echo("\n".join(tally.faults) or "no target partial, every run after it byte for byte")
    raise SystemExit(bool(tally.faults))


if __name__ == "__main__":
    main()
