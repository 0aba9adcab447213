"""Verify an artefact: compare its files and its outputs with the checkpoint it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cgconvert.errors import CgconvertError, UsageError
from cgconvert.formats.registry import load
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.runtimes import Runtime, open_runtime, runtime_class
from cgconvert.sources.tarball import cache_folder
from cgconvert.texts.text import Text
from cgconvert.verify.checks import Losses, run_checks
from cgconvert.verify.evidence import gather_evidence
from cgconvert.verify.exact_matrices import check_exact_matrices
from cgconvert.verify.observe import NEW_TOKENS, Observed, observe
from cgconvert.verify.prompts import PROMPTS, TEXT_TOKENS, digest, windows
from cgconvert.verify.provenance import check_provenance
from cgconvert.verify.reference import Reference
from cgconvert.verify.reference_cache import CachedReference
from cgconvert.verify.report.model import Report, rounded
from cgconvert.verify.thresholds import thresholds_for
from cgconvert.verify.verdict import Check, Verdict, no_faults, overall
from cgconvert.verify.weights import TensorError, check_weights
from cgconvert.write.hashing import file_sha256, source_digest
from cgconvert.write.manifest import manifest_path

__all__ = ["verify"]

NOT_OPENED = "-"
"""The version of a runtime that could not open the artefact."""

UNQUANTIZED: Mapping[str, torch.dtype] = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
"""What the unquantized types store."""


def verify(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    reference: Checkpoint,
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

    Its manifest, stored weights and settings come first, before anything runs. Then the artefact
    runs and is closed, then the reference goes through its layers once. A check that fails is in
    the report and raises nothing. Where the files already failed and the runtime cannot open the
    artefact or breaks off, that too is a failed check, called runtime.

    Args:
        artefact: The file or folder.
        format: Its format.
        type: What most of its bytes are stored as.
        reference: The checkpoint.
        device: "cpu", "cuda" or "auto", for the runtime and for the reference.
        thresholds: Other bounds, by name of check; None only reports the value.
        new_tokens: Greedy tokens after each opening.
        texts: Texts on which logits are compared too.
        text_tokens: How many tokens of each text are used.
        runtime: The runtime's name; the format's default where it is None.
        threads: CPU threads of the runtime.
        progress: Gets the steps.

    Raises:
        InputError: The artefact or the reference cannot be read, a threshold is unknown, or a text
            is too short.
        UsageError: The runtime (MissingRuntimeError) or the device is not there.
    """
    progress = progress or Silent()
    source = Reference(
        reference.decoder, device=device, weights=_reference_weights(type), progress=progress
    )
    thresholds_for(format, type, overrides=thresholds)  # a mistake there shows before the work
    context = reference.geometry.n_positions
    text_windows = {
        text: windows(text, reference.tokenizer, text_tokens, context) for text in texts
    }
    files, source_sha256 = _file_hashes(artefact), source_digest(reference)["sha256"]
    subject = _Subject(
        artefact=artefact,
        format=format,
        type=type,
        checkpoint=reference,
        device=device,
        runtime=runtime_class(format, runtime).name,
        threads=threads,
        progress=progress,
    )

    checks = [check_provenance(artefact, files, source_sha256, reference.origin)]
    file_checks, tensors, weights_equal = subject.check_files()
    checks += file_checks
    run = subject.run(
        [window for cut in text_windows.values() for window in cut],
        new_tokens,
        files_failed=overall(file_checks) == Verdict.FAIL,
    )
    series: dict[str, list[float | None]] = {}
    if run.failure is not None:
        checks.append(run.failure)
    if run.observed is not None:
        evidence = gather_evidence(
            run.observed,
            reference,
            CachedReference(source, source_sha256, cache_folder() / "reference"),
            None if weights_equal else subject.stored_reference,
        )
        losses = Losses.of(evidence)
        bounds = thresholds_for(format, type, run.runtime["device"], thresholds)
        checks += run_checks(evidence, losses, bounds)
        checks += check_exact_matrices(evidence, partial(subject.open_exact, run.runtime["device"]))
        series = {"logits.kl": rounded(losses.source.kl)} if losses.source else {}
    progress.finish()
    return Report(
        artefact={"path": str(artefact), "format": format, "type": type, "files": files},
        source={"name": reference.name, "layout": reference.layout, "sha256": source_sha256},
        reference={
            "weights": _dtype_name(source.weights or reference.decoder.dtype),
            "compute": "float32",
            "device": source.device.type,
        },
        runtime=run.runtime,
        prompts=_prompts_entry(run.observed, text_windows),
        texts=_texts_entry(run.observed),
        checks=tuple(checks),
        series=series,
        tensors=tuple(tensors),
    )


