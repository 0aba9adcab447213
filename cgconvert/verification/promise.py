"""The check that an artefact loses no more than its quantizer measured.

The bounds of a type allow what any quantizer of it may lose. A calibrated artefact is far better,
so in those bounds most of what calibration gained can be lost unseen.
"""

from __future__ import annotations

import math
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.verification.checks import LogitComparisons
from cgconvert.verification.observe import Observation
from cgconvert.verification.thresholds import Check, Verdict, at_most
from cgconvert.write.manifest import find_manifest
from cgconvert.write.promise import Promise

__all__ = ["CHECK_NAME", "check_promise", "read_promise"]

CHECK_NAME = "calibration.loss"

STANDARD_ERRORS = 3
"""How many standard errors of the promised mean are allowed on top."""

ROUNDING = 2e-6
"""The divergence of a source that is not float16 from the reference, which rounds it to that."""


def read_promise(artefact: Path, vocab_size: int) -> Promise | Check | None:
    """Read the promise in an artefact's manifest.

    None if there is none, or no manifest that can be read, which `provenance` says. A failed check
    if it cannot be read.
    """
    try:
        manifest = find_manifest(artefact)
    except InputError:
        return None
    try:
        return None if manifest is None else Promise.of(manifest.options, vocab_size)
    except InputError as error:
        return Check(CHECK_NAME, None, None, "<=", Verdict.FAIL, str(error))


def check_promise(
    promise: Promise, observation: Observation, comparisons: LogitComparisons
) -> Check:
    """Compare the artefact's mean divergence on the promise's windows with the promise.

    The quantizer measured in float32. A runtime that rounds activations adds an error of its own,
    which the comparison with the stored weights measures on the same tokens. The square root of a
    small divergence is a distance, and distances add up at most; so the bound is (sqrt(promise) +
    sqrt(runtime's divergence))^2, and the promise's own error.

    Args:
        promise: The promise.
        observation: What the artefact did. Its last sequences are the promise's windows.
        comparisons: Its logits beside those of the references.
    """
    detail = f"{promise.kl:.3g} ± {promise.standard_error:.2g} promised on {promise.tokens} tokens"
    compared = comparisons.with_source
    is_whole = observation.sequences[-len(promise.windows) :] == promise.windows
    if compared is None or not is_whole:
        return Check(CHECK_NAME, None, None, "<=", Verdict.INFO, f"{detail}; not measured")
    tokens = slice(len(compared.kl) - promise.tokens, None)
    loss = float(compared.kl[tokens].mean())
    stored = comparisons.with_stored
    # Rounding can make a divergence of 0 slightly negative; NaN stays, and fails.
    noise = 0.0 if stored is None else float(stored.kl[tokens].mean())
    noise = max(0.0, noise) if not math.isnan(noise) else 0.0
    bound = (math.sqrt(promise.kl) + math.sqrt(noise)) ** 2
    bound += STANDARD_ERRORS * promise.standard_error + ROUNDING
    if noise > 0:
        detail += f"; the runtime's arithmetic adds {noise:.2g}"
    return at_most(CHECK_NAME, loss, bound, detail)
