"""Measure prefill and decode of every runtime that runs CodeGen on a CPU.

    python benchmarks/decode.py --name codegen-350M-mono --threads 4 --repeats 5 \\
        --peers .venv-optimum/bin/python --llama .venv-llama/bin/python

The model has the family's shape and random weights, because speed does not depend on the numbers.
Every contender is a process that loads its model once. Then all take turns in every repeat, so that
changes of the machine's speed affect all alike. `--peers` is a Python with optimum and ctranslate2,
which need an older transformers; `--llama` is one with llama-cpp-python. Both default to this
Python. llama.cpp is run with its fastest settings and so uses its AMX kernels, which GCC 12
compiles wrongly. On a CPU with AMX, build it with -mno-amx-tile -mno-amx-int8 -mno-amx-bf16 in
CMAKE_C_FLAGS and CMAKE_CXX_FLAGS.

The share of bandwidth is the weights that a step reads, in bytes per second, divided by the speed
with which all threads read a large array in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from measuring import command, machine, store, work_folder

PROMPT, STEPS, BATCHES = 128, 32, (1, 8)
PHASES = ("prefill", "decode")
WORKER = Path(__file__).with_name("decoding.py")


@dataclass
class Contender:
    """A runtime with a file. A decoding step reads `reads` bytes of weights."""

    name: str
    kind: str
    python: str
    path: Path
    reads: int
    process: Any = None
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def start(self, threads: int) -> None:
        """Start the process, load the model and run it once."""
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [self.python, str(WORKER), self.kind, str(self.path), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.ask({"batch": 1, "prompt": 8, "steps": 2})  # waits until the model is loaded and warm

    def ask(self, request: dict[str, int]) -> dict[str, float]:
        """Seconds of a prefill and of a step. Raises ClickException if the process has ended."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended with {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def measure(self, batch: int) -> None:
        """Measure one prefill and its steps, and append the seconds."""
        answer = self.ask({"batch": batch, "prompt": PROMPT, "steps": STEPS})
        for phase, seconds in answer.items():
            self.seconds.setdefault((phase, batch), []).append(seconds)

    def rate(self, phase: str, batch: int) -> float | None:
        """Tokens per second of a phase (prefill or decode), over all sequences of the batch."""
        seconds = self.seconds.get((phase, batch))
        if not seconds:
            return None
        return batch * (PROMPT if phase == "prefill" else 1) / statistics.median(seconds)


@click.command()
@click.option("--name", default="codegen-350M-mono", show_default=True)
@click.option("--layers", type=int, help="Keep only this many layers.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count(), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--peers", default=sys.executable, help="Python with optimum and ctranslate2.")
@click.option("--llama", default=sys.executable, help="Python with llama-cpp-python.")
@click.option("--only", multiple=True, help="Contenders whose name contains this.")
@click.option("--also", multiple=True, type=click.Path(exists=True, path_type=Path),
              help="A GGUF of the same shape, as quantize makes it, for llama.cpp.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), help="Where to write (a fast disk).")
def main(
    name: str,
    layers: int | None,
    threads: int,
    repeats: int,
    peers: str,
    llama: str,
    only: tuple[str, ...],
    also: tuple[Path, ...],
    work: Path | None,
) -> None:
    """Measure prefill and decode of all contenders."""
    with work_folder(work) as folder:
        contenders = list(_prepare(folder, name, layers, peers, llama, only))
        for path in also:
            reads = path.stat().st_size * 9 // 10
            label = f"llama.cpp, {path.stem}"
            contenders.append(Contender(label, "llama.cpp", llama, path, reads))
        for contender in contenders:
            click.echo(f"loading {contender.name}", err=True)
            contender.start(threads)
        bandwidths = []
        for number in range(repeats):
            click.echo(f"repeat {number + 1} of {repeats}", err=True)
            bandwidths.append(_bandwidth(threads))
            for batch in BATCHES:
                for contender in contenders:
                    contender.measure(batch)
        for contender in contenders:
            contender.process.stdin.close()
            contender.process.wait()
    _write(name, threads, repeats, contenders, statistics.median(bandwidths), bool(only))


def _prepare(
    folder: Path, name: str, layers: int | None, peers: str, llama: str, only: tuple[str, ...]
) -> Iterator[Contender]:
    """Create the model and the files of all contenders, or of those whose name is in `only`."""

    def selected(name: str) -> bool:
        return not only or any(part in name for part in only)

    cuts = ["--layers", str(layers)] if layers else []
    _run(sys.executable, "-m", "cgconvert.testing.synthetic", name, "-o", str(folder), *cuts)
    source, out = folder / name, folder / "out"
    ours = [sys.executable, "-m", "cgconvert"]

    def onnx(label: str, *options: str) -> Path:
        target = out / label
        _run(*ours, "to-onnx", str(source), "-o", str(target), *options)
        return target

    def gguf(type_: str) -> Path:
        target = out / f"{type_}.gguf"
        if type_ == "Q4_K_M":
            quantize = [str(out / "F16.gguf"), str(target), type_]
            _run(llama, str(WORKER), "llama-quantize", *quantize)
        else:
            _run(*ours, "to-gguf", str(source), "-o", str(target), "--type", type_)
        return target

    for label, options in (
        ("float32", ()), ("int8", ("--bits", "8")), ("int4", ("--bits", "4")),
        ("int4 bs128", ("--bits", "4", "--block-size", "128", "--symmetric")),
    ):  # fmt: skip
        named = {r: f"ours {label}, {r}" for r in ("onnxruntime", "genai")}
        if any(map(selected, named.values())):
            path = onnx(label.replace(" ", "-"), *options)
            reads = _data(path) - _embedding(path)
            for runtime, own in named.items():
                if selected(own):
                    yield Contender(own, runtime, sys.executable, path, reads)
    if selected("optimum float32"):
        exported = out / "optimum"
        _run(
            str(Path(peers).with_name("optimum-cli")), "export", "onnx", "--model", str(source),
            "--task", "text-generation-with-past", str(exported),
        )  # fmt: skip
        weights = 4 * _weights(source)
        yield Contender("optimum float32", "optimum", peers, exported, weights)
    if selected("CTranslate2 int8"):
        translated = out / "ctranslate2"
        _run(
            str(Path(peers).with_name("ct2-transformers-converter")), "--model", str(source),
            "--quantization", "int8", "--output_dir", str(translated),
        )  # fmt: skip
        reads = (translated / "model.bin").stat().st_size * 9 // 10
        yield Contender("CTranslate2 int8", "ctranslate2", peers, translated, reads)
    gguf("F16")
    for type_ in ("Q8_0", "Q4_0", "Q4_K_M"):
        if selected(f"llama.cpp {type_}"):
            path = gguf(type_)
            reads = path.stat().st_size * 9 // 10
            yield Contender(f"llama.cpp {type_}", "llama.cpp", llama, path, reads)


def _run(*arguments: str) -> None:
    """Run a command. Raises ClickException with its stderr if it fails."""
    process = subprocess.run(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if process.returncode:
        raise click.ClickException(f"{' '.join(arguments[:4])}: {process.stderr[-2000:]}")


def _weights(source: Path) -> int:
    """Number of weights that a step reads: all but those of the embedding."""
    from cgconvert.formats.read import read

    g = read(str(source)).geometry
    return g.parameters - g.vocab_size * g.n_embd


def _data(folder: Path) -> int:
    """Bytes of the data files of an ONNX folder."""
    return sum(path.stat().st_size for path in (folder / "onnx").glob("*_data"))


def _embedding(folder: Path) -> int:
    """Bytes of the embedding, of which a step reads only one row."""
    from cgconvert.formats.onnx.reader import find_graph, stored_tensors

    tensors = stored_tensors(find_graph(folder))
    return sum(t.nbytes for name, t in tensors.items() if "embed_tokens" in name)


def _bandwidth(threads: int) -> float:
    """Bytes per second with which all threads together read 1 GB of memory."""
    import torch

    torch.set_num_threads(threads)
    numbers = torch.ones(1 << 28)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - began))
    return best


