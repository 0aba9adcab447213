"""Carry out a plan: `execute`, and the `Result` it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.api.caching import checked_cache
from cgconvert.api.declarations import WRITE
from cgconvert.api.progress import ProgressBar, ProgressOption, progress_for
from cgconvert.formats.registry import FORMATS, load
from cgconvert.options import accepted_values
from cgconvert.write.execute import execute as write_plan
from cgconvert.write.manifest import Manifest
from cgconvert.write.plan import LazyPlan

__all__ = ["ProgressBar", "ProgressOption", "Result", "execute", "progress_for"]


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    keep: bool = True,
    allow_nonfinite: bool = False,
    cache: bool = True,
    progress: ProgressOption = None,
) -> Result:
    """Carry out a plan. The artefact appears at its path complete, or not at all.

    Args:
        plan: What `plan` returned.
        force: Replace an earlier artefact of cgconvert's, once the new one is complete. What holds
            anything else is never replaced.
        keep: Go on with what an interrupted run of this plan has left, and leave what is complete
            if this run is interrupted or the disk is full. False drops both.
        allow_nonfinite: Keep NaN, infinities and what overflows to them; never in quantized types.
        cache: Whether to use cgconvert's cache, which remembers hashes of large files.
        progress: "auto" for a line in a terminal or a bar in a notebook; True for that, and for
            lines where there is neither; an object with `step`, `advance` and `finish` (see
            `cgconvert.io.progress.Progress`); None for silence.

    Returns:
        The artefact's path and manifest.

    Raises:
        UsageError: The output exists and `force` is not given, or it is the input.
        InputError: Numbers of the source cannot be stored, or it is not what its manifest says.
        OutputError: Writing failed, or there is not enough space.

    Example:
        >>> plan = cgconvert.plan("codegen-tiny-mono", "to-gguf", "model.gguf", type="Q8_0")
        >>> cgconvert.execute(plan).bytes == plan.nbytes
        True
    """
    writing = accepted_values(
        WRITE, {"force": force, "keep": keep, "allow_nonfinite": allow_nonfinite}
    )
    with checked_cache(cache):
        manifest = write_plan(plan, progress=progress_for(progress), **writing)
    if plan.format in FORMATS:
        load(plan.format).after_writing(plan.source, plan.output)
    return Result(plan.output, manifest)


@dataclass(frozen=True)
class Result:
    """An artefact that was written.

    Attributes:
        path: The folder, or the one file of a GGUF.
        manifest: What it was made from, with which options, and the SHA-256 of every file; the
            same is written to `cgconvert.json` in the folder or beside the file.
    """

    path: Path
    manifest: Manifest

    @property
    def format(self) -> str:
        """Name of the format: huggingface, onnx, gguf or one that was registered."""
        return self.manifest.format

    @property
    def type(self) -> str:
        """Stored type of the matrices, such as float16, int4 or Q4_K_M."""
        return self.manifest.type

    @property
    def types(self) -> Mapping[str, str]:
        """Type chosen for each matrix, by the name of its tensor; empty where all have `type`."""
        types: Mapping[str, str] = self.manifest.options.get("types", {})
        return types

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the conversion as the manifest has them."""
        return self.manifest.options

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the source and of the artefact, such as what the format cannot hold."""
        return tuple(self.manifest.notes)

    @property
    def bytes(self) -> int:
        """Bytes of all files, the manifest apart."""
        return sum(int(entry["bytes"]) for entry in self.manifest.files.values())

    def __fspath__(self) -> str:
        """Return the path: a result can be passed wherever a path can, as in `verify(result)`."""
        return str(self.path)
