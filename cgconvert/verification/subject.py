"""An artefact that is verified: checks of its files, a run in its runtime, and what judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cgconvert.errors import (
    CgconvertError,
    InputError,
    MissingRuntimeError,
    RuntimeEndedError,
    UsageError,
    in_words,
)
from cgconvert.formats.registry import load
from cgconvert.io.progress import Progress, expect_steps
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import FLOAT16, FLOAT32, DType
from cgconvert.runtimes import open_runtime, open_with_float_activations
from cgconvert.runtimes.runtime import Runtime
from cgconvert.verification.checks import LogitComparisons, run_checks
from cgconvert.verification.evidence import gather_evidence
from cgconvert.verification.observe import Observation, observe, observe_quickly
from cgconvert.verification.promise import check_promise
from cgconvert.verification.reference import CachedReference, Reference
from cgconvert.verification.report.model import rounded
from cgconvert.verification.thresholds import (
    Check,
    Verdict,
    no_differences,
    thresholds_for,
    worst_verdict,
)
from cgconvert.verification.weights import TensorError, check_weights
from cgconvert.verification.witness.call import Witness, call_once
from cgconvert.verification.witness.checks import (
    check_files,
    check_observation,
    check_source,
    within_format,
)
from cgconvert.verification.witness.opening import NoWitnessError
from cgconvert.verification.witness.settings import read_artefact_settings
from cgconvert.verification.witness.tokenizer import TokenReading, read_artefact_tokens
from cgconvert.write.promise import Promise

__all__ = ["NOT_OPENED", "REFERENCE_STEPS", "WITNESS_STEPS", "ArtefactUnderTest", "Run"]

WITNESS_STEPS, REFERENCE_STEPS = 1, 2
"""Steps of progress: transformers; the references."""

NOT_OPENED = "-"
"""The version of a runtime that could not open the artefact."""


@dataclass(frozen=True)
class Run:
    """The outcome of running the artefact.

    Attributes:
        runtime: The report's `runtime`: name, version and device.
        observation: What the artefact did; None if it did not run to the end.
        failure: The failed check that says why it did not.
    """

    runtime: Mapping[str, str]
    observation: Observation | None
    failure: Check | None = None


@dataclass(frozen=True)
class ArtefactUnderTest:
    """An artefact, its source, and how it is to be run.

    Attributes:
        path: The file or folder.
        format: The name of its format.
        bounds_type: The type whose bounds it is held to.
        unquantized_dtype: The type that most of its bytes are stored in; None if they are
            quantized.
        source: The checkpoint it was made from.
        device: One of model.device.DEVICES.
        runtime: The name of the runtime.
        threads: CPU threads of the runtime; None for its default.
        progress: Gets the steps.
    """

    path: Path
    format: str
    bounds_type: str
    unquantized_dtype: DType | None
    source: Checkpoint
    device: str
    runtime: str
    threads: int | None
    progress: Progress

    def check_files(self, *, quick: bool) -> tuple[list[Check], list[TensorError], bool]:
        """Check the stored weights, settings and tokenizer files; nothing runs.

        Returns the checks, the errors of all tensors, and whether the stored weights are exactly
        those of the source's reference.
        """
        weight_checks, tensor_errors = check_weights(
            self.path, self.format, self.source.decoder, self.progress, quick=quick
        )
        differences = load(self.format).settings(self.path, self.source)
        file_checks = [
            no_differences("settings", differences.settings),
            no_differences("tokenizer.files", differences.tokenizer),
        ]
        checks = [*weight_checks, *file_checks]
        return checks, tensor_errors, self._has_reference_weights(weight_checks)

    def run(
        self, text_windows: Sequence[Sequence[int]], new_tokens: int, *, files_failed: bool
    ) -> Run:
        """Open the artefact in its runtime, observe what it does, and close it.

        If the checks of its files failed, the artefact may be unable to run, so an error of the
        runtime becomes a failed check; a runtime that is not installed, and one that crashes,
        always does. Any other error is raised. Without `new_tokens` a quick look is taken, at one
        prompt.
        """
        runtime = {"name": self.runtime, "version": NOT_OPENED, "device": self.device}
        try:
            opened = open_runtime(
                self.format, self.path, self.device, name=self.runtime, threads=self.threads
            )
            try:
                runtime |= {"version": opened.version, "device": opened.device}
                observation = (
                    observe(
                        opened,
                        self.source,
                        text_windows,
                        new_tokens=new_tokens,
                        progress=self.progress,
                    )
                    if new_tokens
                    else observe_quickly(opened, self.source, self.progress)
                )
                opened.check_unchanged()
            finally:
                opened.close()
        except CgconvertError as error:
            detail = in_words(str(error))
            failure = Check("runtime", None, None, "<=", Verdict.FAIL, detail)
            if runtime["version"] == NOT_OPENED and isinstance(error, UsageError):
                if self.device == "cuda" and not isinstance(error, MissingRuntimeError):
                    raise  # the device is not there, for no artefact
                return Run({**runtime, "missing": detail}, None, failure)
            if not files_failed and not isinstance(error, RuntimeEndedError):
                raise
            return Run(runtime, None, failure)
        return Run(runtime, observation)

    def judge(
        self,
        run: Run,
        source_reference: CachedReference,
        has_source_weights: bool,
        thresholds: Mapping[str, float | None] | None,
        promise: Promise | Check | None = None,
    ) -> tuple[list[Check], dict[str, list[float | None]]]:
        """Call the witness and run the references; return the checks and the report's series."""
        observation, reference = run.observation, source_reference.reference
        reference_steps = REFERENCE_STEPS - has_source_weights if observation else 0
        expect_steps(self.progress, WITNESS_STEPS + reference_steps)
        witness = call_once(
            self.source,
            source_reference.source_sha256,
            observation.openings if observation else (),
            max(map(len, observation.generated), default=0) if observation else 0,
            reference.weight_dtype,
            self.progress,
        )
        witness = within_format(
            witness, load(self.format), observation.eos_token_ids if observation else ()
        )
        checks = check_source(witness)
        checks += check_files(witness, self.read_tokens(witness), self.read_settings())
        expect_steps(self.progress, reference_steps)
        if run.failure is not None:
            checks.append(run.failure)
        if observation is None:
            return checks, {}
        evidence = gather_evidence(
            observation,
            self.source,
            source_reference,
            None if has_source_weights else self.open_stored_reference,
            partial(self.open_with_float_activations, run.runtime["device"]),
            load(self.format).kept_eos_ids(self.source),
        )
        comparisons = LogitComparisons.of(evidence)
        bounds = thresholds_for(self.format, self.bounds_type, run.runtime["device"], thresholds)
        checks += run_checks(evidence, comparisons, bounds)
        if isinstance(promise, Promise):
            checks.append(check_promise(promise, observation, comparisons))
        compared = comparisons.with_source
        checks += check_observation(
            witness,
            observation,
            2 * compared.max_difference if compared is not None else None,
            is_quantized=self.unquantized_dtype is None,
        )
        return checks, {} if compared is None else {"logits.kl": rounded(compared.kl)}

    def judge_quickly(
        self,
        run: Run,
        source_reference: CachedReference,
        has_source_weights: bool,
        thresholds: Mapping[str, float | None] | None,
    ) -> list[Check]:
        """Compare one prompt with what the stored weights give; return the checks."""
        if run.observation is None:
            return [] if run.failure is None else [run.failure]
        try:
            stored = source_reference if has_source_weights else self.open_stored_reference()
        except InputError as error:
            detail = f"its weights make no model: {in_words(str(error))}"
            return [Check("runtime.nmse", None, None, "<=", Verdict.INFO, detail)]
        evidence = gather_evidence(
            run.observation,
            self.source,
            stored,
            None,
            eos_token_ids=load(self.format).kept_eos_ids(self.source),
        )
        bounds = thresholds_for(self.format, self.bounds_type, run.runtime["device"], thresholds)
        return run_checks(evidence, LogitComparisons.of(evidence), bounds)

    def read_tokens(self, witness: Witness) -> TokenReading | str:
        """Read the artefact's special tokens and templates, or say why they cannot be read."""
        if witness.tokenizer is None:
            return witness.no_tokenizer
        try:
            return read_artefact_tokens(self.path)
        except (CgconvertError, NoWitnessError) as error:
            return in_words(str(error))

    def read_settings(self) -> dict[str, dict[str, Any]]:
        """Read the artefact's settings of sampling; those of a broken file are left out."""
        try:
            return read_artefact_settings(self.path)
        except CgconvertError:  # a check of its own says so
            return {}

    def open_stored_reference(self) -> Reference:
        """Make the reference with the artefact's own weights.

        Raises InputError if they make no model.
        """
        decoder = load(self.format).decoder(self.path)
        return Reference(decoder, device=self.device, weight_dtype=None, progress=self.progress)

    def open_with_float_activations(self, device: str) -> Runtime | None:
        """Open the artefact once more (see Runtime.open_with_float_activations)."""
        return open_with_float_activations(
            self.format, self.path, device, name=self.runtime, threads=self.threads
        )

    def _has_reference_weights(self, weight_checks: Sequence[Check]) -> bool:
        """Whether the stored weights are those of the source's reference, bit for bit.

        Formats keep vectors in float32 that the reference rounds to float16 like all other weights.
        So a float16 artefact has the reference's weights only if the source is float16 too.
        """
        is_quantized = any(check.name == "weights.error" for check in weight_checks)
        if is_quantized or worst_verdict(weight_checks) == Verdict.FAIL:
            return False
        stored = self.unquantized_dtype
        return stored == FLOAT32 or stored == self.source.decoder.dtype == FLOAT16
