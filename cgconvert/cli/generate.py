"""`cgconvert generate`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert.cli.options import common, device, runtime
from cgconvert.formats.artefact import identify
from cgconvert.runtimes import open_runtime
from cgconvert.runtimes.generate import generate

__all__ = ["command"]


@click.command("generate")
@click.argument("artefact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N"
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the most likely token each time.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@runtime
@device("the runtime")
@common
def command(
    artefact: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    runtime: str | None,
    device: str,
) -> None:
    """Continue PROMPT with ARTEFACT, in the runtime people use for its format.

    \b
    Example:
      cgconvert generate out/codegen-tiny-mono/hf "def hello_world():"
    """
    found = identify(artefact)
    opened = open_runtime(found.format, found.path, device, name=runtime)
    try:
        ids = opened.tokenize(prompt)
        tokens = generate(
            opened,
            ids,
            max_new_tokens,
            allowed=opened.tokenizer_size,
            end_of_text=opened.end_of_text,
            temperature=temperature,
            seed=seed,
        )
        shown = opened.detokenize(ids)
        click.echo(shown, nl=False)
        for token in tokens:
            ids.append(token)
            text = opened.detokenize(ids)
            if not text.endswith("\ufffd"):  # half a character so far
                click.echo(text[len(shown) :], nl=False)
                shown = text
        click.echo(opened.detokenize(ids)[len(shown) :])
    finally:
        opened.close()
