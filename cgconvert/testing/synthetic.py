"""Checkpoints of any geometry with random weights, in every original layout.

For tests and benchmarks:

    python -m cgconvert.testing.synthetic codegen-350M-mono --layout tarball -o checkpoints --seed 0
    python -m cgconvert.testing.synthetic gpt-j-6b --layers 1 --layout torch-sharded

Random weights say nothing about quality; they have the real shapes, types and file structure.
"""

from __future__ import annotations

import json
import math
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from cgconvert import embedded
from cgconvert.errors import UsageError
from cgconvert.formats.jaxformer.reader import LEAVES
from cgconvert.model import family
from cgconvert.model.decoder import Geometry, packed_qkv_row_indices, qkv_row_indices
from cgconvert.model.tensor_names import CODEGEN, GPTJ, TensorNames
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.testing.configurations import (
    codegen2_config,
    codegen_config,
    gptj_config,
    moss_config,
)

__all__ = [
    "LAYOUTS",
    "RandomState",
    "regroup",
    "tensor_shapes",
    "unpacked",
    "write",
]

State = Mapping[str, torch.Tensor]


class RandomState(Mapping[str, torch.Tensor]):
    """A state dict that makes each tensor when it is read, from the seed and the tensor's name.

    `sharpness` scales q and k: at 1 the attention is nearly uniform, at 8 it looks at few tokens,
    which makes rotary mistakes show.
    """

    def __init__(
        self,
        geometry: Geometry,
        seed: int = 0,
        dtype: torch.dtype = torch.float16,
        sharpness: float = 1.0,
    ) -> None:
        self.geometry, self.seed, self.dtype, self.sharpness = geometry, seed, dtype, sharpness
        self.shapes = tensor_shapes(geometry)

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        values = torch.randn(shape, generator=generator) * 0.02
        if "ln_" in name:
            values = values * 5 + (1.0 if name.endswith("weight") else 0.0)
        if "qkv_proj" in name and self.sharpness != 1.0:
            query, key, _ = qkv_row_indices(self.geometry.n_embd, self.geometry.mp_num)
            values[np.concatenate([query, key])] *= self.sharpness
        if "q_proj" in name or "k_proj" in name:
            values *= self.sharpness
        if "ln_" not in name:
            values = values.clamp(-0.45, 0.45)
        return values.to(self.dtype) + 0.0  # no -0.0: Jaxformer's sum of two cannot give it

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def tensor_shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict, in the order torch gives them.

    It is CodeGen's, or GPT-J's if the geometry has no groups.
    """
    d, names = g.n_embd, _names(g)
    shapes: dict[str, tuple[int, ...]] = {names.model["wte"]: (g.vocab_size, d)}
    layer_shapes: dict[str, tuple[int, ...]] = {
        "ln_weight": (d,), "ln_bias": (d,), "qkv": (3 * d, d), "q": (d, d), "k": (d, d),
        "v": (d, d), "o": (d, d), "fc_in": (g.n_inner, d), "fc_in_bias": (g.n_inner,),
        "fc_out": (d, g.n_inner), "fc_out_bias": (d,),
    }  # fmt: skip
    for layer in range(g.n_layer):
        shapes |= {name.format(i=layer): layer_shapes[part] for part, name in names.layer.items()}
    shapes |= {names.model[part]: (d,) for part in ("ln_f_weight", "ln_f_bias")}
    return shapes | {
        names.model["head"]: (g.vocab_size, d),
        names.model["head_bias"]: (g.vocab_size,),
    }


def _names(g: Geometry) -> TensorNames:
    """Return CodeGen's names, or GPT-J's if the geometry has no groups."""
    return CODEGEN if g.mp_num else GPTJ


def write(
    layout: str, state: State, geometry: Geometry, folder: Path, name: str, tokenizer: Path | None
) -> Path:
    """Write a checkpoint called `name` into `folder`; returns what to give as SOURCE.

    `state` has Hugging Face names; `tokenizer` is a folder whose files are copied (the release
    tarball has none).
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    target = folder / name
    target.mkdir(parents=True)
    return LAYOUTS[layout](state, geometry, target, tokenizer)


