"""`cgconvert verify`."""

from __future__ import annotations

from pathlib import Path

import click

from cgconvert.artefact import OUT, find_all
from cgconvert.checkpoint.read import ReadOptions, read
from cgconvert.cli.options import common, device, reading
from cgconvert.cli.verifying import verify_all
from cgconvert.errors import InputError, UsageError

__all__ = ["command"]


@click.command("verify")
@click.argument("artefact", required=False, type=click.Path(path_type=Path))
@click.option(
    "--reference",
    help="The source to compare with; without it the one its manifest names.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the verdict to a file too: .json, .xml (JUnit), .html or .txt.",
)
@device
@reading
@common
def command(
    artefact: Path | None,
    reference: str | None,
    report: Path | None,
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
    checkpoint = read(reference, options) if reference else None
    verify_all(paths, reference=checkpoint, options=options, device=device, report=report)
