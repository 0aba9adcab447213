"""The names of the types of GGUF files; `types.py` says how each stores its matrices."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DEFAULT_TYPE", "QUANTIZED_TYPES", "TYPE_ALIASES", "TYPE_CHOICES"]

DEFAULT_TYPE = "F16"

QUANTIZED_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_K", "Q4_K_M", "Q4_K_S", "Q4_K", "Q4_1", "Q4_0", "Q3_K",
)  # fmt: skip
"""Names of the types that store matrices in blocks of quantized weights."""

TYPE_CHOICES = ("F32", "F16", "BF16", *QUANTIZED_TYPES)
"""Names of all types that are written."""

TYPE_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("fp16", "float16", "half"), "F16"),
    "bfloat16": "BF16",
    **dict.fromkeys(("fp32", "float32", "float"), "F32"),
    **dict.fromkeys(("q8", "int8"), "Q8_0"),
}
"""What other tools call types of files."""
