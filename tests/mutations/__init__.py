"""Conversion bugs, planted in real artefacts of every format: verify has to catch each of them.

`python -m tests.mutations` runs them all and says which checks fail; see docs/mutations.md.
"""

from __future__ import annotations

from .configs import CONFIGS
from .graphs import GRAPHS
from .keys import KEYS
from .mutation import Mutation, plant
from .survey import Outcome, survey, verified
from .tensors import TENSORS
from .writers import WRITERS

__all__ = [
    "MUTATIONS", "WRONG", "Mutation", "Outcome", "plant", "survey", "verified",
]  # fmt: skip

WRONG = {mutation.name: mutation.model for mutation in WRITERS if mutation.model}
"""Models as a wrong writer would have them, by the name of its mistake."""

MUTATIONS: tuple[Mutation, ...] = (*WRITERS, *TENSORS, *CONFIGS, *GRAPHS, *KEYS)
