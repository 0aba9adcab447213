"""Reader of Jaxformer training checkpoints: `<step>/ckpt.json` and `<step>/model/0.npz`.

The archive holds the leaves of the parameter tree in the order jax.tree_flatten gives them
(salesforce/jaxformer, models/decoder/inter/checkpoint.py), layers stacked on axis 0, linear
weights as [in, out]. What comes out has the names and shapes of a Hugging Face state dict, as
jaxformer/hf/convert.py makes it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cgconvert.errors import InputError
from cgconvert.io.stored_zip import Member, members
from cgconvert.model.decoder import Geometry
from cgconvert.model.tensor import LazyTensor, RowBias, Stored
from cgconvert.model.tensor_names import CODEGEN

__all__ = ["LEAVES", "choose_step", "is_step", "leaves", "step_number", "tensors"]

LEAVES = (
    "embed.b", "embed.w",
    "ln_f_bias", "ln_f_weight", "head_bias", "head",
    "o", "qkv",
    "fc_in_bias", "fc_in", "fc_out_bias", "fc_out",
    "ln_bias", "ln_weight",
)  # fmt: skip
"""arr_0 ... arr_13: {embed, proj, transformer} with the keys of every level sorted."""

DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "|V2": torch.bfloat16,  # what numpy makes of a type it does not know
    "<V2": torch.bfloat16,
}
MAX_NPY_HEADER = 4096


def is_step(folder: Path) -> bool:
    """Whether this folder is one step of a training run."""
    return (folder / "model" / "0.npz").is_file()


def choose_step(folder: Path, step: int | None) -> Path:
    """The folder of a step: the one asked for, else the last.

    Raises InputError where there is none, or not that one.
    """
    if is_step(folder) and step in (None, step_number(folder)):
        return folder
    steps = {step_number(child): child for child in folder.iterdir() if is_step(child)}
    steps.pop(None, None)
    if not steps:
        raise InputError(f"{folder}: no step with model/0.npz in it")
    wanted = max(s for s in steps if s is not None) if step is None else step
    if wanted not in steps:
        known = ", ".join(str(s) for s in sorted(s for s in steps if s is not None))
        raise InputError(f"{folder}: has no step {wanted}; it has {known}")
    return steps[wanted]


def tensors(step: Path, geometry: Geometry) -> dict[str, LazyTensor]:
    """The state dict of one step, lazily. Raises InputError for an archive that does not fit."""
    path = step / "model" / "0.npz"
    stored = dict(zip(LEAVES, leaves(path), strict=True))
    shapes = _shapes(geometry)
    for name, leaf in stored.items():
        if leaf.shape != shapes[name]:
            raise InputError(
                f"{path}: {leaf.name} ({name}) is {list(leaf.shape)}, "
                f"the configuration says {list(shapes[name])}"
            )
    found: dict[str, LazyTensor] = {
        CODEGEN.model["wte"]: RowBias(stored["embed.w"], stored["embed.b"])
    }
    for part in ("ln_f_weight", "ln_f_bias", "head_bias"):
        found[CODEGEN.model[part]] = stored[part]
    found[CODEGEN.model["head"]] = stored["head"].T
    for part, name in CODEGEN.layer.items():
        for layer in range(geometry.n_layer):
            one = _layer(stored[part], layer, name.format(i=layer))
            found[name.format(i=layer)] = one.T if len(one.shape) == 2 else one
    return found


def _shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    n, d, f, v = g.n_layer, g.n_embd, g.n_inner, g.vocab_size
    return {
        "embed.b": (d,), "embed.w": (v, d),
        "ln_f_bias": (d,), "ln_f_weight": (d,), "head_bias": (v,), "head": (d, v),
        "o": (n, d, d), "qkv": (n, d, 3 * d),
        "fc_in_bias": (n, f), "fc_in": (n, d, f), "fc_out_bias": (n, d), "fc_out": (n, f, d),
        "ln_bias": (n, d), "ln_weight": (n, d),
    }  # fmt: skip


def _layer(leaf: Stored, layer: int, name: str) -> Stored:
    shape = leaf.shape[1:]
    offset = leaf.offset + layer * math.prod(shape) * leaf.dtype.itemsize
    return replace(leaf, offset=offset, shape=shape, name=name)


def leaves(path: Path) -> list[Stored]:
    """The archive's arrays as stored, in the order of `LEAVES`."""
    wanted = [f"arr_{i}.npy" for i in range(len(LEAVES))]
    found = members(path)
    if found.keys() != set(wanted):
        raise InputError(
            f"{path}: holds {len(found)} members; a Jaxformer model is arr_0 to "
            f"arr_{len(LEAVES) - 1}"
        )
    return [_array(found[name], path) for name in wanted]


def _array(member: Member, path: Path) -> Stored:
    with path.open("rb") as file:
        file.seek(member.offset)
        head = io.BytesIO(file.read(min(MAX_NPY_HEADER, member.size)))
    try:
        read: Callable[..., tuple[tuple[int, ...], bool, np.dtype]] = (
            np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(head) == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(head)
    except Exception as error:  # numpy parses it as Python source, which fails in many ways
        raise InputError(f"{path}: {member.name} is not an array: {error}") from error
    if dtype.str not in DTYPES or dtype.names or dtype.subdtype or fortran:
        raise InputError(
            f"{path}: {member.name} holds {dtype.str}{' in Fortran order' if fortran else ''}; "
            "expected float32, float16 or bfloat16 in C order"
        )
    torch_dtype = DTYPES[dtype.str]
    if len(shape) > 3 or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
        raise InputError(f"{path}: {member.name} has an impossible shape {list(shape)}")
    if head.tell() + math.prod(shape) * torch_dtype.itemsize != member.size:
        raise InputError(f"{path}: {member.name} is shorter or longer than its header says")
    return Stored(path, member.offset + head.tell(), tuple(shape), torch_dtype, member.name)


def step_number(folder: Path) -> int | None:
    """The step a folder stands for: its name's digits, as in `1000` or `step_1000`."""
    digits = "".join(c for c in folder.name if c in "0123456789")
    return int(digits) if digits else None
