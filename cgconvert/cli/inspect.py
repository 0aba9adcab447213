"""`cgconvert inspect`."""

from __future__ import annotations

import json
import reprlib
from typing import Any

import click

from cgconvert.api.declarations import READ
from cgconvert.api.sources import inspect
from cgconvert.cli.options import click_options
from cgconvert.cli.text import printable
from cgconvert.formats.read import Description
from cgconvert.io.progress import format_bytes

__all__ = ["command"]

HELP = """\
Tell what PATH is: layout, geometry, tensors, types, sizes, tokenizer, origin.

\b
Example:
  cgconvert inspect codegen-tiny-mono
"""


def _run(path: str, as_json: bool, **reading: Any) -> None:
    description = inspect(path, **reading)
    if as_json:
        click.echo(json.dumps(description.as_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(map(printable, _lines(description))))


def _lines(description: Description) -> list[str]:
    geometry, tokenizer = description.geometry, description.tokenizer
    runs = "-".join(map(str, tokenizer["white_space"])) or "none"
    sizes = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in description.types.items())
    lines = [
        f"{description.path}: {description.name}, layout {description.layout}",
        "geometry    " + ", ".join(f"{name} {value}" for name, value in geometry.items()),
        f"parameters  {description.parameters:,}",
        f"tokenizer   {tokenizer['entries']} entries, end-of-text {tokenizer['end_of_text']}, "
        f"white-space runs {runs}, {tokenizer['padding_rows']} padding rows",
        *_generation(description),
        f"tensors     {len(description.tensors)}: {sizes}",
        *_provenance(description),
        *(f"note        {note}" for note in description.notes),
        "",
    ]
    width = max((len(tensor.name) for tensor in description.tensors), default=0)
    for tensor in description.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        lines.append(f"{tensor.name:<{width}}  {tensor.type:<8} {shape:>14} {tensor.nbytes:>15,} B")
    return lines


def _generation(description: Description) -> list[str]:
    """Lines about where generation stops and how it samples, if there is anything to say."""
    tokenizer, lines = description.tokenizer, []
    if len(tokenizer["stops_at"]) > 1:
        lines.append(f"stops at    {', '.join(map(str, tokenizer['stops_at']))}")
    if tokenizer["chat_templates"]:
        lines.append(f"chat        template {', '.join(tokenizer['chat_templates'])}")
    if description.generation:
        settings = ", ".join(
            f"{name} {reprlib.repr(value)}" for name, value in description.generation.items()
        )
        lines.append(f"generation  {settings}")
    return lines


def _provenance(description: Description) -> list[str]:
    """Lines about the place of a checkpoint, or about the source of an artefact."""
    provenance = description.provenance
    if "source" not in provenance:
        origin = ", ".join(f"{name} {_shown(value)}" for name, value in provenance.items())
        return [f"from        {origin}"] if provenance else []
    source = provenance["source"]
    options = ", ".join(f"{name} {value}" for name, value in provenance["options"].items())
    made_by = f"{provenance['cgconvert']}, {provenance['format']} {provenance['type']}"
    return [
        f"from        {source['origin'].get('given', provenance['name'])} ({source['layout']}), "
        f"sha256 {source['sha256']}",
        f"made by     cgconvert {made_by}" + (f" ({options})" if options else ""),
    ]


def _shown(value: object) -> str:
    """A value of a checkpoint's origin; several adapters stand beside each other."""
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


command = click.Command(
    "inspect",
    params=[
        click.Argument(["path"]),
        click.Option(["--json", "as_json"], is_flag=True, help="For a machine: schema 1."),
        *click_options(*READ),
    ],
    callback=_run,
    help=HELP,
)
