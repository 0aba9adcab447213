"""`cgconvert inspect`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

import click

from cgconvert.api.sources import inspect
from cgconvert.cli.output import columns, progress_of_command
from cgconvert.escaping import json_escaped, printable
from cgconvert.formats.read import Description
from cgconvert.io.progress import format_bytes, shown_while_reading
from cgconvert.io.terminal import wrapped_fields
from cgconvert.write.promise import PROMISE

__all__ = ["run"]

LONG_OPTIONS = ("types", "adjusted", "expected_kl", PROMISE)
"""Options of a manifest that are not shown in the line of its options."""

NAME_COLUMNS = 11
"""Columns of the names of what is said."""


def run(path: str, as_json: bool, tensors: bool, **reading: Any) -> None:
    """Print what the headers at `path` contain."""
    with shown_while_reading(progress_of_command()):
        description = inspect(path, **reading)
    if as_json:
        text = json.dumps(description.as_dict(), indent=2, ensure_ascii=False)
        click.echo(json_escaped(text))
        return
    if tensors:
        click.echo("\n".join([*map(printable, _tensor_lines(description)), ""]))
    fields = [(f"{name:<{NAME_COLUMNS}}", printable(text)) for name, text in _summary(description)]
    click.echo("\n".join(wrapped_fields(fields, columns())))


def _tensor_lines(description: Description) -> list[str]:
    """Write a line for each tensor: name, type, shape, bytes."""
    width = max((len(tensor.name) for tensor in description.tensors), default=0)
    return [
        f"{tensor.name:<{width}}  {tensor.type:<8} "
        f"{'x'.join(map(str, tensor.shape)) or 'scalar':>14} {tensor.nbytes:>15,} B"
        for tensor in description.tensors
    ]


def _summary(description: Description) -> list[tuple[str, str]]:
    """Return names and texts of all that is to be said but for the tensors."""
    geometry, tokenizer = description.geometry, description.tokenizer
    runs = "-".join(map(str, tokenizer["white_space"])) or "none"
    sizes = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in description.types.items())
    return [
        ("path", description.path),
        ("model", f"{description.name}, layout {description.layout}"),
        ("geometry", ", ".join(f"{name} {value}" for name, value in geometry.items())),
        ("parameters", f"{description.parameters:,}"),
        (
            "tokenizer",
            f"{tokenizer['entries']} entries, end-of-text {tokenizer['end_of_text']}, "
            f"white-space runs {runs}, {tokenizer['padding_rows']} padding rows",
        ),
        *_generation(description),
        *_provenance(description),
        *(("note", note) for note in description.notes),
        ("tensors", f"{len(description.tensors)}: {sizes}"),
        ("size", format_bytes(sum(description.types.values()))),
    ]


def _generation(description: Description) -> list[tuple[str, str]]:
    """Fields about where generation stops and how it samples, if there is anything to say."""
    tokenizer, fields = description.tokenizer, list[tuple[str, str]]()
    if len(tokenizer["stops_at"]) > 1:
        fields.append(("stops at", ", ".join(map(str, tokenizer["stops_at"]))))
    if tokenizer["chat_templates"]:
        fields.append(("chat", f"template {', '.join(tokenizer['chat_templates'])}"))
    if description.generation:
        settings = ", ".join(
            f"{name} {reprlib.repr(value)}" for name, value in description.generation.items()
        )
        fields.append(("generation", settings))
    return fields


def _provenance(description: Description) -> list[tuple[str, str]]:
    """Fields about the place of a checkpoint, or about the source of an artefact."""
    provenance = description.provenance
    if "source" not in provenance:
        origin = ", ".join(f"{name} {_shown(value)}" for name, value in provenance.items())
        return [("from", origin)] if provenance else []
    source = provenance["source"]
    recorded: Mapping[str, Any] = provenance["options"]
    # The types of all matrices and the tokens of a promise would fill pages; --json has them.
    named = {name: recorded[name] for name in recorded if name not in LONG_OPTIONS}
    calibration = recorded.get("calibration")
    if isinstance(calibration, dict):
        named["calibration"] = calibration.get("text")
    options = ", ".join(f"{name} {value}" for name, value in named.items())
    made_by = f"{provenance['cgconvert']}, {provenance['format']} {provenance['type']}"
    return [
        (
            "from",
            f"{source['origin'].get('given', provenance['name'])} ({source['layout']}), "
            f"sha256 {source['sha256']}",
        ),
        ("made by", f"cgconvert {made_by}" + (f" ({options})" if options else "")),
        *_promise(recorded.get(PROMISE)),
    ]


def _promise(entry: object) -> list[tuple[str, str]]:
    """The field about the loss that the quantizer measured, if it did."""
    if not isinstance(entry, dict) or not {"kl", "standard_error", "tokens"} <= entry.keys():
        return []
    return [
        (
            "loss",
            f"{entry['kl']} ± {entry['standard_error']} nats a token, measured on "
            f"{entry['tokens']} tokens when it was calibrated",
        )
    ]


def _shown(value: object) -> str:
    """A value of a checkpoint's origin; several adapters stand beside each other."""
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
