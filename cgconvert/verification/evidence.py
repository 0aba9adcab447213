"""What the checks judge: what an artefact did, and what references give after the same tokens.

The artefact runs first, alone; then one pass of each reference covers the prompts and everything
that the artefact generated. One reference has the source's weights: it shows how much the artefact
lost. The other has the weights that the artefact itself stores: it shows whether the runtime
computes what the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cgconvert.errors import InputError, in_words
from cgconvert.model.decoder import Checkpoint
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verification.metrics import Distribution
from cgconvert.verification.observe import (
    FloatActivationRun,
    Observation,
    run_with_float_activations,
)

__all__ = ["Evidence", "ReferenceModel", "ReferenceOutputs", "gather_evidence"]


class ReferenceModel(Protocol):
    """What `Reference` and `CachedReference` have in common."""

    def distributions(
        self,
        sequences: Sequence[Sequence[int]],
        tokenizer_size: int,
        first_positions: Sequence[int] | None = None,
    ) -> list[Distribution]:
        """See Reference.distributions."""


@dataclass(frozen=True)
class ReferenceOutputs:
    """A reference's distributions after the same tokens that the artefact was fed.

    Attributes:
        logits: After every token of all sequences, one sequence after the other.
        context_end: After the last tokens of the full context.
        generated: For each opening, after its last token and after each generated token but the
            last: the positions at which the artefact picked a token.
    """

    logits: Distribution
    context_end: Distribution
    generated: tuple[Distribution, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything the checks judge.

    Attributes:
        observation: What the artefact did.
        source_outputs: The outputs of the reference with the source's weights.
        stored_outputs: The outputs of the reference with the artefact's own weights; None if they
            make no model.
        stored_error: Why they make none; empty if they do.
        tokenizer_size: The number of ids in the source's tokenizer.
        n_positions: The source's context length.
        eos_token_ids: The ids at which the source stops and the artefact has to, the tokenizer's
            own first.
        float_activation_run: What the artefact did without quantized activations; None if it
            was not run so.
    """

    observation: Observation
    source_outputs: ReferenceOutputs
    stored_outputs: ReferenceOutputs | None
    stored_error: str
    tokenizer_size: int
    n_positions: int
    eos_token_ids: tuple[int, ...]
    float_activation_run: FloatActivationRun | None = None

    @property
    def has_all_logits(self) -> bool:
        """Whether the artefact gives a logit for every id of the source's tokenizer."""
        return bool(self.observation.logits.shape[1] >= self.tokenizer_size)


def gather_evidence(
    observation: Observation,
    source: Checkpoint,
    source_reference: ReferenceModel,
    open_stored_reference: Callable[[], ReferenceModel] | None,
    open_with_float_activations: Callable[[], Runtime | None] = lambda: None,
    eos_token_ids: tuple[int, ...] | None = None,
) -> Evidence:
    """Run both references over what the artefact was fed and generated.

    Args:
        observation: What the artefact did.
        source: The checkpoint that the artefact was made from.
        source_reference: The reference with the source's weights.
        open_stored_reference: Makes the reference with the artefact's own weights, or raises
            InputError if these make no model. None if they are exactly the source's: then the
            source's outputs are those of the stored weights too.
        open_with_float_activations: See Runtime.open_with_float_activations. It is called only if
            there are outputs of the stored weights to compare with.
        eos_token_ids: The source's ids at which the artefact has to stop, see Format.kept_eos_ids;
            all of them if it is None.
    """
    tokenizer_size = source.tokenizer.size
    source_outputs = _run_reference(source_reference, observation, tokenizer_size)
    stored_outputs: ReferenceOutputs | None = source_outputs
    stored_error = ""
    if open_stored_reference is not None:
        try:
            stored_outputs = _run_reference(open_stored_reference(), observation, tokenizer_size)
        except InputError as error:
            stored_outputs = None
            stored_error = f"its weights make no model: {in_words(str(error))}"
    evidence = Evidence(
        observation=observation,
        source_outputs=source_outputs,
        stored_outputs=stored_outputs,
        stored_error=stored_error,
        tokenizer_size=tokenizer_size,
        n_positions=source.geometry.n_positions,
        eos_token_ids=source.eos_token_ids if eos_token_ids is None else eos_token_ids,
    )
    if stored_outputs is None or not evidence.has_all_logits:
        return evidence
    runtime = open_with_float_activations()
    if runtime is None:
        return evidence
    return replace(evidence, float_activation_run=run_with_float_activations(runtime, observation))


def _run_reference(
    reference: ReferenceModel, observation: Observation, tokenizer_size: int
) -> ReferenceOutputs:
    """Run a reference once over all sequences, the full context and the generated texts.

    Raises InputError if the reference cannot take those tokens.
    """
    continuations = [
        opening + new_ids
        for opening, new_ids in zip(observation.openings, observation.generated, strict=True)
    ]
    first_positions = [
        *[0] * len(observation.sequences),
        len(observation.full_context) - len(observation.context_end_logits),
        *(len(opening) - 1 for opening in observation.openings),
    ]
    count = len(observation.sequences)
    if not observation.full_context:  # a quick verification has the prompts alone
        logits = Distribution.joined(reference.distributions(observation.sequences, tokenizer_size))
        return ReferenceOutputs(logits, context_end=logits[:0], generated=())
    distributions = reference.distributions(
        [*observation.sequences, observation.full_context, *continuations],
        tokenizer_size,
        first_positions,
    )
    return ReferenceOutputs(
        logits=Distribution.joined(distributions[:count]),
        context_end=distributions[count],
        generated=tuple(distribution[:-1] for distribution in distributions[count + 1 :]),
    )