def _torch(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    _hub_files(state, g, target, tokenizer)
    torch.save(dict(state) | _buffers(g), target / "pytorch_model.bin")
    return target


def _torch_sharded(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    _hub_files(state, g, target, tokenizer)
    _sharded(state, target, "pytorch_model-{:05}-of-00002.bin", "pytorch_model.bin", torch.save)
    return target


def _safetensors(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    from safetensors.torch import save_file

    _hub_files(state, g, target, tokenizer)
    save_file(dict(state), target / "model.safetensors", metadata={"format": "pt"})
    return target


def _sparse(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    """Write only zeros, as a sparse file: for benchmarks of time and memory at any size."""
    _hub_files(state, g, target, tokenizer)
    _empty_safetensors(g, target)
    return target


def _streamed(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    """Write the layout `safetensors` with one tensor in memory at a time, for very large models."""
    _hub_files(state, g, target, tokenizer)
    offsets = _empty_safetensors(g, target)
    with (target / "model.safetensors").open("r+b") as file:
        for name, offset in offsets.items():
            file.seek(offset)
            file.write(state[name].half().numpy().data)
    return target


def _empty_safetensors(g: Geometry, target: Path) -> dict[str, int]:
    """Write a sparse model.safetensors of float16 zeros; return the byte offset of each tensor."""
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, shape in tensor_shapes(g).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (target / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}


def _safetensors_sharded(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    from safetensors.torch import save_file

    _hub_files(state, g, target, tokenizer)
    _sharded(state, target, "model-{:05}-of-00002.safetensors", "model.safetensors", save_file)
    return target


def _gptj(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    """Write shards for torch with the buffers of old transformers, as GPT-J was published."""
    if g.mp_num:
        state, g = unpacked(state, g)
    return _torch_sharded({**state, **_buffers(g, mask_name="bias")}, g, target, tokenizer)


def _moss(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    """Write shards for torch with MOSS's configuration."""
    state, g = regroup(state, g, family.MP_NUM["moss"])
    _torch_sharded({**state, **_buffers(g)}, g, target, tokenizer)
    text = json.dumps(moss_config(g, _dtype(state)), indent=2)
    (target / "config.json").write_text(text, encoding="utf-8")
    return target


def _tarball(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    _torch(state, g, target, None)
    archive = target.with_name(f"{target.name}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(target, arcname=target.name)
    shutil.rmtree(target)
    return archive


def _jaxformer(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> Path:
    step = target / "1000"
    (step / "model").mkdir(parents=True)
    (step / "ckpt.json").write_text(
        json.dumps({"step": 1000, "process_count": 1}), encoding="utf-8"
    )
    training = {
        "tpu_version": {4: 4, 8: 3}[g.mp_num],
        "model_layers": g.n_layer,
        "model_dim": g.n_embd,
        "model_heads": g.n_head,
        "model_head_dim": g.head_dim,
        "model_pe_rotary_dims": g.rotary_dim,
        "model_seq_len": g.n_positions,
        "model_vocab_size": g.vocab_size,
    }
    (target / "config.json").write_text(json.dumps(training, indent=2), encoding="utf-8")
    _copy_tokenizer(tokenizer, target)
    with zipfile.ZipFile(step / "model" / "0.npz", "w", allowZip64=True) as archive:
        for number, leaf in enumerate(LEAVES):
            with archive.open(f"arr_{number}.npy", "w", force_zip64=True) as member:
                _write_leaf(member, leaf, state, g)
    return target


def _write_leaf(member: Any, leaf: str, state: State, g: Geometry) -> None:
    """Write one leaf of Jaxformer's parameter tree as a float32 .npy array.

    A matrix is [in, out]; a leaf of the layers is stacked to [n_layer, ...] and written layer by
    layer, so that only one is in memory.
    """

    def transposed(name: str) -> np.ndarray:
        value = state[name].float()
        return np.ascontiguousarray((value.T if value.ndim == 2 else value).numpy())

    # Jaxformer's embedding has a bias, which the reader adds to the weights. Multiples of 2^-10
    # make that exact: float16 weights below 1/2 come back as they were.
    bias = (torch.arange(g.n_embd) % 7 - 3).float() / 1024
    if leaf == "embed.b":
        first = bias.numpy()
    elif leaf == "embed.w":
        first = (state[CODEGEN.model["wte"]].float() - bias).numpy()
    elif leaf in CODEGEN.model:
        first = transposed(CODEGEN.model[leaf])
    else:
        first = transposed(CODEGEN.layer[leaf].format(i=0))
    stacked = leaf in CODEGEN.layer
    shape = (g.n_layer, *first.shape) if stacked else first.shape
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    member.write(first.tobytes())
    for number in range(1, g.n_layer if stacked else 1):
        member.write(transposed(CODEGEN.layer[leaf].format(i=number)).tobytes())


LAYOUTS: dict[str, Callable[[State, Geometry, Path, Path | None], Path]] = {
    "torch": _torch,
    "torch-sharded": _torch_sharded,
    "safetensors": _safetensors,
    "safetensors-sharded": _safetensors_sharded,
    "sparse": _sparse,
    "streamed": _streamed,
    "tarball": _tarball,
    "jaxformer": _jaxformer,
    "gptj": _gptj,
    "moss": _moss,
}


def regroup(state: State, g: Geometry, mp_num: int) -> tuple[dict[str, torch.Tensor], Geometry]:
    """The same model with its qkv_proj packed in another number of groups."""
    index = np.concatenate(qkv_row_indices(g.n_embd, g.mp_num))[
        packed_qkv_row_indices(g.n_embd, mp_num)
    ]
    regrouped = {name: t[index] if "qkv_proj" in name else t for name, t in state.items()}
    return regrouped, replace(g, mp_num=mp_num)


def unpacked(state: State, g: Geometry) -> tuple[dict[str, torch.Tensor], Geometry]:
    """The same model as a GPT-J state dict: q, k and v apart, each in the order of its heads."""
    rows = dict(zip("qkv", qkv_row_indices(g.n_embd, g.mp_num), strict=True))
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if "qkv_proj" in name:
            apart |= {name.replace("qkv_proj", f"{p}_proj"): tensor[rows[p]] for p in "qkv"}
        else:
            apart[name] = tensor
    return apart, replace(g, mp_num=0)


def _buffers(g: Geometry, mask_name: str = "causal_mask") -> dict[str, torch.Tensor]:
    """The attention buffers that checkpoint files of old transformers hold beside the weights."""
    mask = torch.tril(torch.ones((g.n_positions, g.n_positions), dtype=torch.bool))
    buffers = {}
    for layer in range(g.n_layer):
        prefix = f"transformer.h.{layer}.attn"
        buffers[f"{prefix}.{mask_name}"] = mask.view(1, 1, g.n_positions, g.n_positions)
        buffers[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
    return buffers


def _sharded(
    state: State, target: Path, pattern: str, unsharded: str, save: Callable[[Any, Path], Any]
) -> None:
    """Save two shards and their index; `pattern` and `unsharded` are names of files."""
    order = list(state)
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    weight_map: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = pattern.format(number)
        save({name: state[name] for name in half}, target / file)
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / f"{unsharded}.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _hub_files(state: State, g: Geometry, target: Path, tokenizer: Path | None) -> None:
    config = (codegen_config if g.mp_num else gptj_config)(g, _dtype(state))
    if target.name.startswith("codegen2"):
        config = codegen2_config(g, _dtype(state), target.name)
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _copy_tokenizer(tokenizer, target)


def _dtype(state: State) -> torch.dtype:
    """The type of the weights."""
    return next(iter(state.values())).dtype


def _copy_tokenizer(tokenizer: Path | None, target: Path) -> None:
    if tokenizer is None:
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, target / name)


@click.command()
@click.argument("name")
@click.option("--layout", type=click.Choice(list(LAYOUTS)), default="torch", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("checkpoints"))
@click.option("--layers", type=int, help="Cut the model to so many layers.")
@click.option("--vocab-size", type=int, help="Cut the vocabulary to so many rows.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--sharpness", type=float, default=1.0, show_default=True)
def main(
    name: str,
    layout: str,
    output: Path,
    layers: int | None,
    vocab_size: int | None,
    seed: int,
    sharpness: float,
) -> None:
    """Write a random checkpoint of the family's NAME, such as codegen-350M-mono."""
    if not family.is_published_checkpoint(name):
        raise click.UsageError(f"{name} is not a name of the family")
    cuts = {"n_layer": layers, "vocab_size": vocab_size}
    geometry = replace(family.geometry(name), **{k: v for k, v in cuts.items() if v})
    state = RandomState(geometry, seed, sharpness=sharpness)
    click.echo(write(layout, state, geometry, output, name, embedded.path()))


if __name__ == "__main__":
    main()
