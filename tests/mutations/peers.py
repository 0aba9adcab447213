"""The comparisons that other converters make, for the table in docs/mutations.md.

llama.cpp's examples/model-conversion compares the last token's logits: their normalised mean
squared error must be below 1e-2. optimum's exporter warns if any logit differs by more than 1e-3.
Neither checks anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cgconvert.errors import CgconvertError
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes import open_runtime
from cgconvert.verification.prompts import PROMPTS
from cgconvert.verification.reference import Reference
from cgconvert.write.plan import Plan

__all__ = ["METHODS", "Peers"]

METHODS: Mapping[str, float] = {"NMSE": 1e-2, "atol": 1e-3}
PROMPT = 2


@dataclass(frozen=True)
class Peers:
    """One prompt, and its logits by the source's float16 weights, computed in float32."""

    source: Checkpoint
    ids: tuple[int, ...]
    expected: np.ndarray

    @classmethod
    def of(cls, source: Checkpoint) -> Peers:
        ids = source.tokenizer.encode(PROMPTS[PROMPT])[: source.geometry.n_positions // 2]
        (logits,) = Reference(source.decoder).logits([ids])
        return cls(source, tuple(ids), logits[:, : source.tokenizer.size])

    def caught(self, plan: Plan) -> dict[str, bool]:
        """Return by method whether it refuses an artefact; both refuse one that does not run."""
        try:
            runtime = open_runtime(plan.format, plan.output, "cpu", threads=1)
            try:
                logits = runtime.feed(self.ids)[:, : self.source.tokenizer.size]
            finally:
                runtime.close()
        except CgconvertError:
            return dict.fromkeys(METHODS, True)
        difference = logits - self.expected
        last = np.square(difference[-1]).sum() / np.square(self.expected[-1]).sum()
        values = {"NMSE": last, "atol": np.abs(difference).max()}
        return {name: not values[name] <= bound for name, bound in METHODS.items()}
