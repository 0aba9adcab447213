"""Compare an artefact with the witness, which is what transformers read from the source.

Where transformers cannot be a witness, the check is reported without a verdict, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cgconvert.formats.base import Format
from cgconvert.verification.metrics import first_difference
from cgconvert.verification.observe import Observation, TokenizerRun
from cgconvert.verification.thresholds import Check, Verdict, at_most, no_differences
from cgconvert.verification.witness.call import Witness
from cgconvert.verification.witness.model import Continuation
from cgconvert.verification.witness.settings import settings_differences
from cgconvert.verification.witness.tokenizer import TokenizerReading, TokenReading

__all__ = ["check_files", "check_observation", "check_source", "within_format"]

LOGITS_BOUND = 1e-5
"""The bound of witness.logits: transformers and the reference compute the same sums in float32, in
another order. It is the runtime.relative_error of float32 artefacts, which compares the same two
(formats/huggingface/format.py: at most 2.4e-6 was seen)."""


def within_format(
    witness: Witness, artefact_format: Format, eos_token_ids: Sequence[int]
) -> Witness:
    """Leave out what a format has no place for: names of chat templates, and too many stops.

    A stop is left out only where the artefact names as many as it can, `eos_token_ids`.
    """
    if witness.tokenizer is not None and artefact_format.template_names is not None:
        tokens = witness.tokenizer.tokens
        templates = {
            name: template
            for name, template in tokens.templates.items()
            if template and artefact_format.template_names.fullmatch(name)
        }
        tokens = replace(tokens, templates=templates)
        witness = replace(witness, tokenizer=replace(witness.tokenizer, tokens=tokens))
    most = artefact_format.max_eos_ids
    if most is None or len(eos_token_ids) < most:
        return witness
    named = tuple(index for index in witness.stop_ids if index in eos_token_ids)
    return replace(witness, stop_ids=named)


def check_source(witness: Witness) -> list[Check]:
    """Check that cgconvert's reference computes what transformers does from the source's files."""
    name = "witness.logits"
    if witness.model is None:
        return [_not_applicable(name, witness.no_model)]
    logits = witness.model.logits
    if logits.relative_error is None:
        return [Check(name, None, LOGITS_BOUND, "<=", Verdict.FAIL, logits.detail)]
    return [at_most(name, logits.relative_error, LOGITS_BOUND, logits.detail)]


def check_files(
    witness: Witness, artefact: TokenReading | str, settings: Mapping[str, Mapping[str, Any]]
) -> list[Check]:
    """Check special tokens, chat templates and settings of sampling.

    Args:
        witness: What transformers says of the source.
        artefact: What it says of the artefact, or why it could not read it.
        settings: The artefact's settings of sampling, by the place where they stand.
    """
    names = ("witness.special_tokens", "witness.chat_template", "witness.sampling")
    if witness.tokenizer is None:
        return [_not_applicable(name, witness.no_tokenizer) for name in names]
    if isinstance(artefact, str):
        return [Check(name, None, 0, "<=", Verdict.FAIL, artefact) for name in names[:2]]
    source = witness.tokenizer.tokens
    special = [
        f"{role} is {_id_and_text(artefact, role)}, in the source transformers reads "
        f"{_id_and_text(source, role)}"
        for role, expected in source.special_ids.items()
        for index in [artefact.special_ids.get(role)]
        if expected is not None and index != expected and not (role == "unk" and index is None)
    ]
    special += [
        f"{token!r} is special in the source and not in the artefact"
        for token in sorted(source.special - artefact.special)
    ]
    return [
        no_differences(names[0], special),
        no_differences(names[1], _template_differences(source, artefact)),
        no_differences(names[2], settings_differences(witness.settings, settings)),
    ]


def check_observation(
    witness: Witness, observation: Observation, noise: float | None, *, is_quantized: bool
) -> list[Check]:
    """Check what the artefact did: the ids of texts, and greedy text with its stop.

    Args:
        witness: What transformers says of the source.
        observation: What the artefact did.
        noise: How far two logits of artefact and source may move towards each other: twice the
            largest error of a logit on the prompts; None if logits could not be compared.
        is_quantized: Whether the artefact's weights are quantized; then other tokens are no fault.
    """
    checks = []
    if witness.tokenizer is None:
        checks.append(_not_applicable("witness.tokenizer", witness.no_tokenizer))
    else:
        checks.append(_check_tokenizer(witness.tokenizer, observation.tokenizer_runs))
        checks.append(_check_stops(witness, observation.eos_token_ids))
    name = "witness.generation"
    if witness.model is None:
        return [*checks, _not_applicable(name, witness.no_model)]
    continuations = witness.model.continuations
    if continuations is None:
        return [*checks, _not_applicable(name, witness.model.not_generated)]
    if noise is None or observation.generation_error:
        return [*checks, _not_applicable(name, "the artefact's own logits could not be compared")]
    return [
        *checks,
        _check_generation(name, witness, continuations, observation, noise, is_quantized),
    ]


def _id_and_text(reading: TokenReading, role: str) -> str:
    """The id of a role's token and its text, as in "3967 '<|endoftext|>'"."""
    index = reading.special_ids.get(role)
    return "absent" if index is None else f"{index} {reading.role_texts.get(role, '')[:40]!r}"


