"""Verify an artefact: compare its files and its outputs with the checkpoint it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cgconvert.errors import CgconvertError, UsageError, in_words
from cgconvert.formats.registry import load
from cgconvert.io.cache import cache_folder
from cgconvert.io.progress import Amount, Progress, SilentProgress, expect_steps
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from cgconvert.runtimes import open_runtime, runtime_class
from cgconvert.runtimes.runtime import Runtime
from cgconvert.texts.text import Text
from cgconvert.verification.checks import LogitComparisons, run_checks
from cgconvert.verification.evidence import gather_evidence
from cgconvert.verification.observe import NEW_TOKENS, Observation, observe
from cgconvert.verification.promise import check_promise, read_promise
from cgconvert.verification.prompts import PROMPTS, TEXT_TOKENS, texts_sha256, windows
from cgconvert.verification.provenance import check_provenance
from cgconvert.verification.reference import CachedReference, Reference
from cgconvert.verification.report.model import Report, rounded
from cgconvert.verification.source_groups import check_source_groups
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
from cgconvert.write.hashing import file_sha256, hash_checkpoint
from cgconvert.write.manifest import manifest_path
from cgconvert.write.promise import Promise

__all__ = ["MOST_STEPS", "verify"]

FILE_STEPS, RUN_STEPS, WITNESS_STEPS, REFERENCE_STEPS = 3, 5, 1, 2
"""Steps of progress: hashes, groups of qkv_proj and weights; the runtime; transformers; references.

