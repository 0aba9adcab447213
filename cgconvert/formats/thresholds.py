"""The bounds that artefacts of one stored type are held to; each format has its own table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ThresholdRow"]

ARITHMETIC = (
    "runtime.relative_error", "runtime.nmse", "runtime.kl_mean", "runtime.context_end",
)  # fmt: skip
STEPS = ("cache", "batch")

REPORTED = ("logits.top1", "logits.top5")
"""Not judged unless a bound is given: on flat logits, as random weights have, agreement falls with
any change at all (Q4_0: 0.6 on a model it costs a KL of 0.006)."""


@dataclass(frozen=True)
class ThresholdRow:
    """Bounds of one type; None is reported and not judged.

    `arithmetic` is the runtime's own: relative error, NMSE and mean KL against a reference made of
    the stored weights, and the NMSE there at the context's end. `steps` are relative errors of the
    artefact against itself: in pieces through its cache, in a padded batch. The other bounds are
    what the type itself costs, against the source. `seen` records the measurements they rest on.
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
        """The bounds by name of check."""
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
