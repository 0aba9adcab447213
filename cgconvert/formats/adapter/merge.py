"""Merge a LoRA adapter into a model: its tensors are paired by name, then added lazily.

Tensors are named after the modules of the model that was trained, as transformers builds it:
base_model.model.transformer.h.0.attn.qkv_proj.lora_A.weight. So the model is put into the layout
that has these names, merged there, and cut into its parts again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cgconvert.errors import InputError, first_few
from cgconvert.formats.adapter.config import (
    CONFIG_NAME,
    MERGE_ELSEWHERE,
    AdapterConfig,
    read_config,
)
from cgconvert.formats.huggingface.reader import read_weights
from cgconvert.model.decoder import Checkpoint, Decoder, Geometry
from cgconvert.model.low_rank import LowRankUpdate, ScaledSum
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI, NamedTensor, TensorNames, named_tensors

__all__ = ["WEIGHT_NAMES", "adapter_weights", "merge"]

WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
"""The names under which peft saves weights, in the order in which it looks for them."""

LAYOUTS = (CODEGEN, GPTJ, PHI)

PREFIX = "base_model.model."
MODULE, ADAPTER, KIND = r"(?P<module>.+?)", r"(\.(?P<adapter>\w+))?", r"\.(?P<kind>weight|bias)"
FACTOR = re.compile(rf"{MODULE}\.lora_(?P<factor>[AB]){ADAPTER}{KIND}")
EMBEDDING_FACTOR = re.compile(rf"{MODULE}\.lora_embedding_(?P<factor>[AB]){ADAPTER}")
WHOLE = re.compile(rf"{MODULE}(\.base_layer|\.modules_to_save{ADAPTER})?{KIND}")
"""Names of factors, of an embedding's factors, and of tensors that replace the base's. The name of
the adapter, "default" mostly, is left out by save_pretrained and not by torch.save."""

REPLACED, SAVED = re.compile(r"\.original_module\."), re.compile(rf"\.modules_to_save{ADAPTER}\.")
"""Names of tensors that are not needed: peft also saves the bias of a module that modules_to_save
replaces, if bias is "all", and the new bias a second time, under the name that it has in memory."""

MAX_NAMED = 2


def adapter_weights(folder: Path) -> Path:
    """Return the file with an adapter's weights. Raises InputError if there is none."""
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder}: has {CONFIG_NAME}, but no {' or '.join(WEIGHT_NAMES)}; fetch it too"
    )


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Merge the adapter in a folder into a model; only headers are read.

    Args:
        checkpoint: The model.
        folder: The adapter, with adapter_config.json and its weights.

    Raises:
        InputError: The adapter is broken, no LoRA that can be merged, or made for another model.
    """
    config, weights = read_config(folder), adapter_weights(folder)
    parts = _Parts.read(read_weights((weights,)), weights)
    is_tied = checkpoint.config.get("tie_word_embeddings") is True
    decoder = _Merge(checkpoint.decoder, config, parts, weights, is_tied).decoder()
    settings = dict(checkpoint.config)
    if "vocab_size" in settings:
        settings["vocab_size"] = decoder.geometry.vocab_size
    files = (*checkpoint.files, weights, config.path)
    return replace(checkpoint, decoder=decoder, config=settings, files=files)


@dataclass
class _Parts:
    """The tensors of an adapter, by the names of the modules that they belong to.

    Attributes:
        left: lora_B of each matrix, and the transposed one of each embedding.
        right: lora_A, the right factor in B @ A, likewise.
        embeddings: The modules that are embeddings.
        biases: What lora_B adds to the bias of a module.
        whole: The tensors that replace the base's, by their full names.
    """

    left: dict[str, LazyTensor] = field(default_factory=dict)
    right: dict[str, LazyTensor] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    biases: dict[str, LazyTensor] = field(default_factory=dict)
    whole: dict[str, LazyTensor] = field(default_factory=dict)

    @classmethod
    def read(cls, tensors: Mapping[str, LazyTensor], path: Path) -> _Parts:
        """Sort the tensors of a file by their names.

        Raises InputError for a name that no merge has a place for, for two adapters in one file,
        and for a factor without its other.
        """
        parts, adapters, faults = cls(), set(), []
        for name, tensor in tensors.items():
            if REPLACED.search(name) or SAVED.sub(".", name) in tensors.keys() - {name}:
                continue
            short = name.removeprefix(PREFIX)
            match = (
                FACTOR.fullmatch(short) or EMBEDDING_FACTOR.fullmatch(short)
                or WHOLE.fullmatch(short)
            )  # fmt: skip
            if match is None or "lora_" in match["module"] or "token_adapter" in short:
                faults.append(f"{name!r:.120} is no tensor of a LoRA adapter")
            elif not tensor.dtype.is_floating_point:
                faults.append(f"{name} is {tensor.dtype}, not a floating type")
            else:
                adapters |= {match["adapter"]} - {None}
                if not parts._add(match, tensor):
                    faults.append(f"{name!r:.120} stands there twice")
        for module in sorted(parts.left.keys() ^ parts.right.keys()):
            present, absent = "BA" if module in parts.left else "AB"
            faults.append(f"{module} has a lora_{present} and no lora_{absent}")
        faults += [
            f"{module} has a bias of lora_B and no lora_B"
            for module in sorted(parts.biases.keys() - parts.left.keys())
        ]
        if len(adapters) > 1:
            faults.append(f"it holds several adapters: {', '.join(sorted(adapters))}")
        if not tensors:
            faults.append("it has no tensors")
        if faults:
            raise InputError(f"{path}: {first_few(faults, MAX_NAMED)}")
        return parts

    def _add(self, match: re.Match[str], tensor: LazyTensor) -> bool:
        """Put a tensor into the table of its kind; return False if its key is there already.

        `match` is that of the tensor's name with FACTOR, EMBEDDING_FACTOR or WHOLE.
        """
        module = match["module"]
        if match.re is WHOLE:
            table, key = self.whole, f"{module}.{match['kind']}"
        elif match.re is FACTOR and match["kind"] == "bias":
            table, key = self.biases, module
        else:
            table, key = (self.left if match["factor"] == "B" else self.right), module
        if match.re is EMBEDDING_FACTOR:
            self.embeddings.add(module)
        is_new = key not in table
        table[key] = tensor
        return is_new


@dataclass
class _Merge:
    """The merge of one adapter: collects all faults for one error."""

    base: Decoder
    config: AdapterConfig
    parts: _Parts
    path: Path
    is_tied: bool
    faults: list[str] = field(default_factory=list)

    def decoder(self) -> Decoder:
        """Merge and return the model; raise InputError if there are faults."""
        names, present = self._layout()
        tensors = {tensor.name: tensor.tensor for tensor in present}
        changed = {**tensors, **self.parts.whole}
        rows = self._vocabulary_rows(names, changed)
        for module in self.parts.left:
            self._add_product(module, names, changed)
        for module, addend in self.parts.biases.items():
            self._add_bias(module, addend, changed)
        self._check_targets(tensors)
        if self.faults:
            raise InputError(f"{self.path}: {first_few(self.faults, MAX_NAMED)}")
        is_changed = {
            (tensor.layer, tensor.part)
            for tensor in present
            if changed[tensor.name] is not tensors[tensor.name]
        }
        if self.is_tied and is_changed & {(None, "wte"), (None, "head")}:
            raise InputError(
                f"{self.path}: changes the embedding or the head, which the base ties to each "
                f"other; {MERGE_ELSEWHERE}"
            )
        geometry = replace(self.base.geometry, vocab_size=rows)
        merged = names.decoder(geometry, changed, f"{self.path} merged into its base")
        return _with_parts(self.base, merged, is_changed, geometry)

    def _layout(self) -> tuple[TensorNames, list[NamedTensor]]:
        """The layout whose names the adapter uses, and the base's tensors in it.

        The base's own layout is tried first: some names are the same in several. If none has all
        the names, each that the base's own does not have is a fault.
        """
        groups = self.base.geometry.mp_num
        layouts = [names for names in LAYOUTS if groups or "qkv" not in names.layer]
        used = {f"{module}.weight" for module in self.parts.left} | set(self.parts.whole)
        unknown: list[set[str]] = []
        for names in layouts:
            mp_num = groups if "qkv" in names.layer else 0
            present = list(named_tensors(self.base, names, mp_num=mp_num))
            unknown.append(used.difference(tensor.name for tensor in present))
            if not unknown[-1]:
                return names, present
        missing = min(map(sorted, unknown), key=len)
        advice = ""
        if not groups and any("qkv_proj" in name for name in missing):
            advice = "; it stores q, k and v apart: give the CodeGen itself as the source"
        raise InputError(
            f"{self.path}: was made for another model: the base has no "
            f"{first_few(missing, MAX_NAMED, separator=', ', conjunction=' and ')}{advice}"
        )

    def _vocabulary_rows(self, names: TensorNames, tensors: Mapping[str, LazyTensor]) -> int:
        """The rows of embedding and head, which an adapter with added tokens replaces."""
        rows = {
            names.model[part]: tensors[names.model[part]].shape[0]
            for part in ("wte", "head", "head_bias")
            if tensors[names.model[part]].shape
        }
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            self.faults.append(f"the vocabulary's rows differ when it is merged: {counts}")
        return max(rows.values(), default=self.base.geometry.vocab_size)

    def _add_product(self, module: str, names: TensorNames, tensors: dict[str, LazyTensor]) -> None:
        """Add the product of a module's factors to its weight."""
        left, right = self.parts.left[module], self.parts.right[module]
        base, rank = tensors[f"{module}.weight"], self.config.rank_of(module)
        is_embedding = module in self.parts.embeddings
        out, columns = base.shape[::-1] if is_embedding else base.shape
        if is_embedding != (f"{module}.weight" == names.model["wte"]):
            kind = "is not the embedding and has" if is_embedding else "is the embedding and has no"
            self.faults.append(f"{module} {kind} lora_embedding_A and lora_embedding_B")
        elif left.shape != (out, rank) or right.shape != (rank, columns):
            self.faults.append(
                f"{module} has lora_B {list(left.shape)} and lora_A {list(right.shape)}; with rank "
                f"{rank} its base needs {[out, rank]} and {[rank, columns]}"
            )
        else:
            scaling = self.config.scaling_of(module)
            tensors[f"{module}.weight"] = LowRankUpdate(base, left, right, scaling, is_embedding)

    def _add_bias(self, module: str, addend: LazyTensor, tensors: dict[str, LazyTensor]) -> None:
        """Add the bias of lora_B to a module's own."""
        base = tensors.get(f"{module}.bias")
        if base is None or base.shape != addend.shape:
            self.faults.append(f"{module} has no bias in the base that lora_B's could be added to")
        else:
            tensors[f"{module}.bias"] = ScaledSum(base, addend, self.config.scaling_of(module))

    def _check_targets(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Add a fault for each module whose factors are there or not against target_modules."""
        if not self.config.target_names:
            return
        for name, tensor in tensors.items():
            module, is_weight = name.removesuffix(".weight"), name.endswith(".weight")
            if not is_weight or self.config.targets(module) == (module in self.parts.left):
                continue
            if module in self.parts.left:
                self.faults.append(f"{module} has factors, and target_modules leaves it out")
            elif len(tensor.shape) == 2:
                self.faults.append(f"{module} is in target_modules and has no factors")


def _with_parts(
    base: Decoder, merged: Decoder, changed: Iterable[tuple[int | None, str]], geometry: Geometry
) -> Decoder:
    """The base with those tensors of the merged model that differ from it."""
    layers = list(base.layers)
    model: dict[str, LazyTensor] = {}
    for index, part in changed:
        fields = ("q", "k", "v") if part == "qkv" else (part,)
        source = merged if index is None else merged.layers[index]
        values = {name: getattr(source, name) for name in fields if part != "zero_bias"}
        if index is None:
            model |= values
        else:
            layers[index] = replace(layers[index], **values)
    return replace(base, geometry=geometry, layers=tuple(layers), **model)