Some need not be taken, such as what was measured before.
"""

MOST_STEPS = FILE_STEPS + RUN_STEPS + WITNESS_STEPS + REFERENCE_STEPS
"""The most steps of progress that verifying one artefact takes."""

NOT_OPENED = "-"
"""The version of a runtime that could not open the artefact."""


def verify(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    source: Checkpoint,
    device: str = "auto",
    *,
    thresholds: Mapping[str, float | None] | None = None,
    new_tokens: int = NEW_TOKENS,
    texts: Sequence[Text] = (),
    text_tokens: int = TEXT_TOKENS,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check an artefact against the checkpoint it was made from.

    Its manifest, stored weights and settings are checked first, before anything runs. Then the
    artefact runs and is closed, and the references run over the same tokens. A check that fails is
    in the report and raises nothing. If the files already failed, and then the runtime cannot open
    the artefact or breaks off, that is a failed check too, with the name "runtime".

    Args:
        artefact: The file or folder.
        format: Its format.
        type: The name of its type.
        source: The checkpoint.
        device: "cpu", "cuda" or "auto", for the runtime and for the references.
        thresholds: Bounds that replace those of the type, by name of check; a check with the
            bound None is reported and cannot fail.
        new_tokens: How many greedy tokens are generated after each opening.
        texts: Texts on which logits are compared, beside the built-in prompts.
        text_tokens: How many tokens of each text are used.
        runtime: The runtime's name; None for the format's default.
        threads: CPU threads of the runtime; None for its default.
        progress: Gets the steps.

    Raises:
        InputError: The artefact or the source cannot be read, a threshold is unknown, or a text is
            too short.
        UsageError: The runtime (MissingRuntimeError) or the device is not there.
    """
    progress = progress or SilentProgress()
    unquantized_dtype = load(format).unquantized_types.get(type)
    is_named = type not in load(format).thresholds and load(format).is_type_name(type)
    bounds_type = load(format).bounds_type(artefact) if is_named else type
    source_reference = Reference(
        source.decoder,
        device=device,
        weight_dtype=_reference_dtype(unquantized_dtype),
        progress=progress,
    )
    thresholds_for(
        format, bounds_type, overrides=thresholds
    )  # raises for a mistake before the long work
    context = source.geometry.n_positions
    text_windows = {text: windows(text, source.tokenizer, text_tokens, context) for text in texts}
    expect_steps(progress, MOST_STEPS)
    hashes, source_sha256 = _hashes(artefact, source, progress)
    subject = _ArtefactUnderTest(
        path=artefact,
        format=format,
        unquantized_dtype=unquantized_dtype,
        source=source,
        device=device,
        runtime=runtime_class(format, runtime).name,
        threads=threads,
        progress=progress,
    )

    cache = cache_folder() / "reference"
    checks = [check_provenance(artefact, hashes, source_sha256, source.origin)]
    checks += check_source_groups(source, source_sha256, cache, progress)
    expect_steps(progress, MOST_STEPS - FILE_STEPS + 1)
    file_checks, tensor_errors, has_source_weights = subject.check_files()
    checks += file_checks
    promise = read_promise(artefact, source.tokenizer.size)
    if isinstance(promise, Check):
        checks.append(promise)
    promised_windows = promise.windows if isinstance(promise, Promise) else ()
    run = subject.run(
        [*(ids for id_windows in text_windows.values() for ids in id_windows), *promised_windows],
        new_tokens,
        files_failed=worst_verdict(file_checks) == Verdict.FAIL,
    )
    observation = run.observation
    reference_steps = REFERENCE_STEPS - has_source_weights if observation else 0
    expect_steps(progress, WITNESS_STEPS + reference_steps)
    witness = call_once(
        source,
        source_sha256,
        observation.openings if observation else (),
        max(map(len, observation.generated), default=0) if observation else 0,
        source_reference.weight_dtype,
        progress,
    )
    witness = within_format(witness, load(format), observation.eos_token_ids if observation else ())
    checks += check_source(witness)
    checks += check_files(witness, subject.read_tokens(witness), subject.read_settings())
    expect_steps(progress, reference_steps)
    series: dict[str, list[float | None]] = {}
    if run.failure is not None:
        checks.append(run.failure)
    if run.observation is not None:
        evidence = gather_evidence(
            run.observation,
            source,
            CachedReference(source_reference, source_sha256, cache),
            None if has_source_weights else subject.open_stored_reference,
            partial(subject.open_with_float_activations, run.runtime["device"]),
            load(format).kept_eos_ids(source),
        )
        comparisons = LogitComparisons.of(evidence)
        bounds = thresholds_for(format, bounds_type, run.runtime["device"], thresholds)
        checks += run_checks(evidence, comparisons, bounds)
        if isinstance(promise, Promise):
            checks.append(check_promise(promise, run.observation, comparisons))
        compared = comparisons.with_source
        checks += check_observation(
            witness,
            run.observation,
            2 * compared.max_difference if compared is not None else None,
            is_quantized=unquantized_dtype is None,
        )
        if comparisons.with_source is not None:
            series = {"logits.kl": rounded(comparisons.with_source.kl)}
    expect_steps(progress, 0)
    progress.finish()
    return Report(
        artefact={"path": str(artefact), "format": format, "type": type, "files": hashes},
        source={"name": source.name, "layout": source.layout, "sha256": source_sha256},
        reference={
            "weights": str(source_reference.weight_dtype or source.decoder.dtype),
            "compute": "float32",
            "device": source_reference.device.type,
        },
        runtime=run.runtime,
        prompts=_prompts_entry(run.observation, text_windows),
        texts=_texts_entry(run.observation),
        checks=tuple(checks),
        series=series,
        tensors=tuple(tensor_errors),
    )


@dataclass(frozen=True)
class _Run:
    """What came of running the artefact.

    Attributes:
        runtime: The report's `runtime`: name, version and device.
        observation: What the artefact did; None if it did not run to the end.
        failure: The failed check that says why it did not.
    """

    runtime: Mapping[str, str]
    observation: Observation | None
    failure: Check | None = None


