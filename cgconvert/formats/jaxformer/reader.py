"""Reader of training checkpoints, `<step>/model/0.npz`.

The archive holds the leaves of the parameter tree in the order jax.tree_flatten gives them
(salesforce/jaxformer, models/decoder/inter/checkpoint.py), layers stacked on axis 0, linear
weights as [in, out]. They are read as a state dict with Hugging Face's names and shapes, which
jaxformer/hf/convert.py creates too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.headers import Headers
from cgconvert.formats.huggingface.config import geometry, integer
from cgconvert.formats.jaxformer.files import ARCHIVE, is_step
from cgconvert.formats.npz import NpyArray, read_array
from cgconvert.formats.read_options import ReadOptions, complete, read_tokenizer
from cgconvert.io.stored_zip import read_members
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.family import TPU_CORES
from cgconvert.model.tensor import LazyTensor, RowBias
from cgconvert.model.tensor_names import CODEGEN
from cgconvert.sources.resolve import Source, plain_name

__all__ = ["LEAVES", "choose_step", "describe", "geometry_of", "leaves", "read", "tensors"]

LEAVES = (
    "embed.b", "embed.w",
    "ln_f_bias", "ln_f_weight", "head_bias", "head",
    "o", "qkv",
    "fc_in_bias", "fc_in", "fc_out_bias", "fc_out",
    "ln_bias", "ln_weight",
)  # fmt: skip
"""The leaves arr_0 to arr_13: the tree {embed, proj, transformer}, keys of each level sorted."""


def read(source: Source, options: ReadOptions) -> Checkpoint:
    """Read one step of a training run; see SourceFormat.read."""
    path = source.path
    step = choose_step(path, options.step)
    config_path = options.config or _training_config(path, step)
    config = read_json(config_path)
    sizes = geometry_of(config, config_path, options.groups)
    state = tensors(step, sizes)
    tokenizer, tokenizer_files = read_tokenizer(path, options, source.name, config)
    return Checkpoint(
        name=plain_name(path.resolve().parent.name) if source.name.isdigit() else source.name,
        path=step,
        layout="jaxformer",
        config=config,
        decoder=CODEGEN.decoder(sizes, state, str(step)),
        tokenizer=tokenizer,
        files=(step / ARCHIVE, config_path, *tokenizer_files),
        origin={**source.origin, "step": _step_number(step)},
    )


def describe(location: str, source: Source, options: ReadOptions) -> Headers:
    """Describe the leaves as they are stored; see SourceFormat.describe."""
    checkpoint = complete(read(source, options), location, source, options)
    return Headers(
        checkpoint.name,
        checkpoint.layout,
        checkpoint.geometry,
        checkpoint.tokenizer,
        tuple(leaf.line for leaf in leaves(checkpoint.path / ARCHIVE)),
        checkpoint.origin,
        notes=checkpoint.notes,
    )


def _training_config(folder: Path, step: Path) -> Path:
    """Find the training configuration: a JSON file with model_layers in the source or its step.

    Of several, the one that describes the arrays is taken. Other JSON files are left alone.
    Raises InputError if there is none, or if several that differ describe the arrays.
    """
    configs: dict[Path, dict[str, Any]] = {}
    broken: list[InputError] = []
    for parent in dict.fromkeys((folder, step, step.parent)):
        for path in sorted(parent.glob("*.json")):
            try:
                config = read_json(path)
            except InputError as error:  # a list, for example, which is nothing of Jaxformer's
                broken.append(error)
                continue
            if "model_layers" in config:
                configs[path] = config
    if not configs and broken:
        raise broken[0]
    if not configs:
        raise InputError(
            f"{folder}: no Jaxformer training configuration (a .json with model_layers) in it; "
            "give it with `config`"
        )
    if len(configs) == 1:
        return next(iter(configs))
    fitting = [path for path in configs if _describes(configs[path], path, step)]
    if not fitting:
        raise InputError(
            f"{folder}: none of {', '.join(path.name for path in configs)} describes the arrays; "
            "give the right training configuration with `config`"
        )
    for other in fitting[1:]:
        if _sizes(configs[other]) != _sizes(configs[fitting[0]]):
            raise InputError(
                f"{folder}: {fitting[0].name} and {other.name} both describe the arrays and "
                "differ; give the right one with `config`"
            )
    return fitting[0]


_MODEL_KEYS = ("model_layers", "model_dim", "model_heads", "model_pe_rotary_dims",
               "model_seq_len", "model_vocab_size", "tpu_version")  # fmt: skip


def _sizes(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a training configuration that `geometry_of` reads."""
    return tuple(config.get(key) for key in _MODEL_KEYS)


def _describes(config: Mapping[str, Any], path: Path, step: Path) -> bool:
    """Whether a training configuration has the sizes of a step's arrays."""
    try:
        # The number of groups changes no shape.
        expected = _shapes(geometry_of(config, path, mp_num=1))
    except InputError:
        return False
    stored = zip(LEAVES, leaves(step / ARCHIVE), strict=True)
    return all(leaf.shape == expected[name] for name, leaf in stored)


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


def choose_step(folder: Path, step: int | None) -> Path:
    """Return the folder of step `step`, or of the last step if `step` is None.

    Raises InputError if there is no such step.
    """
    if is_step(folder) and step in (None, _step_number(folder)):
        return folder
    steps = {_step_number(child): child for child in folder.iterdir() if is_step(child)}
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
        CODEGEN.model["wte"]: RowBias(stored["embed.w"].tensor, stored["embed.b"].tensor)
    }
    for part in ("ln_f_weight", "ln_f_bias", "head_bias"):
        state[CODEGEN.model[part]] = stored[part].tensor
    state[CODEGEN.model["head"]] = stored["head"].tensor.T
    for part, name in CODEGEN.layer.items():
        for layer in range(g.n_layer):
            tensor = stored[part].entry(layer, name.format(i=layer))
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


def leaves(path: Path) -> list[NpyArray]:
    """Return the archive's arrays, lazily, in the order of `LEAVES`. Raises InputError."""
    names = [f"arr_{i}.npy" for i in range(len(LEAVES))]
    members = read_members(path)
    if members.keys() != set(names):
        raise InputError(
            f"{path}: holds {len(members)} members; a Jaxformer model is arr_0 to "
            f"arr_{len(LEAVES) - 1}"
        )
    return [read_array(path, members[name]) for name in names]


def _step_number(folder: Path) -> int | None:
    """Return the digits of a folder's name as a number, as in `1000` or `step_1000`."""
    digits = "".join(c for c in folder.name if c in "0123456789")
    return int(digits) if digits else None
