"""The format jaxformer, which is only read: training checkpoints, `<step>/model/0.npz`.

The archive holds the leaves of the parameter tree in the order jax.tree_flatten gives them
(salesforce/jaxformer, models/decoder/inter/checkpoint.py), layers stacked on axis 0, linear
weights as [in, out]. They are read as a state dict with Hugging Face's names and shapes, which
jaxformer/hf/convert.py creates too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgconvert.errors import InputError
from cgconvert.formats.base import Headers, SourceFormat, tensor_lines
from cgconvert.formats.huggingface.config import geometry, integer
from cgconvert.formats.read_options import ReadOptions, complete, read_tokenizer
from cgconvert.io.stored_zip import Member, read_members
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.family import TPU_CORES
from cgconvert.model.tensor import LazyTensor, RowBias, StoredTensor
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.sources.resolve import Source

__all__ = ["LEAVES", "Jaxformer", "choose_step", "geometry_of", "leaves", "tensors"]

LEAVES = (
    "embed.b", "embed.w",
    "ln_f_bias", "ln_f_weight", "head_bias", "head",
    "o", "qkv",
    "fc_in_bias", "fc_in", "fc_out_bias", "fc_out",
    "ln_bias", "ln_weight",
)  # fmt: skip
"""The leaves arr_0 to arr_13: the tree {embed, proj, transformer}, keys of each level sorted."""

DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "|V2": torch.bfloat16,  # numpy stores a type that it does not know as raw bytes
    "<V2": torch.bfloat16,
}
MAX_NPY_HEADER = 4096  # bytes; numpy writes 128

ARCHIVE = Path("model/0.npz")


class Jaxformer(SourceFormat):
    """A folder of training steps, or one step of it."""

    name = "jaxformer"
    has_steps = True

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and (_is_step(path) or any(map(_is_step, path.iterdir())))

    def read(self, source: Source, options: ReadOptions) -> Checkpoint:
        path = source.path
        step = choose_step(path, options.step)
        config_path = options.config or _training_config(path, step)
        config = read_json(config_path)
        sizes = geometry_of(config, config_path, options.groups)
        state = tensors(step, sizes)
        tokenizer, tokenizer_files = read_tokenizer(path, options, source.name, config)
        return Checkpoint(
            name=path.resolve().parent.name if source.name.isdigit() else source.name,
            path=step,
            layout=self.name,
            config=config,
            decoder=CODEGEN.decoder(sizes, state, str(step)),
            tokenizer=tokenizer,
            files=(step / ARCHIVE, config_path, *tokenizer_files),
            origin={**source.origin, "step": _step_number(step)},
        )

    def describe(self, location: str, source: Source, options: ReadOptions) -> Headers:
        checkpoint = complete(self.read(source, options), location, source, options)
        return Headers(
            checkpoint.name,
            checkpoint.layout,
            checkpoint.geometry,
            checkpoint.tokenizer,
            tensor_lines(leaves(checkpoint.path / ARCHIVE)),
            checkpoint.origin,
        )


def _training_config(folder: Path, step: Path) -> Path:
    """Find the training configuration: a JSON file with model_layers in the source or its step."""
    configs = [
        path
        for parent in dict.fromkeys((folder, step, step.parent))
        for path in sorted(parent.glob("*.json"))
        if "model_layers" in read_json(path)
    ]
    if not configs:
        raise InputError(
            f"{folder}: no Jaxformer training configuration (a .json with model_layers) in it; "
            "give it with `config`"
        )
    return configs[0]


def geometry_of(config: Mapping[str, Any], config_path: Path, mp_num: int | None) -> Geometry:
    """Read the geometry in a training configuration (config/*.json of salesforce/jaxformer).

    `mp_num` is the number of groups in qkv_proj; if it is None, it is the number of cores of the
    TPU that the configuration names. Raises InputError if a size is missing or wrong.
    """
    if mp_num is None:
        version = config.get("tpu_version")
        if not isinstance(version, int) or version not in TPU_CORES:
            raise InputError(
                f"{config_path}: tpu_version is {version!r}, which does not tell the number of "
                'groups in qkv_proj; give it with `mp_num`, or `mp_num="auto"` to measure it'
            )
        mp_num = TPU_CORES[version]
    return geometry(
        config_path,
        n_layer=integer(config, config_path, "model_layers"),
        n_embd=integer(config, config_path, "model_dim"),
        n_head=integer(config, config_path, "model_heads"),
        rotary_dim=integer(config, config_path, "model_pe_rotary_dims"),
        n_positions=integer(config, config_path, "model_seq_len"),
        vocab_size=integer(config, config_path, "model_vocab_size"),
        mp_num=mp_num,
    )


def _is_step(folder: Path) -> bool:
    """Return whether this folder is one step of a training run."""
    return (folder / ARCHIVE).is_file()


def choose_step(folder: Path, step: int | None) -> Path:
    """Return the folder of step `step`, or of the last step if `step` is None.

    Raises InputError if there is no such step.
    """
    if _is_step(folder) and step in (None, _step_number(folder)):
        return folder
    steps = {_step_number(child): child for child in folder.iterdir() if _is_step(child)}
    steps.pop(None, None)
    if not steps:
        raise InputError(f"{folder}: no step with model/0.npz in it")
    chosen = max(number for number in steps if number is not None) if step is None else step
    if chosen not in steps:
        known = ", ".join(str(n) for n in sorted(n for n in steps if n is not None))
        raise InputError(f"{folder}: has no step {chosen}; it has {known}")
    return steps[chosen]


def tensors(step: Path, g: Geometry) -> dict[str, LazyTensor]:
    """Read the state dict of one step, lazily. Raises InputError if a shape does not fit."""
    path = step / ARCHIVE
    stored = dict(zip(LEAVES, leaves(path), strict=True))
    shapes = _shapes(g)
    for name, leaf in stored.items():
        if leaf.shape != shapes[name]:
            raise InputError(
                f"{path}: {leaf.name} ({name}) is {list(leaf.shape)}, "
                f"the configuration says {list(shapes[name])}"
            )
    state: dict[str, LazyTensor] = {
        CODEGEN.model["wte"]: RowBias(stored["embed.w"], stored["embed.b"])
    }
    for part in ("ln_f_weight", "ln_f_bias", "head_bias"):
        state[CODEGEN.model[part]] = stored[part]
    state[CODEGEN.model["head"]] = stored["head"].T
    for part, name in CODEGEN.layer.items():
        for layer in range(g.n_layer):
            tensor = _layer(stored[part], layer, name.format(i=layer))
            state[name.format(i=layer)] = tensor.T if len(tensor.shape) == 2 else tensor
    return state


def _shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    """Return the shape that each leaf must have."""
    n, d, f, v = g.n_layer, g.n_embd, g.n_inner, g.vocab_size
    return {
        "embed.b": (d,), "embed.w": (v, d),
        "ln_f_bias": (d,), "ln_f_weight": (d,), "head_bias": (v,), "head": (d, v),
        "o": (n, d, d), "qkv": (n, d, 3 * d),
        "fc_in_bias": (n, f), "fc_in": (n, d, f), "fc_out_bias": (n, d), "fc_out": (n, f, d),
        "ln_bias": (n, d), "ln_weight": (n, d),
    }  # fmt: skip


def _layer(leaf: StoredTensor, layer: int, name: str) -> StoredTensor:
    """Return one layer of a leaf, in which all layers are stacked on axis 0."""
    shape = leaf.shape[1:]
    offset = leaf.offset + layer * math.prod(shape) * leaf.dtype.itemsize
    return replace(leaf, offset=offset, shape=shape, name=name)


def leaves(path: Path) -> list[StoredTensor]:
    """Return the archive's arrays, lazily, in the order of `LEAVES`. Raises InputError."""
    names = [f"arr_{i}.npy" for i in range(len(LEAVES))]
    arrays = read_members(path)
    if arrays.keys() != set(names):
        raise InputError(
            f"{path}: holds {len(arrays)} members; a Jaxformer model is arr_0 to "
            f"arr_{len(LEAVES) - 1}"
        )
    return [_array(arrays[name], path) for name in names]


def _array(member: Member, path: Path) -> StoredTensor:
    """Read the .npy header of an archive member. Raises InputError if it is not such an array."""
    with path.open("rb") as file:
        file.seek(member.offset)
        header = io.BytesIO(file.read(min(MAX_NPY_HEADER, member.size)))
    try:
        read: Callable[..., tuple[tuple[int, ...], bool, np.dtype]] = (
            np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(header) == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
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
    if header.tell() + math.prod(shape) * torch_dtype.itemsize != member.size:
        raise InputError(f"{path}: {member.name} is shorter or longer than its header says")
    return StoredTensor(path, member.offset + header.tell(), tuple(shape), torch_dtype, member.name)


def _step_number(folder: Path) -> int | None:
    """Return the digits of a folder's name as a number, as in `1000` or `step_1000`."""
    digits = "".join(c for c in folder.name if c in "0123456789")
    return int(digits) if digits else None
