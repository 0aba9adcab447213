"""Conversion bugs planted in real artefacts of every format; `verify` must catch each of them.

`python -m tests.mutations` plants all of them and prints what is missed; see docs/mutations.md.
"""

from __future__ import annotations

from tests.mutations.calibrations import CALIBRATIONS
from tests.mutations.configs import CONFIGS
from tests.mutations.decoys import DECOYS
from tests.mutations.fine_tunes import FINE_TUNES
from tests.mutations.graphs import GRAPHS
from tests.mutations.keys import KEYS
from tests.mutations.mutation import MODELS, Mutation, plant
from tests.mutations.readers import READERS
from tests.mutations.survey import Outcome, survey, verified
from tests.mutations.tensors import TENSORS
from tests.mutations.writers import WRITERS

__all__ = [
    "MODELS", "MUTATIONS", "WRONG", "Mutation", "Outcome", "plant", "survey", "verified",
]  # fmt: skip

WRONG = {mutation.name: mutation.model for mutation in WRITERS if mutation.model}
"""Functions that give the model as a faulty writer would write it, by the name of the bug."""

MUTATIONS: tuple[Mutation, ...] = (
    *READERS, *FINE_TUNES, *WRITERS, *TENSORS, *CONFIGS, *GRAPHS, *KEYS,
    *CALIBRATIONS, *DECOYS,
)  # fmt: skip
