"""Carrying out a plan: `execute`."""

from __future__ import annotations

from cgconvert.api.progress import ProgressOption, progress_for
from cgconvert.api.results import Result
from cgconvert.write.execute import execute as write_plan
from cgconvert.write.plan import LazyPlan

__all__ = ["execute"]


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    progress: ProgressOption = None,
) -> Result:
    """Carry out a plan. The artefact appears at its path complete, or not at all.

    Args:
        plan: What `plan` returned.
        force: Replace an existing output, once the new one is complete.
        resume: Continue what an interrupted run has written, and keep it if this one is too.
        allow_nonfinite: Keep NaN, infinities and what overflows to them; never in quantized types.
        progress: "auto" or True for a bar, an object with `step`, `advance` and `finish` (see
            `cgconvert.io.progress.Progress`), None for silence.

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
    manifest = write_plan(
        plan,
        force=force,
        resume=resume,
        allow_nonfinite=allow_nonfinite,
        progress=progress_for(progress),
    )
    return Result(plan.output, manifest)
