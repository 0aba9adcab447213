"""The names of tensors in each layout: decoders are bound from them and written in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from cgconvert.errors import InputError, first_few
from cgconvert.model.decoder import (
    Decoder,
    Geometry,
    Layer,
    interleaved_row_indices,
    qkv_row_indices,
)
from cgconvert.model.dtype import FLOATING_TYPES, DType
from cgconvert.model.tensor import LazyTensor, Zeros

__all__ = [
    "CODEGEN",
    "GGUF",
    "GPTJ",
    "ONNX",
    "PHI",
    "NamedTensor",
    "TensorNames",
    "named_tensors",
]


@dataclass(frozen=True)
class TensorNames:
    """The names of tensors in one layout. In the names, `{i}` stands for the index of the layer.

    Attributes:
        model: The name of each of Decoder's own tensors, by its field.
        layer: The name of each of Layer's tensors, by its field. A packed qkv_proj has the key
            "qkv" in place of "q", "k" and "v".
        half_split: Whether the rows of q and k are in half-split rotary order.
        zero_biases: Names of biases that the layout allows and CodeGen does not have; if present,
            they must be zero.
        dropped: Names of buffers in some files, which are ignored.
    """

    model: Mapping[str, str]
    layer: Mapping[str, str]
    half_split: bool = False
    zero_biases: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def name(self, part: str, layer: int | None = None) -> str:
        """The name of the tensor in a field of layer number `layer`, or of the Decoder if None."""
        return self.model[part] if layer is None else self.layer[part].format(i=layer)

    def decoder(
        self,
        geometry: Geometry,
        tensors: Mapping[str, LazyTensor],
        where: str,
    ) -> Decoder:
        """Make a decoder from tensors by their names in this layout.

        Raises InputError, which begins with `where`, if a tensor is missing, unknown, of another
        shape or not of a floating type, or if a bias that must be zero is not. The error names
        several faults at once.
        """
        return _TensorBinder(self, geometry, tensors, where).decoder()


MAX_NAMED = 5
"""Number of faults that an error names; of the others it tells only their number."""

MISSING, UNKNOWN = "is missing", "is not a CodeGen tensor"

MAX_MISSING = 1000
"""Number of tensors that may be missing and are reported one by one. If more are missing, the
number of layers is wrong; a file may declare any number, so no layer is looked for then."""

_CODEGEN_MODEL = {
    "wte": "transformer.wte.weight",
    "ln_f_weight": "transformer.ln_f.weight",
    "ln_f_bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
    "head_bias": "lm_head.bias",
}
_CODEGEN_NORM = {
    "ln_weight": "transformer.h.{i}.ln_1.weight",
    "ln_bias": "transformer.h.{i}.ln_1.bias",
}
_CODEGEN_AFTER_QKV = {
    "o": "transformer.h.{i}.attn.out_proj.weight",
    "fc_in": "transformer.h.{i}.mlp.fc_in.weight",
    "fc_in_bias": "transformer.h.{i}.mlp.fc_in.bias",
    "fc_out": "transformer.h.{i}.mlp.fc_out.weight",
    "fc_out_bias": "transformer.h.{i}.mlp.fc_out.bias",
}
_CODEGEN_BUFFERS = (
    "transformer.h.{i}.attn.bias",
    "transformer.h.{i}.attn.masked_bias",
    "transformer.h.{i}.attn.causal_mask",
    "transformer.h.{i}.attn.embed_positions",
)

CODEGEN = TensorNames(
    model=_CODEGEN_MODEL,
    layer={
        **_CODEGEN_NORM,
        "qkv": "transformer.h.{i}.attn.qkv_proj.weight",
        **_CODEGEN_AFTER_QKV,
    },
    dropped=_CODEGEN_BUFFERS,
)
"""Names of CodeGen, CodeGen2 and MOSS, which pack q, k and v."""

GPTJ = TensorNames(
    model=_CODEGEN_MODEL,
    layer={
        **_CODEGEN_NORM,
        "q": "transformer.h.{i}.attn.q_proj.weight",
        "k": "transformer.h.{i}.attn.k_proj.weight",
        "v": "transformer.h.{i}.attn.v_proj.weight",
        **_CODEGEN_AFTER_QKV,
    },
    dropped=_CODEGEN_BUFFERS,
)
"""Names of GPT-J: CodeGen's, with q, k and v apart, each in the order of its heads."""

_PHI_MODEL = {
    "wte": "model.embed_tokens.weight",
    "ln_f_weight": "model.final_layernorm.weight",
    "ln_f_bias": "model.final_layernorm.bias",
    "head": "lm_head.weight",
    "head_bias": "lm_head.bias",
}
_PHI_NORM = {
    "ln_weight": "model.layers.{i}.input_layernorm.weight",
    "ln_bias": "model.layers.{i}.input_layernorm.bias",
}
_PHI_MLP = {
    "fc_in": "model.layers.{i}.mlp.fc1.weight",
    "fc_in_bias": "model.layers.{i}.mlp.fc1.bias",
    "fc_out": "model.layers.{i}.mlp.fc2.weight",
    "fc_out_bias": "model.layers.{i}.mlp.fc2.bias",
}

