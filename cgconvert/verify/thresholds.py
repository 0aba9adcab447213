"""What each stored type is held to, in one table.

A bound is about four times the worst that correct artefacts were measured at: random models of the
family's head sizes, with nearly uniform attention and with sharp attention (scores of standard
deviation 4), 350M's whole shape, and the embedded trained model; ten prompts, llama.cpp of 2026-11
with a float32 cache, onnxruntime 1.32, transformers 5. The worst is in each row's `seen`. Other
sources are named there.

Small mistakes on weights of little effect (a layer-norm epsilon of 1e-6, rotary pairs in halves
under nearly uniform attention) come to an NMSE of 6e-5 and 2e-4: well above the float rows, below
those of 8 bits and less. Those rows ask how much quantization lost, which logits can tell, and
not whether every weight is right, which they cannot.
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
        (1e-5, 1e-10, 1e-9, 1e-10), (1e-5, 1e-5), 1e-10, 1e-9, 1e-8, 1.0, 1.001, "",
    ),
    ("huggingface", "float16"): Row(
        (1e-5, 1e-10, 1e-9, 1e-10), (1e-5, 1e-5), 1e-10, 1e-9, 1e-8, 1.0, 1.001, "",
    ),
    ("huggingface", "bfloat16"): Row(
        (1e-5, 1e-10, 1e-9, 1e-10), (1e-5, 1e-5), 2e-4, 1e-4, 1e-3, 1.0, 1.005, "",
    ),
    ("onnx", "float32"): Row(
        (1e-5, 1e-10, 1e-9, 1e-10), (1e-5, 1e-5), 1e-10, 1e-9, 1e-8, 1.0, 1.001, "",
    ),
    ("onnx", "float16"): Row(
        (1e-2, 5e-6, 1e-5, 5e-6), (3e-3, 3e-3), 5e-6, 1e-5, 1e-4, 1.0, 1.001, "",
    ),
    ("onnx", "int8"): Row(
        (1e-1, 1e-3, 1e-3, 1e-3), (2e-2, 2e-2), 3e-3, 5e-3, 5e-2, 0.98, 1.02, "",
    ),
    ("onnx", "int4"): Row(
        (1e-1, 1e-3, 1e-3, 1e-3), (3e-2, 3e-2), 0.3, 0.15, 1.5, 0.9, 1.25, "",
    ),
    ("gguf", "F32"): Row(
        (2e-3, 1e-6, 1e-6, 1e-6), (4e-4, None), 1e-6, 1e-6, 1e-5, 1.0, 1.001, "",
    ),
    ("gguf", "F16"): Row(
        (4e-3, 2e-6, 1e-6, 2e-6), (3e-3, None), 2e-6, 1e-6, 1e-5, 1.0, 1.001, "",
    ),
    ("gguf", "BF16"): Row(
        (5e-2, 2.5e-4, 1e-4, 2.5e-4), (6e-3, None), 2.5e-4, 1e-4, 1e-3, 1.0, 1.005, "",
    ),
    ("gguf", "Q8_0"): Row(
        (1e-1, 1e-3, 1e-3, 1e-3), (2e-2, None), 3e-3, 5e-3, 5e-2, 0.98, 1.02, "",
    ),
    ("gguf", "Q4_0"): Row(
        (1e-1, 1e-3, 1e-3, 1e-3), (2e-2, None), 0.4, 0.3, 3.0, 0.9, 1.25, "",
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