def _template_differences(source: TokenReading, artefact: TokenReading) -> list[str]:
    """Compare chat templates as text. They are not rendered: a template is a program."""
    differences = []
    for name in sorted(source.templates.keys() | artefact.templates.keys()):
        expected, actual = source.templates.get(name), artefact.templates.get(name)
        if actual is None:
            differences.append(f"the template {name!r} of the source is missing")
        elif expected is None:
            differences.append(f"the source has no template {name!r}")
        elif actual != expected:
            place = first_difference(actual, expected)
            differences.append(f"the template {name!r} differs from character {place + 1} on")
    return differences


def _check_tokenizer(reading: TokenizerReading, runs: Sequence[TokenizerRun]) -> Check:
    """Check that the artefact's tokenizer gives the ids and texts of transformers' tokenizer."""
    differences = []
    for run in runs:
        ids, decoded = reading.texts[run.text]
        if run.ids != ids:
            place = first_difference(run.ids, ids)
            differences.append(
                f"{run.text[:20]!r}: token {place + 1} is {list(run.ids[place : place + 3])}, "
                f"transformers reads {list(ids[place : place + 3])} in the source"
            )
        elif run.decoded != decoded:
            place = first_difference(run.decoded, decoded)
            differences.append(
                f"character {place + 1} comes back as {run.decoded[place : place + 8]!r}, "
                f"in transformers as {decoded[place : place + 8]!r}"
            )
    whose = "the source's own tokenizer" if reading.is_own else "GPT-2's with CodeGen's runs"
    detail = f"{len(runs)} texts, {whose} in transformers"
    if differences:
        detail = f"{len(differences)} of {len(runs)} texts; {differences[0]}"
    return at_most("witness.tokenizer", float(len(differences)), 0, detail)


def _check_stops(witness: Witness, actual: Sequence[int]) -> Check:
    """Check that the artefact stops at the ids at which the source stops.

    `actual` are the artefact's. The value of the check is how many ids are in only one of the two;
    those of the artefact alone count only if the source's tokenizer has an eos token.
    """
    assert witness.tokenizer is not None
    expected = witness.stop_ids
    missing = [index for index in expected if index not in actual]
    # A tokenizer without an eos token has a stop all the same: the end of text.
    has_eos = witness.tokenizer.tokens.special_ids["eos"] is not None
    extra = [index for index in actual if index not in expected] if has_eos else []
    differences = [f"id {index} of the source does not stop the artefact" for index in missing]
    differences += [f"the artefact stops at id {index}, the source does not" for index in extra]
    detail = f"{', '.join(map(str, expected))} in the source, read by transformers"
    detail = f"{'; '.join(differences)}; {detail}" if differences else detail
    return at_most("witness.stop_ids", float(len(differences)), 0, detail)


def _check_generation(
    name: str,
    witness: Witness,
    continuations: Sequence[Continuation],
    observation: Observation,
    noise: float,
    is_quantized: bool,
) -> Check:
    """Check that the artefact generates what transformers does, and stops where it does.

    The value is the number of openings that go on or stop otherwise. Both are compared up to the
    first token at which either picks another one within the noise.
    """
    stops = observation.stopping_ids
    differences, excused, count = [], 0, 0
    for number, (expected, generated) in enumerate(
        zip(continuations, observation.generated, strict=False),
        1,  # not all may be continued
    ):
        ids = generated[: len(expected.ids)]
        place = first_difference(ids, expected.ids[: len(ids)])
        # llama.cpp stops at some tokens by their text, which is not the file's fault.
        own_stops = observation.eos_token_ids
        stop = next((i for i, token in enumerate(ids[:place]) if token in own_stops), None)
        count += place
        if stop is not None and ids[stop] not in witness.stop_ids:
            differences.append(
                f"opening {number}: the artefact stops at token {stop + 1}, id {ids[stop]}; "
                "transformers goes on"
            )
        elif place and ids[place - 1] in witness.stop_ids and ids[place - 1] not in stops:
            differences.append(
                f"opening {number}: transformers stops at token {place}, id {ids[place - 1]}; "
                "the artefact goes on"
            )
        elif place < len(ids):
            logits = expected.logits[place]
            margin = float(logits[expected.ids[place]] - logits[ids[place]])
            if is_quantized or margin <= noise:
                excused += 1
            else:
                differences.append(
                    f"opening {number}: token {place + 1} is {ids[place]}, in transformers "
                    f"{expected.ids[place]}, margin {margin:.3g}, noise {noise:.3g}"
                )
    stop_text = ", ".join(map(str, witness.stop_ids))
    detail = f"{count} greedy tokens, without penalties, to a stop at id {stop_text}"
    if excused:
        why = "quantization" if is_quantized else "the noise"
        detail += f"; {excused} end early at a token that {why} may change"
    if differences:
        detail = f"{differences[0]}; {detail}"
    return at_most(name, float(len(differences)), 0, detail)


def _not_applicable(name: str, reason: str) -> Check:
    """A check without a verdict, because transformers is no witness."""
    return Check(name, None, None, "<=", Verdict.INFO, f"not applicable: {reason}")
