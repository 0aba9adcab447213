"""Run an artefact in its real runtime and hold it against the fp16 reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import CgconvertError, UsageError
from cgconvert.manifest import digest_of, file_sha256, manifest_path
from cgconvert.runtimes import RUNTIMES, Runtime, open_runtime, version_of
from cgconvert.stream.progress import Progress, Silent
from cgconvert.verify.checks import run_checks
from cgconvert.verify.evidence import Evidence, Observed, observe, witness
from cgconvert.verify.metrics import kl_divergence
from cgconvert.verify.prompts import PROMPTS, digest, tokenizer_texts
from cgconvert.verify.provenance import check_provenance
from cgconvert.verify.reference import Reference
from cgconvert.verify.report import Report, rounded
from cgconvert.verify.settings import check_settings
from cgconvert.verify.thresholds import thresholds_for
from cgconvert.verify.verdict import Check, Verdict, overall
from cgconvert.verify.weights import check_weights

__all__ = ["NEW_TOKENS", "run", "verify"]

NEW_TOKENS = 64
"""Greedy tokens after each opening, fewer where the context ends."""

OPENINGS = (2, 3)
"""The prompts that are continued: a function and a class, each with its text ahead."""

NOT_OPENED = "-"
"""The version of a runtime that could not open the artefact."""

WIDER_THAN_HALF = frozenset({"F32", "float32", "BF16", "bfloat16"})
"""Types that need not round the source to float16, so that the reference does not either."""


def verify(
    artefact: Path,
    format: str,  # noqa: A002 - what a plan and a manifest call it
    type: str,  # noqa: A002
    reference: Checkpoint,
    device: str = "auto",
    *,
    thresholds: Mapping[str, float | None] | None = None,
    new_tokens: int = NEW_TOKENS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the artefact at `artefact` against the checkpoint it was made from.

    Its manifest and stored weights come first, before anything runs: where they fail and the
    runtime cannot open it or breaks off, that is a failed check called runtime. Then the artefact
    runs and is closed, then the reference goes through its layers once.
    `device` (cpu, cuda, auto) is for both; auto takes what each can have. `thresholds` replaces
    bounds by name of check, `threads` is the runtime's. A check that fails is in the report and
    raises nothing.

    Raises InputError where the artefact or the reference cannot be read or a threshold is unknown,
    UsageError where a runtime (MissingRuntimeError) or device is not there.
    """
    progress = progress or Silent()
    witness_of = Reference(
        reference.decoder,
        device=device,
        weights=None if type in WIDER_THAN_HALF else torch.float16,
        progress=progress,
    )
    bounds = thresholds_for(format, type, witness_of.compute, thresholds)
    files, digest_now = _hashes(artefact), digest_of(reference.files)["sha256"]
    checks = [check_provenance(artefact, files, digest_now, reference.origin)]
    checks += check_weights(artefact, format, reference.decoder, progress)
    checks += check_settings(artefact, format, reference)
    broken = overall(checks[1:]) == Verdict.FAIL
    observed: Observed | None = None
    runtime = {"name": next(iter(RUNTIMES[format])), "version": NOT_OPENED, "device": device}
    try:
        opened = open_runtime(format, artefact, device, threads=threads)
        try:
            runtime = {"name": opened.name, "version": version_of(opened), "device": opened.device}
            observed = run(opened, reference, new_tokens=new_tokens, progress=progress)
        finally:
            opened.close()
    except CgconvertError as error:
        absent = isinstance(error, UsageError) and runtime["version"] == NOT_OPENED
        if absent or not broken:
            raise
        checks.append(Check("runtime", None, None, "<=", Verdict.FAIL, str(error)))
    evidence = witness(observed, witness_of, reference.tokenizer) if observed else None
    progress.finish()
    sequences = observed.sequences if observed else ()
    texts = [text.text for text in observed.texts] if observed else []
    return Report(
        artefact={
            "path": str(artefact),
            "format": format,
            "type": type,
            "files": files,
        },
        source={
            "name": reference.name,
            "layout": reference.layout,
            "sha256": digest_now,
        },
        reference={
            "weights": _name(witness_of.weights or reference.decoder.dtype),
            "compute": _name(witness_of.compute),
            "device": witness_of.device.type,
        },
        runtime=runtime,
        prompts={
            "sha256": digest(PROMPTS),
            "sequences": len(sequences),
            "tokens": sum(map(len, sequences)),
            "lengths": tuple(map(len, sequences)),
        },
        texts={"sha256": digest(texts), "count": len(texts)},
        checks=(*checks, *(run_checks(evidence, bounds) if evidence else ())),
        series=_series(evidence) if evidence else {},
    )


def run(
    runtime: Runtime,
    source: Checkpoint,
    *,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
) -> Observed:
    """Have an open runtime do all that is judged, on the default prompts and texts.

    Prompts are cut to the shorter of the two contexts, what is continued to half of it.
    """
    limit = min(runtime.n_positions, source.geometry.n_positions)
    sequences = [source.tokenizer.encode(prompt)[:limit] for prompt in PROMPTS]
    return observe(
        runtime,
        source.tokenizer,
        sequences,
        openings=[sequences[i][: max(1, limit // 2)] for i in OPENINGS],
        max_new_tokens=new_tokens,
        texts=tokenizer_texts(),
        progress=progress or Silent(),
    )


def _series(evidence: Evidence) -> dict[str, list[float | None]]:
    """What a report plots: the divergence at every position, where logits can be compared."""
    size = evidence.allowed
    if evidence.observed.logits.shape[1] < size:
        return {}
    with np.errstate(invalid="ignore"):  # infinite logits give NaN
        kl = kl_divergence(evidence.reference[:, :size], evidence.observed.logits[:, :size])
    return {"logits.kl": rounded(kl)}


def _hashes(artefact: Path) -> dict[str, str]:
    """SHA-256 of every file of an artefact but its manifest, by path relative to it."""
    if not artefact.is_dir():
        return {artefact.name: file_sha256(artefact)}
    return {
        path.relative_to(artefact).as_posix(): file_sha256(path)
        for path in sorted(artefact.rglob("*"))
        if path.is_file() and path != manifest_path(artefact)
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
