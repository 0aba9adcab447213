"""ggml's tensor types."""

from __future__ import annotations

from cgconvert.codecs.encoding import BF16, F16, F32, Encoding
from cgconvert.codecs.ggml.blocks_of_32 import Q4_0, Q4_1, Q8_0
from cgconvert.codecs.ggml.k_quants import Q3_K, Q4_K, Q5_K, Q6_K

__all__ = ["ENCODINGS"]

ENCODINGS: dict[str, Encoding] = {
    encoding.name: encoding
    for encoding in (F32, F16, BF16, Q8_0(), Q6_K(), Q5_K(), Q4_K(), Q4_1(), Q4_0(), Q3_K())
}
"""The encodings that can be read and written, by ggml's name of the type.

A codec that is added to this table can be requested by its name, and is read, calibrated and
verified.
"""