@dataclass(frozen=True)
class _ArtefactUnderTest:
    """An artefact, its source, and how it is to be run.

    Attributes:
        path: The file or folder.
        format: The name of its format.
        unquantized_dtype: What most of its bytes are stored as; None if they are quantized.
        source: The checkpoint it was made from.
        device: "cpu", "cuda" or "auto".
        runtime: The name of the runtime.
        threads: CPU threads of the runtime; None for its default.
        progress: Gets the steps.
    """

    path: Path
    format: str
    unquantized_dtype: DType | None
    source: Checkpoint
    device: str
    runtime: str
    threads: int | None
    progress: Progress

    def check_files(self) -> tuple[list[Check], list[TensorError], bool]:
        """Check the stored weights, settings and tokenizer files; nothing runs.

        Returns the checks, the errors of all tensors, and whether the stored weights are exactly
        those of the source's reference.
        """
        weight_checks, tensor_errors = check_weights(
            self.path, self.format, self.source.decoder, self.progress
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
    ) -> _Run:
        """Open the artefact in its runtime, observe what it does, and close it.

        If the checks of its files failed, the artefact may be unable to run, so an error of the
        runtime becomes a failed check. Otherwise it is raised; the error for a runtime or device
        that is not there always is.
        """
        runtime = {"name": self.runtime, "version": NOT_OPENED, "device": self.device}
        try:
            opened = open_runtime(
                self.format, self.path, self.device, name=self.runtime, threads=self.threads
            )
            try:
                runtime |= {"version": opened.version, "device": opened.device}
                observation = observe(
                    opened,
                    self.source,
                    text_windows,
                    new_tokens=new_tokens,
                    progress=self.progress,
                )
            finally:
                opened.close()
        except CgconvertError as error:
            is_absent = isinstance(error, UsageError) and runtime["version"] == NOT_OPENED
            if is_absent or not files_failed:
                raise
            detail = in_words(str(error))
            return _Run(runtime, None, Check("runtime", None, None, "<=", Verdict.FAIL, detail))
        return _Run(runtime, observation)

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
        runtime = runtime_class(self.format, self.runtime)
        return runtime.open_with_float_activations(self.path, device, self.threads)

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


def _reference_dtype(unquantized_dtype: DType | None) -> DType | None:
    """The type that the source's weights are rounded to for the reference of an artefact.

    It is float16, but None (not rounded) for types of a wider range, because these keep weights
    that float16 cannot hold. `unquantized_dtype` is the artefact's, None if it is quantized.
    """
    is_wide = unquantized_dtype in (FLOAT32, BFLOAT16)
    return None if is_wide else FLOAT16


def _prompts_entry(
    observation: Observation | None, text_windows: Mapping[Text, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """The report's `prompts`: what the artefact was fed (see report.model)."""
    sequences = observation.sequences if observation else ()
    return {
        "sha256": texts_sha256(PROMPTS),
        "sequences": len(sequences),
        "tokens": sum(map(len, sequences)),
        "lengths": tuple(map(len, sequences)),
        "texts": tuple(
            {
                "name": text.name,
                "sha256": text.sha256,
                "sequences": len(id_windows),
                "tokens": sum(map(len, id_windows)),
            }
            for text, id_windows in text_windows.items()
        ),
    }


def _texts_entry(observation: Observation | None) -> dict[str, Any]:
    """The report's `texts`: those on which the tokenizers were compared."""
    texts = [run.text for run in observation.tokenizer_runs] if observation else []
    return {"sha256": texts_sha256(texts), "count": len(texts)}


def _hashes(artefact: Path, source: Checkpoint, progress: Progress) -> tuple[dict[str, str], str]:
    """Hash every file of an artefact but its manifest, and the source.

    Returns the SHA-256 of each file by its path in the artefact, and that of the source.
    """
    paths = {artefact.name: artefact}
    if artefact.is_dir():
        paths = {
            path.relative_to(artefact).as_posix(): path
            for path in sorted(artefact.rglob("*"))
            if path.is_file() and path != manifest_path(artefact)
        }
    total = sum(path.stat().st_size for path in (*paths.values(), *source.files))
    progress.step("hashing", Amount(total, "bytes"))
    hashes = {name: file_sha256(path, progress.advance) for name, path in paths.items()}
    return hashes, hash_checkpoint(source, advance=progress.advance)["sha256"]