PHI = TensorNames(
    model=_PHI_MODEL,
    layer={
        **_PHI_NORM,
        "q": "model.layers.{i}.self_attn.q_proj.weight",
        "k": "model.layers.{i}.self_attn.k_proj.weight",
        "v": "model.layers.{i}.self_attn.v_proj.weight",
        "o": "model.layers.{i}.self_attn.dense.weight",
        **_PHI_MLP,
    },
    half_split=True,
    zero_biases=(
        "model.layers.{i}.self_attn.q_proj.bias",
        "model.layers.{i}.self_attn.k_proj.bias",
        "model.layers.{i}.self_attn.v_proj.bias",
        "model.layers.{i}.self_attn.dense.bias",
    ),
)

GGUF = TensorNames(
    model={
        "wte": "token_embd.weight",
        "ln_f_weight": "output_norm.weight",
        "ln_f_bias": "output_norm.bias",
        "head": "output.weight",
        "head_bias": "output.bias",
    },
    layer={
        "ln_weight": "blk.{i}.attn_norm.weight",
        "ln_bias": "blk.{i}.attn_norm.bias",
        "q": "blk.{i}.attn_q.weight",
        "k": "blk.{i}.attn_k.weight",
        "v": "blk.{i}.attn_v.weight",
        "o": "blk.{i}.attn_output.weight",
        "fc_in": "blk.{i}.ffn_up.weight",
        "fc_in_bias": "blk.{i}.ffn_up.bias",
        "fc_out": "blk.{i}.ffn_down.weight",
        "fc_out_bias": "blk.{i}.ffn_down.bias",
    },
    half_split=True,
    # Every version of llama.cpp requires the last. Versions before 2026 require the others too if
    # q, k and v are stored apart.
    zero_biases=(
        "blk.{i}.attn_q.bias",
        "blk.{i}.attn_k.bias",
        "blk.{i}.attn_v.bias",
        "blk.{i}.attn_output.bias",
    ),
)

ONNX = TensorNames(
    model=_PHI_MODEL,
    layer={
        **_PHI_NORM,
        "q": "model.layers.{i}.attn.q_proj.weight",
        "k": "model.layers.{i}.attn.k_proj.weight",
        "v": "model.layers.{i}.attn.v_proj.weight",
        "o": "model.layers.{i}.attn.o_proj.weight",
        **_PHI_MLP,
    },
    half_split=True,
    dropped=("rotary.cos", "rotary.sin"),
)
"""Names of the initializers of an unquantized graph.

The graph itself has one initializer with q, k and v side by side, which the reader cuts. Matrices
are stored [in, out], as MatMul requires; the embedding is stored [vocab_size, n_embd].
"""


