"""What the checks judge: what an artefact did, and what two references give after the same tokens.

The artefact runs first, alone; then one pass of each reference covers the prompts and everything
that the artefact generated. One reference has the source's weights: it shows what was lost. The
other has the weights that the artefact itself stores: it shows whether the runtime computes what
the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cgconvert.errors import InputError
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.verify.distribution import Distribution
from cgconvert.verify.observe import Observed

__all__ = ["Evidence", "ReferenceModel", "ReferenceOutputs", "gather_evidence"]


class ReferenceModel(Protocol):
    """A `Reference`, or a `CachedReference` that computes nothing twice."""

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        allowed: int,
        first: Sequence[int] | None = None,
    ) -> list[Distribution]: ...


@dataclass(frozen=True)
class ReferenceOutputs:
    """A reference's distributions after the same tokens that the artefact was fed.

    `logits` after every token of all sequences, `context_end` after the last tokens of the full
    context, `generated` after each opening and each generated token but the last: where the
    artefact picked a token.
    """

    logits: Distribution
    context_end: Distribution
    generated: tuple[Distribution, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything the checks judge.

    Attributes:
        observed: What the artefact did.
        source: The reference with the source's weights.
        stored: The reference with the artefact's own weights; None where they make no model.
        stored_error: Why they make none.
        allowed: The number of ids in the source's tokenizer.
        n_positions: The source's context length.
        end_of_text: The source's end-of-text id.
    """

    observed: Observed
    source: ReferenceOutputs
    stored: ReferenceOutputs | None
    stored_error: str
    allowed: int
    n_positions: int
    end_of_text: int


def gather_evidence(
    observed: Observed,
    source: Checkpoint,
    source_reference: ReferenceModel,
    open_stored_reference: Callable[[], ReferenceModel] | None,
) -> Evidence:
    """Run both references over what the artefact was fed and wrote.

    `open_stored_reference` is None where the artefact has exactly the source's weights: then the
    source's outputs are those of the stored weights too.
    """
    allowed = source.tokenizer.size
    source_outputs = run_reference(source_reference, observed, allowed)
    stored_outputs: ReferenceOutputs | None = source_outputs
    stored_error = ""
    if open_stored_reference is not None:
        try:
            stored_outputs = run_reference(open_stored_reference(), observed, allowed)
        except InputError as error:
            stored_outputs, stored_error = None, f"its weights make no model: {error}"
    return Evidence(
        observed=observed,
        source=source_outputs,
        stored=stored_outputs,
        stored_error=stored_error,
        allowed=allowed,
        n_positions=source.geometry.n_positions,
        end_of_text=source.tokenizer.end_of_text,
    )


def run_reference(reference: ReferenceModel, observed: Observed, allowed: int) -> ReferenceOutputs:
    """One pass of a reference over all sequences, the full context and the generated texts.

    Raises InputError where the reference cannot take those tokens.
    """
    continued = [
        opening + new for opening, new in zip(observed.openings, observed.generated, strict=True)
    ]
    first_positions = [
        *[0] * len(observed.sequences),
        len(observed.full_context) - len(observed.context_end_logits),
        *(len(opening) - 1 for opening in observed.openings),
    ]
    distributions = reference.distributions(
        [*observed.sequences, observed.full_context, *continued], allowed, first_positions
    )
    count = len(observed.sequences)
    return ReferenceOutputs(
        logits=Distribution.joined(distributions[:count]),
        context_end=distributions[count],
        generated=tuple(after[:-1] for after in distributions[count + 1 :]),
    )