RATIOS = (
    ("ours int4, onnxruntime", "optimum float32", 3.5),
    ("ours int4, onnxruntime", "llama.cpp Q4_0", 1.0),
    ("ours int8, onnxruntime", "llama.cpp Q8_0", 1.0),
    ("ours float32, onnxruntime", "optimum float32", 1.2),
)
"""Targets for decoding at batch 1: how many times as fast as the second the first must be."""


def _write(
    name: str,
    threads: int,
    repeats: int,
    contenders: list[Contender],
    bandwidth: float,
    selected: bool,
) -> None:
    shape = machine()
    by_name = {c.name: c for c in contenders}
    rows = []
    for c in contenders:
        rates = {f"{phase} {b}": c.rate(phase, b) for phase in PHASES for b in BATCHES}
        step = c.rate("decode", 1)
        share = c.reads * step / bandwidth if step else None
        rows.append({"name": c.name, "tokens_per_second": rates, "bandwidth_share": share})
    ratios = []
    own = [
        (c.name, "llama.cpp Q4_K_M", 0.95) for c in contenders if c.name.startswith("llama.cpp,")
    ]
    for ours, peer, target in (*RATIOS, *own):
        if ours in by_name and peer in by_name:
            pairs = zip(
                by_name[ours].seconds["decode", 1], by_name[peer].seconds["decode", 1], strict=True
            )
            ratios.append((ours, peer, statistics.median(b / a for a, b in pairs), target))
    heads = [f"{phase}, batch {b}" for phase in PHASES for b in BATCHES]
    lines = [
        f"`{command()}`",
        "",
        f"{name}'s shape, random weights; {threads} threads; {shape['cores']} cores, "
        f"{shape['memory_gb']} GB, {shape['architecture']}; tokens per second (all sequences of a "
        f"batch together), medians of {repeats} interleaved repeats: a prompt of {PROMPT} tokens, "
        f"then {STEPS} steps. Reading memory: {bandwidth / 1e9:.0f} GB/s.",
        "",
        f"| | {' | '.join(heads)} | share of bandwidth |",
        "|---|" + "---|" * (len(heads) + 1),
        *(
            f"| {row['name']} | "
            + " | ".join(f"{v:.0f}" if v else "–" for v in row["tokens_per_second"].values())
            + f" | {row['bandwidth_share']:.0%} |"
            for row in rows
        ),
        "",
        "| decode, batch 1 | times | target |",
        "|---|---|---|",
        *(f"| {a} / {b} | {ratio:.2f} | {target} |" for a, b, ratio, target in ratios),
    ]
    result = {"command": command(), "model": name, "threads": threads, "repeats": repeats,
              "machine": shape, "bandwidth": bandwidth, "rows": rows,
              "ratios": [dict(zip(("one", "other", "times", "target"), r, strict=True))
                         for r in ratios]}  # fmt: skip
    store(f"decode-{name}{'-selected' if selected else ''}", result, lines)


if __name__ == "__main__":
    main()
