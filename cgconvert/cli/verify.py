"""`cgconvert verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cgconvert.cli.options import common, device, reading, runtime
from cgconvert.cli.verifying import verify_all
from cgconvert.errors import InputError, UsageError
from cgconvert.formats.artefact import OUT, find_all
from cgconvert.formats.read import ReadOptions, read
from cgconvert.texts.text import STDLIB, read_text
from cgconvert.verify.prompts import TEXT_TOKENS
from cgconvert.verify.thresholds import known_bounds, parse_bound

__all__ = ["command"]


class _Threshold(click.ParamType):
    name = "check=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float | None]:
        check, equals, bound = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r}: write CHECK=VALUE, as in logits.kl_mean=0.05", param, ctx)
        try:
            known = sorted(set().union(*known_bounds().values()))
            return check, parse_bound(check, bound, known)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("verify")
@click.argument("artefact", required=False, type=click.Path(path_type=Path))
@click.option(
    "--reference",
    help="The source to compare with; without it the one its manifest names.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE",
    help=f"Compare logits on this text too; {STDLIB} for files of Python's own. Repeatable.",
)
@click.option(
    "--text-tokens",
    type=click.IntRange(2),
    default=TEXT_TOKENS,
    show_default=True,
    metavar="N",
    help="Use the first N tokens of each text.",
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    type=_Threshold(),
    metavar="CHECK=VALUE",
    help="Another bound, as in logits.kl_mean=0.05; none to only report. Repeatable.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the verdict to a file too: .json, .xml (JUnit), .html or .txt. Repeatable.",
)
@runtime
@device("the runtime")
@reading
@common
def command(
    artefact: Path | None,
    reference: str | None,
    texts: tuple[str, ...],
    text_tokens: int,
    thresholds: tuple[tuple[str, float | None], ...],
    reports: tuple[Path, ...],
    runtime: str | None,
    device: str,
    options: ReadOptions,
) -> None:
    """Run ARTEFACT in its real runtime and hold it against the fp16 reference.

    Without ARTEFACT: all there are under ./out. Leaves with 4 where a check fails.

    \b
    Example:
      cgconvert verify out/codegen-350M-mono/onnx --report verdict.json
    """
    paths = [a.path for a in find_all(artefact or OUT)]
    if artefact is not None and not paths:
        if artefact.is_dir() and not any(artefact.iterdir()):
            raise InputError(f"{artefact}: is empty")
        paths = [artefact]  # a file, or something that identify() will name
    if not paths:
        raise UsageError(
            f"nothing to verify under ./{OUT}; type the artefact: cgconvert verify PATH"
        )
    read_texts = [read_text(given) for given in dict.fromkeys(texts)]
    checkpoint = read(reference, options) if reference else None
    verify_all(
        paths,
        reference=checkpoint,
        options=options,
        device=device,
        runtime=runtime,
        texts=read_texts,
        text_tokens=text_tokens,
        reports=reports,
        thresholds={kind: dict(thresholds) for kind in known_bounds()},
    )
