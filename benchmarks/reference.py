"""Measure time and peak memory of verify's float16 reference, for a model of any size.

    python benchmarks/reference.py --name codegen-6B-mono

The checkpoint has the family's shape and is a sparse file of zeros: neither time nor memory depends
on the numbers, and 16B needs no disk. The number of tokens is that of verify: its prompts, a whole
context, and two continuations. `--tokens` shortens the context, to show what depends on it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from measuring import Job, as_rows, command, machine, store, work_folder

PROMPT_TOKENS = (1, 5, 25, 25, 60, 25, 30, 60, 50, 700)
"""Approximate lengths of verify's prompts in GPT-2's vocabulary; only their sum matters."""

NEW_TOKENS = 64


@click.command()
@click.option("--name", "names", multiple=True, default=("codegen-350M-mono", "codegen-6B-mono"),
              show_default=True)  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), default=2048, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the sparse files.")
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
def main(names: tuple[str, ...], tokens: int, work: Path | None, child: Path | None) -> None:
    """Run the reference over sparse checkpoints of the family's shapes."""
    if child is not None:
        _run_reference(child, tokens)
        return
    jobs, sizes = [], []
    with work_folder(work) as folder:
        for name in names:
            source = folder / name
            again = [sys.executable, __file__, "--child", str(source), "--tokens", str(tokens)]
            make = [sys.executable, "-m", "cgconvert.testing.synthetic", name, "--layout", "sparse"]
            subprocess.run([*make, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL)
            sizes.append((source / "model.safetensors").stat().st_size)
            jobs.append(Job(name, again, None))
            jobs[-1].measure()
    shape, rows = machine(), as_rows(jobs)
    count = sum(PROMPT_TOKENS) + tokens + 2 * NEW_TOKENS
    lines = [
        f"`{command()}`",
        "",
        f"{count} tokens, float32 arithmetic; {shape['cores']} cores, {shape['memory_gb']} GB, "
        f"{shape['architecture']}; one run each, process start included.",
        "",
        "| | checkpoint, GB | seconds | peak memory, GB |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {nbytes / 1e9:.1f} | {row['median']:.0f} "
            f"| {row['peak_bytes'] / 1e9:.2f} |"
            for row, nbytes in zip(rows, sizes, strict=True)
        ),
    ]
    store(
        "reference", {"command": command(), "tokens": count, "machine": shape, "rows": rows}, lines
    )


def _run_reference(source: Path, tokens: int) -> None:
    """Evaluate the reference once in this process."""
    from cgconvert.formats.read import read
    from cgconvert.verification.reference import Reference

    checkpoint = read(str(source))
    lengths = [*PROMPT_TOKENS, tokens, 2 * NEW_TOKENS]
    first = [0] * len(PROMPT_TOKENS) + [tokens - 17, NEW_TOKENS - 1]
    sequences = [[token % 1000 for token in range(length)] for length in lengths]
    reference = Reference(checkpoint.decoder)
    outputs = reference.distributions(sequences, checkpoint.tokenizer.size, first)
    assert sum(map(len, outputs)) == sum(lengths) - sum(first)


if __name__ == "__main__":
    main()
