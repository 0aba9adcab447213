"""Verify an artefact: compare its files and its outputs with the checkpoint it was made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgconvert.formats.registry import load
from cgconvert.io.admitted import UnchangedFiles
from cgconvert.io.progress import Amount, Progress, SilentProgress, expect_steps
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from cgconvert.runtimes import prepare_runtime, runtime_class
from cgconvert.texts.text import Text
from cgconvert.verification.folder_contents import check_folder_contents, judged_files
from cgconvert.verification.observe import NEW_TOKENS, Observation
from cgconvert.verification.other_model import check_reference
from cgconvert.verification.promise import read_promise
from cgconvert.verification.prompts import PROMPTS, TEXT_TOKENS, texts_sha256, windows
from cgconvert.verification.provenance import check_provenance
from cgconvert.verification.reference import CachedReference, Reference
from cgconvert.verification.report.model import Report
from cgconvert.verification.source_groups import check_source_groups
from cgconvert.verification.subject import (
    NOT_OPENED,
    REFERENCE_STEPS,
    WITNESS_STEPS,
    ArtefactUnderTest,
    Run,
)
from cgconvert.verification.thresholds import Check, Verdict, thresholds_for, worst_verdict
from cgconvert.verification.weights import TensorError
from cgconvert.verification.witness.opening import witness_imports
from cgconvert.write.hashing import file_sha256, hash_checkpoint
from cgconvert.write.manifest import artefact_files
from cgconvert.write.promise import Promise

__all__ = ["MOST_STEPS", "verify"]

FILE_STEPS, RUN_STEPS = 3, 5
"""Steps of progress: hashes, groups of qkv_proj and weights; the runtime.

Some need not be taken, such as what was measured before.
"""

MOST_STEPS = FILE_STEPS + RUN_STEPS + WITNESS_STEPS + REFERENCE_STEPS
"""The most steps of progress that verifying one artefact takes."""

QUICK_STEPS = 6
"""The most of a quick verification: hashes, weights, one prompt, tokenizers, references."""

NOT_COMPARED = (
    "most rows of quantized matrices, the groups of qkv_proj, the other prompts and texts, the "
    "cache, batches, the end of the context, greedy text, what the type loses, and transformers "
    "as a witness"
)
"""What a quick verification leaves out."""


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
    quick: bool = False,
    strict: bool = False,
    checked: Collection[Path] = (),
    progress: Progress | None = None,
) -> Report:
    """Check an artefact against the checkpoint it was made from.

    Its manifest, stored weights and settings are checked first, before anything runs. Then the
    artefact runs and is closed, and the references run over the same tokens. A check that fails is
    in the report and raises nothing. A failed check named "runtime" says that the runtime is not
    installed, that its process crashed or exceeded its limits, or that it could not open or run an
    artefact whose files have failed. Against another model only the check "reference" is made.

    Args:
        artefact: The file or folder.
        format: Its format.
        type: The name of its type.
        source: The checkpoint.
        device: One of model.device.DEVICES, for the runtime and for the references.
        thresholds: Bounds that replace those of the type, by name of check; a check with the
            bound None is reported and cannot fail.
        new_tokens: How many greedy tokens are generated after each opening.
        texts: Texts on which logits are compared, beside the built-in prompts.
        text_tokens: How many tokens of each text are used.
        runtime: The runtime's name; None for the format's default.
        threads: CPU threads of the runtime; None for its default.
        quick: Whether to leave out NOT_COMPARED; the texts are not used then.
        strict: Whether a file in its folder that belongs to no format is a failure.
        checked: The artefacts that are verified together with it.
        progress: Gets the steps.

    Raises:
        InputError: The artefact or the source cannot be read, a threshold is unknown, or a text is
            too short.
        UsageError: The device is not there.
    """
    progress = progress or SilentProgress()
    prepare_runtime(format, runtime, *(() if quick else witness_imports()))
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
    text_windows = {
        text: windows(text, source.tokenizer, text_tokens, context)
        for text in (() if quick else texts)
    }
    most_steps = QUICK_STEPS if quick else MOST_STEPS
    expect_steps(progress, most_steps)
    unchanged = UnchangedFiles(artefact_files(artefact).values())
    # Headers come before bytes: a file that they refuse is not hashed first.
    files = judged_files(artefact, format, checked)
    load(format).stored_artefact(artefact, source.decoder)
    hashes, source_sha256 = _hashes(files, source, progress)
    subject = ArtefactUnderTest(
        path=artefact,
        format=format,
        bounds_type=bounds_type,
        unquantized_dtype=unquantized_dtype,
        source=source,
        device=device,
        runtime=runtime_class(format, runtime).name,
        threads=threads,
        progress=progress,
    )

    checks: list[Check] = []
    series: dict[str, list[float | None]] = {}
    tensor_errors: list[TensorError] = []
    run = Run({"name": subject.runtime, "version": NOT_OPENED, "device": device}, None)
    wrong_reference = check_reference(artefact, format, source, source_sha256)
    if wrong_reference is not None:
        checks.append(wrong_reference)
    else:
        checks.append(check_provenance(artefact, hashes, source_sha256, source.origin))
        folder_checks = check_folder_contents(artefact, format, checked, strict=strict)
        checks += folder_checks
        if not quick:
            checks += check_source_groups(source, source_sha256, progress)
        expect_steps(progress, most_steps - (1 if quick else FILE_STEPS - 1))
        file_checks, tensor_errors, has_source_weights = subject.check_files(quick=quick)
        checks += file_checks
        promise = None if quick else read_promise(artefact, source.tokenizer.size)
        if isinstance(promise, Check):
            checks.append(promise)
        promised_windows = promise.windows if isinstance(promise, Promise) else ()
        texts_ids = [ids for id_windows in text_windows.values() for ids in id_windows]
        run = subject.run(
            [*texts_ids, *promised_windows],
            0 if quick else new_tokens,
            files_failed=worst_verdict([*folder_checks, *file_checks]) == Verdict.FAIL,
        )
        source_outputs = CachedReference(source_reference, source_sha256)
        if quick:
            checks += subject.judge_quickly(run, source_outputs, has_source_weights, thresholds)
        else:
            more_checks, series = subject.judge(
                run, source_outputs, has_source_weights, thresholds, promise
            )
            checks += more_checks
    unchanged.check()  # what was hashed, compared and run was one and the same
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
        not_compared=NOT_COMPARED if quick else "",
    )


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


def _hashes(
    paths: Mapping[str, Path], source: Checkpoint, progress: Progress
) -> tuple[dict[str, str], str]:
    """Hash the files of an artefact, by their paths in it, and the source.

    Returns the SHA-256 of each file by its path in the artefact, and that of the source.
    """
    total = sum(path.stat().st_size for path in (*paths.values(), *source.files))
    progress.step("hashing", Amount(total, "bytes"))
    hashes = {name: file_sha256(path, progress.advance) for name, path in paths.items()}
    return hashes, hash_checkpoint(source, advance=progress.advance)["sha256"]
