"""Recognise weights that another library quantized, and name the library and what to do.

The names of the tensors tell the method, and so may config.json. The configuration alone decides
only if the layers have no matrix in floats: it is often kept when weights are merged and saved as
floats again, and it may be absent or damaged where the weights are quantized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.huggingface.safetensors_reader import DTYPES
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOATING_TYPES, TORCH_DTYPES, DType
from cgconvert.model.tensor import LazyTensor, StoredTensor

__all__ = ["refuse_quantized"]

BITSANDBYTES = "bitsandbytes"

SIGNS: Mapping[str, re.Pattern[str]] = {
    method: re.compile(rf"(.*[._:])?({pattern})", re.DOTALL)
    for method, pattern in {
        "gptq": r"g_idx",
        "mlx": r"mlp\.fc_in\.biases|attn\.qkv_proj\.biases",
        "gptq or awq": r"qweight|qzeros",
        f"{BITSANDBYTES}, 8 bits": r"SCB|weight_format",
        f"{BITSANDBYTES}, 4 bits": r"(nested_)?(absmax|quant_map)|quant_state\..*",
        "compressed-tensors": r"weight_(packed|shape|global_scale|g_idx)",
        "modelopt": r"weight_scale_2|pre_quant_scale",
        "fp8": r"weight_scale_inv",
        "eetq": r"weight_scales",
        "quanto": r"weight\._(data|scale|shift)|weight_qtype",
        "hqq": r"W_q",
        "torchao": r"weight[._:](qdata|int_data|packed_weight|.*_tensor_impl\..*)",
        "aqlm": r"codebooks|codes",
        "exl2": r"q_(weight|scale|groups|invperm)",
        "exl3": r"trellis|suh|svh",
        "quip": r"Qidxs",
        "torch.ao": r"_packed_params(\..*)?",
        "mxfp4": r"weight_?(blocks)",
        "fp8 or compressed-tensors": r"weight_(scale|zero_point)",
    }.items()
}
"""How the tensors that a method adds or puts in place of weights are named, the surest first.
Read in the modules that each library puts in place of torch's Linear."""

MAX_ENDING = 100
"""The most characters at a name's end that are looked at; a file may have names of any length."""

UNREAD_TYPES = frozenset(
    dtype for dtype in DTYPES.values()
    if dtype.itemsize < 4 and dtype not in (FLOAT16, BFLOAT16, TORCH_DTYPES["bool"])
) | {TORCH_DTYPES["uint32"], TORCH_DTYPES["uint64"]}  # fmt: skip
"""Types in which a weight cannot be stored unless it is quantized, or is the bits of floats."""

_MATRIX = re.compile(r".*\.\d+\..*\.weight", re.DOTALL)
_PLAIN_BITS = (TORCH_DTYPES["uint16"], TORCH_DTYPES["int16"])


def refuse_quantized(where: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise InputError if weights are quantized, or stored in a type that is not read.

    Args:
        where: The source, named in the error unless the tensor's own file is known.
        config: The contents of config.json.
        tensors: The lazy tensors of the source by name.
    """
    declared = _declared_method(config)
    for method, pattern in SIGNS.items():
        for name, tensor in tensors.items():
            if pattern.fullmatch(name[-MAX_ENDING:]):
                raise _error(where, _more_precise(declared, method), name, tensor)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype in UNREAD_TYPES:
            raise _error(where, declared or _method_of_type(tensor.dtype), name, tensor)
    matrices = (t for n, t in tensors.items() if _MATRIX.fullmatch(n[-MAX_ENDING:]))
    if declared and not any(len(t.shape) == 2 and t.dtype in FLOATING_TYPES for t in matrices):
        raise InputError(f"{where}: is quantized ({declared}): {_advice(declared)}")


def _declared_method(config: Mapping[str, Any]) -> str:
    """Return the method that config.json names, "" if it names none in a form that is known."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = config.get(key)
        if not isinstance(settings, dict):
            continue
        method = settings.get("quant_method")
        if isinstance(method, str) and re.fullmatch(r"\w[\w.-]{0,40}", method):
            return method.lower()
        if any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
            return BITSANDBYTES
        if key == "compression_config":
            return "compressed-tensors"
        if settings.keys() & {"bits", "w_bit"}:
            return "mlx" if key == "quantization" else "gptq or awq"
    # MOSS has the number of bits here, 32 where it is not quantized (configuration_moss.py).
    bits = config.get("wbits")
    return f"gptq, {bits} bits" if isinstance(bits, int) and 1 < bits < 16 else ""


def _more_precise(declared: str, method: str) -> str:
    """Return the configuration's word for the method, unless the names of tensors say more."""
    return method if not declared or method.startswith(declared) else declared


def _method_of_type(dtype: DType) -> str:
    """Return the method that a type of numbers shows alone, "" if it may not be quantized."""
    if dtype.is_floating_point:
        return "fp8"
    return "" if dtype in _PLAIN_BITS else f"{8 * dtype.itemsize} bits"


def _error(where: Path, method: str, name: str, tensor: LazyTensor) -> InputError:
    """Make the error for a tensor that shows the method."""
    path, kind = where, str(tensor.dtype)
    if isinstance(tensor, StoredTensor):
        path = tensor.path
        if path.suffix == ".safetensors":
            kind = next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
    is_read = tensor.dtype in FLOATING_TYPES
    problem = "stands beside its weights" if is_read else f"type {kind} is not supported"
    stored = f"tensor {name!r} is stored as {kind}, and" if not is_read else f"tensor {name!r}"
    if not method:
        return InputError(
            f"{path}: {stored} {problem}: if these are the bits of float16 or bfloat16, save them "
            "again in that type"
        )
    return InputError(f"{path}: is quantized ({method}): {stored} {problem}; {_advice(method)}")


def _advice(method: str) -> str:
    """Say what to do with weights that were quantized with this method."""
    if method.startswith(BITSANDBYTES):
        return (
            "convert the original weights, or load these with transformers, call "
            "model.dequantize() and save_pretrained(), and convert what it saves"
        )
    return (
        "convert the original weights from which these were made, or dequantize them first with "
        "the library that quantized them"
    )