@dataclass(frozen=True)
class _Run:
    """The runtime and what the artefact did in it, or the failed check of one that does not run."""

    runtime: Mapping[str, str]
    observed: Observed | None
    failure: Check | None = None


@dataclass(frozen=True)
class _Subject:
    """The artefact and how it is verified: the arguments of `verify` that its steps need."""

    artefact: Path
    format: str
    type: str
    checkpoint: Checkpoint
    device: str
    runtime: str
    threads: int | None
    progress: Progress

    def check_files(self) -> tuple[list[Check], list[TensorError], bool]:
        """Check weights and settings as stored.

        Returns the checks, the errors of all tensors, and whether the stored weights are exactly
        the reference's.
        """
        weights, tensors = check_weights(
            self.artefact, self.format, self.checkpoint.decoder, self.progress
        )
        differences = load(self.format).settings(self.artefact, self.checkpoint)
        settings = [
            no_faults("settings", differences.settings),
            no_faults("tokenizer.files", differences.tokenizer),
        ]
        return [*weights, *settings], tensors, self._weights_equal(weights)

    def run(
        self, text_windows: Sequence[Sequence[int]], new_tokens: int, *, files_failed: bool
    ) -> _Run:
        """Run the artefact and close it.

        An artefact whose files failed may not run; that is a failed check. All other errors, and an
        absent runtime or device, are raised.
        """
        runtime = {"name": self.runtime, "version": NOT_OPENED, "device": self.device}
        try:
            opened = open_runtime(
                self.format, self.artefact, self.device, name=self.runtime, threads=self.threads
            )
            try:
                runtime |= {"version": opened.version, "device": opened.device}
                observed = observe(
                    opened,
                    self.checkpoint,
                    text_windows,
                    new_tokens=new_tokens,
                    progress=self.progress,
                )
            finally:
                opened.close()
        except CgconvertError as error:
            absent = isinstance(error, UsageError) and runtime["version"] == NOT_OPENED
            if absent or not files_failed:
                raise
            return _Run(runtime, None, Check("runtime", None, None, "<=", Verdict.FAIL, str(error)))
        return _Run(runtime, observed)

    def stored_reference(self) -> Reference:
        """The reference with the artefact's own weights.

        Raises InputError where they make no model.
        """
        decoder = load(self.format).decoder(self.artefact)
        return Reference(decoder, device=self.device, weights=None, progress=self.progress)

    def open_exact(self, device: str) -> Runtime | None:
        """The artefact once more, without quantized activations; None where it cannot run so."""
        runtime = runtime_class(self.format, self.runtime)
        return runtime.open_exact(self.artefact, device, self.threads)

    def _weights_equal(self, weights: Sequence[Check]) -> bool:
        """Whether the checks of the weights say that all are the reference's own, bit for bit.

        Formats keep vectors in float32 that the reference rounds with the rest, so a float16
        artefact is the reference's own only where the source is float16 too.
        """
        quantized = any(check.name == "weights.error" for check in weights)
        if quantized or overall(weights) == Verdict.FAIL:
            return False
        dtype = UNQUANTIZED.get(self.type)
        return dtype == torch.float32 or dtype == self.checkpoint.decoder.dtype == torch.float16


def _reference_weights(type_: str) -> torch.dtype | None:
    """The type that the source's weights are rounded to for the reference of an artefact.

    None for types wider than float16, which need not round the source to it.
    """
    wide = UNQUANTIZED.get(type_) in (torch.float32, torch.bfloat16)
    return None if wide else torch.float16


def _prompts_entry(
    observed: Observed | None, text_windows: Mapping[Text, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """The report's `prompts`."""
    sequences = observed.sequences if observed else ()
    return {
        "sha256": digest(PROMPTS),
        "sequences": len(sequences),
        "tokens": sum(map(len, sequences)),
        "lengths": tuple(map(len, sequences)),
        "texts": tuple(
            {
                "name": text.name,
                "sha256": text.sha256,
                "sequences": len(cut),
                "tokens": sum(map(len, cut)),
            }
            for text, cut in text_windows.items()
        ),
    }


def _texts_entry(observed: Observed | None) -> dict[str, Any]:
    """The report's `texts`: those of the tokenizers."""
    texts = [run.text for run in observed.tokenizer_runs] if observed else []
    return {"sha256": digest(texts), "count": len(texts)}


def _file_hashes(artefact: Path) -> dict[str, str]:
    """SHA-256 of every file of an artefact but its manifest, by path relative to it."""
    if not artefact.is_dir():
        return {artefact.name: file_sha256(artefact)}
    return {
        path.relative_to(artefact).as_posix(): file_sha256(path)
        for path in sorted(artefact.rglob("*"))
        if path.is_file() and path != manifest_path(artefact)
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
