"""Writers of every kind of artefact by name: functions from a checkpoint and a path to a plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint
from cgconvert.texts.text import read_text
from cgconvert.write.execute import execute
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.support import plans

__all__ = ["CALIBRATED", "WRITERS", "Writer", "copied", "write", "write_all"]

Writer = Callable[..., Plan]

WRITERS: Mapping[str, Writer] = {
    **{
        f"{prefix}-{dtype}": partial(plans.to_hf, dtype=dtype, layout=layout)
        for prefix, layout in (("hf", "codegen"), ("hf-gptj", "gptj"), ("hf-phi", "phi"))
        for dtype in ("float32", "float16", "bfloat16")
    },
    **{f"onnx-{dtype}": partial(plans.to_onnx, dtype=dtype) for dtype in ("float32", "float16")},
    **{f"onnx-int{bits}": partial(plans.to_onnx, bits=bits) for bits in (8, 4)},
    **{
        f"gguf-{type_}": partial(plans.to_gguf, type=type_)
        for type_ in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
    },
}


TEXT_CHARACTERS = 20_000
"""The length of the text that artefacts are calibrated on: enough for a small context."""


def _calibrated_gguf(checkpoint: Checkpoint, output: Path, type: str) -> Plan:  # noqa: A002
    """The plan of a calibrated file, whose steps stay beside it."""
    text = output.with_suffix(".py")
    documents = read_text("stdlib", "calibration").documents
    text.write_text("\n".join(documents)[:TEXT_CHARACTERS], encoding="utf-8")
    plan = plans.quantize(checkpoint, output, type=type, calibration=str(text))
    resolved: Plan = plan.resolve(output.with_suffix(".steps"), SilentProgress())
    return resolved


CALIBRATED: Mapping[str, Writer] = {"gguf-Q4_0-cal": partial(_calibrated_gguf, type="Q4_0")}
"""Writers of calibrated artefacts, which take seconds for each layer."""


def write(name: str, checkpoint: Checkpoint, folder: Path) -> Plan:
    """Write an artefact of a kind into a folder, over an earlier one."""
    output = folder / (f"{name}.gguf" if name.startswith("gguf") else name)
    plan = {**WRITERS, **CALIBRATED}[name](checkpoint, output)
    execute(plan, force=True)
    return plan


def write_all(names: Iterable[str], checkpoint: Checkpoint, folder: Path) -> dict[str, Plan]:
    """Write artefacts of these kinds into a folder; return their plans by name."""
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write(name, checkpoint, folder) for name in names}


def copied(plan: Plan, folder: Path) -> Path:
    """Copy an artefact and its manifest into a folder, to be changed there."""
    target = folder / plan.output.name
    if plan.is_folder:
        return Path(shutil.copytree(plan.output, target))
    shutil.copy(manifest_path(plan.output), manifest_path(target))
    return Path(shutil.copy(plan.output, target))