@dataclass
class _TensorBinder:
    """Makes a decoder from tensors by their names, and collects all faults for one error."""

    names: TensorNames
    geometry: Geometry
    tensors: Mapping[str, LazyTensor]
    where: str
    used: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def decoder(self) -> Decoder:
        """Take all tensors by name and make the decoder; raise InputError if there are faults."""
        g, shape = self.geometry, self._shapes()
        if g.n_layer * len(self.names.layer) > len(self.tensors) + MAX_MISSING:
            raise InputError(
                f"{self.where}: {g.n_layer} layers need more than its {len(self.tensors)} tensors"
            )
        model_tensors = {
            part: self._take(name, shape[part]) for part, name in self.names.model.items()
        }
        layers = [
            {
                part: self._take(name.format(i=i), shape[part])
                for part, name in self.names.layer.items()
            }
            for i in range(g.n_layer)
        ]
        self._check_zero_biases()
        self._check_unknown()
        if self.faults:
            raise InputError(f"{self.where}: {self._explanation()}")
        # Without faults no tensor is None.
        return Decoder(
            geometry=g,
            layers=tuple(self._layer(cast(dict[str, LazyTensor], parts)) for parts in layers),
            **cast(dict[str, LazyTensor], model_tensors),
        )

    def _explanation(self) -> str:
        """Say what the faults are, and what explains them where it is one thing."""
        prefixed = {
            stored.split(".", parts)[parts]: stored
            for stored in self.tensors
            for parts in (1, 2)
            if stored.count(".") >= parts
        }
        name = next((n for n in sorted(self.used - self.tensors.keys()) if n in prefixed), "")
        if name:
            return (
                f"{name} is missing, and {prefixed[name]} is there: only some names have this "
                "prefix; save the state dict with the same prefix for all, or without"
            )
        layers, declared = self._stored_layers(), self.geometry.n_layer
        if layers not in (0, declared):
            return (
                f"{self.faults[0]}: the number of layers is {layers} in the weights and {declared} "
                "in the configuration; give the right configuration, or fetch all weight files"
            )
        faults = first_few(self.faults, MAX_NAMED)
        if all(fault.endswith(MISSING) for fault in self.faults):
            return f"{faults}; fetch the model again, or save its whole state dict"
        if all(fault.endswith(UNKNOWN) for fault in self.faults):
            return f"{faults}; save the state dict without what is no part of the model"
        return faults

    def _stored_layers(self) -> int:
        """Count the layers of which there are tensors; 0 if the first or one between is absent."""
        count = 0
        while self._has_layer(count):
            count += 1
        return 0 if any(map(self._has_layer, range(count, self.geometry.n_layer))) else count

    def _has_layer(self, index: int) -> bool:
        return any(name.format(i=index) in self.tensors for name in self.names.layer.values())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each tensor must have, by its field of Decoder or Layer, or "qkv"."""
        g = self.geometry
        square, vector = (g.n_embd, g.n_embd), (g.n_embd,)
        return {
            "wte": (g.vocab_size, g.n_embd), "head": (g.vocab_size, g.n_embd),
            "head_bias": (g.vocab_size,), "ln_f_weight": vector, "ln_f_bias": vector,
            "ln_weight": vector, "ln_bias": vector, "q": square, "k": square, "v": square,
            "o": square, "qkv": (3 * g.n_embd, g.n_embd), "fc_in": (g.n_inner, g.n_embd),
            "fc_in_bias": (g.n_inner,), "fc_out": (g.n_embd, g.n_inner), "fc_out_bias": vector,
        }  # fmt: skip

    def _take(self, name: str, shape: tuple[int, ...]) -> LazyTensor | None:
        """Return the tensor with this name; add a fault if it is missing or not as it must be."""
        self.used.add(name)
        tensor = self.tensors.get(name)
        if tensor is None:
            self.faults.append(f"{name} {MISSING}")
        elif tuple(tensor.shape) != shape:
            self.faults.append(f"{name} is {list(tensor.shape)}, the config says {list(shape)}")
        elif tensor.dtype not in FLOATING_TYPES:
            self.faults.append(f"{name} is {tensor.dtype}, not a floating type")
        return tensor

    def _check_zero_biases(self) -> None:
        """Add a fault for each bias that must be zero and is not, or has another shape."""
        for pattern in self.names.zero_biases:
            for i in range(self.geometry.n_layer):
                name = pattern.format(i=i)
                tensor = self.tensors.get(name)
                self.used.add(name)
                if tensor is None:
                    continue
                if tuple(tensor.shape) != (self.geometry.n_embd,):
                    self.faults.append(f"{name} is {list(tensor.shape)}, not a bias of this model")
                elif bool(tensor.read().count_nonzero()):
                    self.faults.append(f"{name} is not zero, and CodeGen has no such bias")

    def _check_unknown(self) -> None:
        """Add a fault for each tensor that was not used and is not to be dropped."""
        dropped = {
            name.format(i=i) for name in self.names.dropped for i in range(self.geometry.n_layer)
        }
        self.faults += [
            f"{name} {UNKNOWN}" for name in sorted(set(self.tensors) - self.used - dropped)
        ]

    def _layer(self, tensors: Mapping[str, LazyTensor]) -> Layer:
        """Make a layer: cut a packed qkv_proj, and bring half-split rows in interleaved order."""
        g, parts = self.geometry, dict(tensors)
        packed = parts.pop("qkv", None)
        if packed is not None:
            row_indices = qkv_row_indices(g.n_embd, g.mp_num)
            parts |= {
                part: packed.rows(indices) for part, indices in zip("qkv", row_indices, strict=True)
            }
        if self.names.half_split:
            interleaved = interleaved_row_indices(g.n_head, g.head_dim, g.rotary_dim)
            parts |= {part: parts[part].rows(interleaved) for part in "qk"}
        return Layer(**parts)


PARTS_AFTER_LAYERS = ("ln_f_weight", "ln_f_bias", "head", "head_bias")


class NamedTensor(NamedTuple):
    """A tensor with its name in a layout.

    `part` is the field of Decoder or Layer that contains the tensor, or "zero_bias" for a bias that
    the layout has and CodeGen does not. `layer` is None outside of the layers.
    """

    name: str
    part: str
    layer: int | None
    tensor: LazyTensor


def named_tensors(
    decoder: Decoder,
    names: TensorNames,
    *,
    mp_num: int = 0,
    bias_dtype: DType | None = None,
) -> Iterator[NamedTensor]:
    """Yield all tensors of a layout in the order in which the model uses them.

    Rows are in the layout's order. `mp_num` is the number of groups if the layout packs q, k and v
    into one matrix, 0 otherwise. `bias_dtype` is the type of zero biases; the default is q's type.
    """
    if names.half_split:
        decoder = decoder.half_split()
    yield NamedTensor(names.model["wte"], "wte", None, decoder.wte)
    for i, layer in enumerate(decoder.layers):
        for part, name in names.layer.items():
            tensor = layer.packed(mp_num) if part == "qkv" else getattr(layer, part)
            yield NamedTensor(name.format(i=i), part, i, tensor)
        for name in names.zero_biases:
            bias = Zeros((decoder.geometry.n_embd,), bias_dtype or layer.q.dtype)
            yield NamedTensor(name.format(i=i), "zero_bias", i, bias)
    for part in PARTS_AFTER_LAYERS:
        yield NamedTensor(names.model[part], part, None, getattr(decoder, part))
