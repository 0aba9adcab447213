"""What each stored type is held to, in one table.

A bound is four to five times the worst that correct artefacts were measured at: random models of
the four published head sizes, 8 heads and 2 layers, nearly uniform attention and sharp (scores of
standard deviation 4), and the embedded trained model; whole contexts of 2,048, llama.cpp of 2026-11
with a float32 cache, onnxruntime 1.32, transformers 5.23, one thread:

    python -m tests.verify.false_alarms --seeds 2 --heads 8 --trained
        --vocabulary 6000 --new-tokens 32

The worst is in each row's `seen`, nearly always 6B's head with sharp attention. Other sources are
named there.

Small mistakes on weights of little effect (a layer-norm epsilon of 1e-6, rotary pairs in halves
under nearly uniform attention) come to an NMSE of 6e-5 and 2e-4: well above the float rows, below
what 8 bits and less lose. Those rows ask how much quantization lost, which logits can tell, and
not whether every weight is right, which they cannot: the stored weights are compared for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cgconvert.errors import InputError

__all__ = ["MINIMUMS", "TABLE", "Row", "known_bounds", "thresholds_for"]

ARITHMETIC = (
    "runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.context_end",
)  # fmt: skip
STEPS = ("cache", "batch")

MINIMUMS = ("logits.top1", "logits.top1_sure", "logits.top5")
"""Bounds that a value must reach; all others it must not exceed."""

REPORTED = ("logits.top1", "logits.top5")
"""Not judged unless a bound is given: on flat logits, as random weights have, agreement falls with
any change at all (Q4_0: 0.6 on a model it costs a KL of 0.006)."""


@dataclass(frozen=True)
class Row:
    """Bounds of one type; None is reported and not judged.

    `arithmetic` is the runtime's own: relative error, NMSE and mean KL against a reference made of
    the stored weights, and the NMSE there at the context's end. `steps` are relative errors of the
    artefact against itself: in pieces through its cache, in a padded batch. The others are what
    the type itself costs, against the source. `seen` is where the bounds come from.
    """

    arithmetic: tuple[float, float, float, float]
    steps: tuple[float, float | None]
    nmse: float
    kl_mean: float
    kl_p99: float
    top1_sure: float
    perplexity_ratio: float
    seen: str

    def bounds(self) -> dict[str, float | None]:
        """By name of check."""
        return {
            **dict(zip(ARITHMETIC, self.arithmetic, strict=True)),
            **dict(zip(STEPS, self.steps, strict=True)),
            "logits.nmse": self.nmse,
            "logits.kl_mean": self.kl_mean,
            "logits.kl_p99": self.kl_p99,
            "logits.top1_sure": self.top1_sure,
            "logits.perplexity_ratio": self.perplexity_ratio,
            "generation": 0,
            **dict.fromkeys(REPORTED),
        }


#   runtime: relative, NMSE, KL, NMSE at the end; cache, batch; NMSE, KL, p99, sure, perplexity
TABLE: Mapping[tuple[str, str], Row] = {
    ("huggingface", "float32"): Row(
        (1e-5, 1e-11, 1e-11, 2e-11), (2e-5, 1e-5), 1e-11, 1e-11, 1e-10, 1.0, 1.001,
        "relative 2.4e-6, NMSE 5.6e-13, KL 3.7e-13, end 3.7e-12, cache 4.6e-6, batch 2.3e-6",
    ),
    ("huggingface", "float16"): Row(
        (1e-5, 1e-11, 1e-11, 2e-11), (2e-5, 1e-5), 1e-11, 1e-11, 1e-10, 1.0, 1.001,
        "the reference's own weights, computed in float32: as float32",
    ),
    ("huggingface", "bfloat16"): Row(
        (1e-5, 1e-11, 1e-11, 2e-11), (3e-5, 1e-5), 4e-4, 2e-4, 1e-3, 1.0, 1.005,
        "computed in float32; rounding float16 to bfloat16 costs NMSE 9.4e-5, KL 4.5e-5, p99 "
        "2.1e-4, perplexity 1.0009",
    ),
    ("onnx", "float32"): Row(
        (1e-4, 5e-11, 5e-11, 1e-9), (2e-5, 1e-5), 5e-11, 5e-11, 5e-10, 1.0, 1.001,
        "relative 2.5e-5 and at the end 2.4e-10, where the graph's rotary tables are exact and "
        "the float32 angles of transformers and of the reference are not; NMSE 9.9e-12, KL 4.7e-12",
    ),
    ("onnx", "float16"): Row(
        (1.3e-2, 5e-6, 5e-6, 7e-6), (3e-3, 1.2e-2), 5e-6, 5e-6, 2e-5, 1.0, 1.001,
        "computed in float16: relative 3.1e-3, NMSE 1.1e-6, KL 6.2e-7, end 1.4e-6, p99 3.3e-6, "
        "cache 5.4e-4, batch 2.7e-3",
    ),
    ("onnx", "int8"): Row(
        (0.3, 2e-3, 1e-3, 2e-3), (3e-2, 3e-2), 4e-3, 5e-3, 5e-2, 0.98, 1.02,
        "activations in 8 bits: relative 7.6e-2, NMSE 3.9e-4, KL 1.8e-4, end 4.1e-4, cache 6.7e-3, "
        "batch 7e-3; lost NMSE 9.5e-4, KL 4.5e-4 (embedded model 6.8e-5); KL as Q8_0",
    ),
    ("onnx", "int4"): Row(
        (0.3, 2e-3, 1e-3, 2e-3), (3e-2, 3e-2), 0.3, 0.15, 1.5, 0.9, 1.25,
        "activations as int8; lost NMSE 4.4e-2, KL 2e-2 (embedded model 1.1e-3); KL as Q4_0",
    ),
    ("gguf", "F32"): Row(
        (4e-3, 1e-6, 5e-7, 1e-6), (5e-4, None), 1e-6, 5e-7, 2e-6, 1.0, 1.001,
        "llama.cpp's GELU is a table in float16: relative 8.9e-4, NMSE 1e-7, KL 4.7e-8, "
        "end 1.2e-7, p99 1.6e-7, cache 1.0e-4",
    ),
    ("gguf", "F16"): Row(
        (1.2e-2, 3e-6, 1.5e-6, 4e-6), (3e-3, None), 3e-6, 1.5e-6, 6e-6, 1.0, 1.001,
        "activations rounded to float16: relative 3e-3, NMSE 5.8e-7, KL 2.8e-7, end 8.8e-7, p99 "
        "1.1e-6, cache 7.4e-4",
    ),
    ("gguf", "BF16"): Row(
        (8e-2, 2e-4, 1e-4, 2e-4), (8e-3, None), 4e-4, 2e-4, 1e-3, 1.0, 1.005,
        "activations rounded to bfloat16: relative 2e-2, NMSE 3.4e-5, KL 1.6e-5, end 4.4e-5, cache "
        "2e-3; and the weights: NMSE 9.1e-5, KL 4.3e-5, p99 2e-4, perplexity 1.0005",
    ),
    ("gguf", "Q8_0"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 4e-3, 5e-3, 5e-2, 0.98, 1.02,
        "activations in 8 bits: relative 7.1e-2, NMSE 3.9e-4, KL 1.8e-4, end 4.8e-4, cache 1.9e-3; "
        "lost NMSE 9.6e-4, KL 4.6e-4 (embedded model 6.9e-5; published for Llama-3-8B 1.4e-3, "
        "llama.cpp tools/perplexity/README.md)",
    ),
    ("gguf", "Q6_K"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 3e-2, 1e-2, 1e-1, 0.97, 1.05,
        "activations as Q8_0; cache 8.9e-3; lost NMSE 6.5e-3, KL 1.4e-3, p99 4.3e-3 (published for "
        "Llama-3-8B KL 5.5e-3)",
    ),
    ("gguf", "Q5_K"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 0.1, 5e-2, 0.5, 0.95, 1.1,
        "cache 9.2e-3; lost NMSE 2.5e-2, KL 5.3e-3, p99 1.2e-2 (published for Llama-3-8B 1.7e-2)",
    ),
    ("gguf", "Q4_K"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (5e-2, None), 0.4, 0.15, 1.5, 0.9, 1.25,
        "cache 1.1e-2; lost NMSE 8.9e-2, KL 1.9e-2, p99 4.3e-2 (published for Llama-3-8B 4.3e-2)",
    ),
    ("gguf", "Q4_1"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 0.4, 0.3, 3.0, 0.9, 1.25,
        "lost NMSE 8.3e-2, KL 1.8e-2, p99 4.2e-2 (published for Llama-3-8B 7.2e-2)",
    ),
    ("gguf", "Q3_K"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (4e-2, None), 1.2, 0.5, 5.0, 0.8, 1.6,
        "cache 7.5e-3; lost NMSE 0.27, KL 5.7e-2, p99 0.1",
    ),
    ("gguf", "Q4_0"): Row(
        (0.3, 2e-3, 1e-3, 2.5e-3), (2e-2, None), 0.4, 0.3, 3.0, 0.9, 1.25,
        "activations as Q8_0, end 5.8e-4; lost NMSE 7.2e-2, KL 3.2e-2 (embedded model 6.6e-3; "
        "published for Llama-3-8B 7.2e-2 and a perplexity ratio of 1.07)",
    ),
}  # fmt: skip

CUDA = Row(
    (1e-2, 1e-5, 1e-5, 1e-5), (1e-2, 1e-2), 1e-5, 1e-5, 1e-4, 1.0, 1.001,
    "float16 arithmetic, which runtimes take there, done on a CPU against float32: relative "
    "1.5e-3, NMSE 1.1e-6, KL 2.5e-7 on sharp random models of 2 layers; wider for deeper ones; not "
    "yet measured on a GPU",
)  # fmt: skip


def known_bounds() -> dict[str, set[str]]:
    """The names of the bounds that can be set, by "format type"."""
    return {" ".join(key): set(row.bounds()) for key, row in TABLE.items()}


def thresholds_for(
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    device: str = "cpu",
    overrides: Mapping[str, float | None] | None = None,
) -> dict[str, float | None]:
    """Bounds by name of check, for an artefact of a format and type.

    For a runtime on `device` cuda no bound is tighter than what its float16 arithmetic costs.
    `overrides` replaces bounds by name; None there means report only.

    Raises InputError for a type without a row, for a name that is no bound's and for a value that
    is no number.
    """
    row = TABLE.get((format, type))
    if row is None:
        known = ", ".join(" ".join(key) for key in TABLE)
        raise InputError(f"no thresholds for {format} {type}; there are: {known}")
    bounds = row.bounds()
    if device == "cuda":
        for name, own in CUDA.bounds().items():
            bound = bounds[name]
            if bound is not None and own is not None:
                bounds[name] = min(bound, own) if name in MINIMUMS else max(bound, own)
    for name, value in (overrides or {}).items():
        if name not in bounds:
            raise InputError(f"threshold {name!r}: no such bound; there are {', '.join(bounds)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"threshold {name}: {value!r} is not a number")
        bounds[name] = value
    return bounds
