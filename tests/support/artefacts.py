"""Writers of every kind of artefact by name: functions from a checkpoint and a path to a plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from cgconvert.model.decoder import Checkpoint
from cgconvert.write.execute import execute
from cgconvert.write.manifest import manifest_path
from cgconvert.write.plan import Plan
from tests.support import plans

__all__ = ["WRITERS", "Writer", "copied", "write", "write_all"]

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


def write(name: str, checkpoint: Checkpoint, folder: Path) -> Plan:
    """Write an artefact of a kind into a folder, over an earlier one."""
    output = folder / (f"{name}.gguf" if name.startswith("gguf") else name)
    plan = WRITERS[name](checkpoint, output)
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
