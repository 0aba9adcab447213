"""Reading a model: `load` and `inspect`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cgconvert.api.caching import checked_cache
from cgconvert.api.declarations import READ
from cgconvert.api.progress import ProgressOption, progress_for
from cgconvert.errors import UsageError
from cgconvert.formats.qkv_groups import with_doubtful_groups_warned
from cgconvert.formats.read import Description, ReadOptions, describe, read
from cgconvert.io.progress import shown_while_reading
from cgconvert.model.decoder import Checkpoint
from cgconvert.options import AUTO, accepted_values, shown

__all__ = ["Source", "check_name", "check_type", "inspect", "load", "named", "read_options"]

MAX_NAME_BYTES = 120
"""The longest name of a model. A type stands behind it in names of files, of 255 bytes at most."""

Source = str | Path | Checkpoint
"""What names a model: a path, a name of the family, a Hub id, or a model that was loaded."""


def load(
    source: Source,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | Literal["auto"] | None = None,
    step: int | None = None,
    revision: str | None = None,
    adapter: str | Path | Sequence[str | Path] = (),
    cache: bool = True,
    progress: ProgressOption = None,
) -> Checkpoint:
    """Open a CodeGen model. Only headers are read; weights are read when they are converted.

    With `mp_num`, text is measured, which reads all weights once.

    Args:
        source: A folder, file or release tarball, an artefact of cgconvert, a name of the family
            (`codegen-350M-mono`), a Hub id, or the built-in `codegen-tiny-mono`. A model that was
            loaded already is returned as it is.
        tokenizer: Folder with tokenizer.json, or vocab and merges, to use instead of the source's.
        config: Configuration file to use instead of the source's.
        mp_num: Number of groups in qkv_proj, where neither configuration nor family tells; one
            that text contradicts gets a warning among the notes. "auto" measures it, and is
            refused where text cannot tell.
        step: Step of a Jaxformer run; the last unless given.
        revision: Branch, tag or commit on the Hub.
        adapter: Folder with a LoRA adapter of peft, or several, merged in this order into the
            weights. A folder with an adapter only may also be the source: it names its base.
        cache: Whether to use cgconvert's cache. Without it a tarball is unpacked into a temporary
            folder, which is removed when the process ends.
        progress: See `execute`; for downloads, archives and measuring.

    Returns:
        The checkpoint: `name`, `geometry`, `tokenizer`, `layout` and lazy tensors in `decoder`.

    Raises:
        InputError: The source is missing, broken or not a CodeGen.
        UsageError: An option does not fit the source.

    Example:
        >>> model = cgconvert.load("codegen-tiny-mono")
        >>> model.geometry.n_layer, model.geometry.n_embd, model.tokenizer.eos_token_id
        (6, 256, 3967)
    """
    check_type("source", source, str, Path, Checkpoint)
    options = read_options(
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
    )
    if not isinstance(source, Checkpoint):
        is_shown = progress is not None
        reading = shown_while_reading(progress_for(progress)) if is_shown else nullcontext()
        with reading, checked_cache(cache):
            checkpoint = read(str(source), options)
            is_user_number = options.mp_num is not None and options.mp_num != AUTO
            return with_doubtful_groups_warned(checkpoint) if is_user_number else checkpoint
    if options != ReadOptions():
        raise UsageError(f"{source.name} is loaded already; give reading options to `load`")
    return source


def inspect(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | Literal["auto"] | None = None,
    step: int | None = None,
    revision: str | None = None,
    adapter: str | Path | Sequence[str | Path] = (),
    cache: bool = True,
) -> Description:
    """Describe a model or an artefact, a quantized one too, from its headers.

    Args:
        path: What to describe; see `load`.
        tokenizer: See `load`.
        config: See `load`.
        mp_num: See `load`.
        step: See `load`.
        revision: See `load`.
        adapter: See `load`.
        cache: See `load`.

    Returns:
        Layout, geometry, number of parameters, tokenizer, stored bytes by type, every tensor with
        its shape in elements and its size in bytes, and where the model came from. `as_dict()`
        is what `cgconvert inspect --json` prints.

    Raises:
        InputError: Nothing known is there, or it is broken.

    Example:
        >>> description = cgconvert.inspect("codegen-tiny-mono")
        >>> description.layout, description.parameters, len(description.tensors)
        ('safetensors', 6831104, 53)
    """
    check_type("path", path, str, Path)
    options = read_options(
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
    )
    with checked_cache(cache):
        return describe(str(path), options)


def named(checkpoint: Checkpoint, name: str | None) -> Checkpoint:
    """Give a model the name that the user chose, None for none."""
    if name is None or name == checkpoint.name:
        return checkpoint
    return replace(checkpoint, name=name, original_name=checkpoint.known_as)


def check_type(argument: str, value: object, *types: type) -> None:
    """Raise UsageError unless the value of a function's argument has one of these types.

    What has a path, as a `Result` has, stands for a Path.
    """
    if not (isinstance(value, types) or (Path in types and isinstance(value, os.PathLike))):
        names = " or ".join(type_.__name__ for type_ in types)
        raise UsageError(f"{argument}: {shown(value)} is not a {names}")


def check_name(name: str | None) -> None:
    """Raise UsageError for a model's name that cannot be a part of a path on every system."""
    if name is not None and (fault := _fault_of_name(name)):
        raise UsageError(f"the model's `name` {fault}; write letters, digits, - _ and .")


def _fault_of_name(name: str) -> str:
    """Say why a text cannot be a model's name, which is a part of paths; "" if it can be one."""
    if not name.strip():
        return "is empty"
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"has more than {MAX_NAME_BYTES} bytes"
    refused = sorted({c for c in name if c in '/\\:*?"<>|' or not c.isprintable()})
    if refused:
        return f"has {', '.join(map(repr, refused))}"
    if name[0] in ".- " or name[-1] in ". ":
        return "begins or ends with a dot, a space or a hyphen"
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE):
        return "is the name of a device on Windows"
    return ""


def read_options(**values: Any) -> ReadOptions:
    """Reading options from the arguments of a function of the API.

    Raises UsageError for a value that an option does not take.
    """
    return ReadOptions(**accepted_values(READ, values))
