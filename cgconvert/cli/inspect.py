"""`cgconvert inspect`."""

from __future__ import annotations

import json

import click

from cgconvert.cli.options import common, reading
from cgconvert.cli.text import printable
from cgconvert.formats.describe import Description, describe
from cgconvert.formats.read import ReadOptions
from cgconvert.io.progress import human_bytes

__all__ = ["command"]


@click.command("inspect")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="For a machine: schema 1.")
@reading
@common
def command(path: str, as_json: bool, options: ReadOptions) -> None:
    """Tell what PATH is: layout, geometry, tensors, types, sizes, tokenizer, origin.

    \b
    Example:
      cgconvert inspect codegen-tiny-mono
    """
    found = describe(path, options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(map(printable, _lines(found))))


def _lines(found: Description) -> list[str]:
    geometry, tokenizer = found.geometry, found.tokenizer
    runs = "-".join(map(str, tokenizer["white_space"])) or "none"
    sizes = ", ".join(f"{kind} {human_bytes(size)}" for kind, size in found.types.items())
    lines = [
        f"{found.path}: {found.name}, layout {found.layout}",
        "geometry    " + ", ".join(f"{name} {value}" for name, value in geometry.items()),
        f"parameters  {found.parameters:,}",
        f"tokenizer   {tokenizer['entries']} entries, end-of-text {tokenizer['end_of_text']}, "
        f"white-space runs {runs}, {tokenizer['padding_rows']} padding rows",
        f"tensors     {len(found.tensors)}: {sizes}",
        *_provenance(found),
        "",
    ]
    width = max((len(tensor.name) for tensor in found.tensors), default=0)
    for tensor in found.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        lines.append(f"{tensor.name:<{width}}  {tensor.type:<8} {shape:>14} {tensor.nbytes:>15,} B")
    return lines


def _provenance(found: Description) -> list[str]:
    told = found.provenance
    if "source" not in told:  # a checkpoint, not an artefact with its manifest
        return ["from        " + ", ".join(f"{k} {v}" for k, v in told.items())] if told else []
    source = told["source"]
    options = ", ".join(f"{k} {v}" for k, v in told["options"].items())
    return [
        f"from        {source['origin'].get('given', told['name'])} ({source['layout']}), "
        f"sha256 {source['sha256']}",
        f"made by     cgconvert {told['cgconvert']}, {told['format']} {told['type']}"
        + (f" ({options})" if options else ""),
    ]
