"""What others compare: the last token's logits, or all of them by absolute difference.

llama.cpp's examples/model-conversion asks for a normalised mean squared error below 1e-2 after one
prompt; optimum's exporter warns where an output differs by more than 1e-3. Neither looks at
anything else, so neither is asked about more here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cgconvert.errors import CgconvertError
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.runtimes import open_runtime
from cgconvert.verify.prompts import PROMPTS
from cgconvert.verify.reference import Reference
from cgconvert.write.plan import Plan

__all__ = ["METHODS", "Peers"]

METHODS: Mapping[str, float] = {"NMSE": 1e-2, "atol": 1e-3}
PROMPT = 2


@dataclass(frozen=True)
class Peers:
    """One prompt, and what the source's float16 weights in float32 make of it."""

    source: Checkpoint
    ids: tuple[int, ...]
    expected: np.ndarray

    @classmethod
    def of(cls, source: Checkpoint) -> Peers:
        ids = source.tokenizer.encode(PROMPTS[PROMPT])[: source.geometry.n_positions // 2]
        (logits,) = Reference(source.decoder).logits([ids])
        return cls(source, tuple(ids), logits[:, : source.tokenizer.size])

    def caught(self, plan: Plan) -> dict[str, bool]:
        """By method; an artefact that does not run is caught by both."""
        try:
            runtime = open_runtime(plan.format, plan.output, "cpu", threads=1)
            try:
                found = runtime.feed(self.ids)[:, : self.source.tokenizer.size]
            finally:
                runtime.close()
        except CgconvertError:
            return dict.fromkeys(METHODS, True)
        difference = found - self.expected
        last = np.square(difference[-1]).sum() / np.square(self.expected[-1]).sum()
        values = {"NMSE": last, "atol": np.abs(difference).max()}
        return {name: not values[name] <= bound for name, bound in METHODS.items()}
