"""Run an artefact in its real runtime and hold it against the fp16 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

import torch

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.checkpoint.tarball import cache_folder
from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.manifest import digest_of, file_sha256, manifest_path
from cgconvert.runtimes import RUNTIMES, Runtime, open_runtime, version_of
from cgconvert.stream.progress import Progress, Silent
from cgconvert.verify.checks import Losses, run_checks
from cgconvert.verify.evidence import Evidence, Observed, Witness, Witnessed, observe, testify
from cgconvert.verify.prompts import PROMPTS, digest, tokenizer_texts
from cgconvert.verify.provenance import check_provenance
from cgconvert.verify.reference import Reference
from cgconvert.verify.reference_cache import CachedReference
from cgconvert.verify.report import Report, rounded
from cgconvert.verify.stored import stored_decoder
from cgconvert.verify.thresholds import thresholds_for
from cgconvert.verify.verdict import Check, Verdict, overall
from cgconvert.verify.weights import check_weights

__all__ = ["NEW_TOKENS", "gather", "run", "verify"]

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
    source = Reference(
        reference.decoder,
        device=device,
        weights=None if type in WIDER_THAN_HALF else torch.float16,
        progress=progress,
    )
    bounds = thresholds_for(format, type, source.compute, thresholds)
    files, digest_now = _hashes(artefact), digest_of(reference.files)["sha256"]
    checks = [check_provenance(artefact, files, digest_now, reference.origin)]
    checks += check_weights(artefact, format, reference.decoder, progress)
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
    series: dict[str, list[float | None]] = {}
    if observed is not None:
        same = _same_numbers(checks[1:], type, reference.decoder.dtype)
        witness = CachedReference(source, digest_now, cache_folder() / "reference")
        stored = partial(_stored_reference, artefact, format, device, progress)
        evidence = gather(observed, reference, witness, None if same else stored)
        losses = Losses.of(evidence)
        checks += run_checks(evidence, losses, bounds)
        series = {"logits.kl": rounded(losses.source.kl)} if losses.source else {}
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
            "weights": _name(source.weights or reference.decoder.dtype),
            "compute": _name(source.compute),
            "device": source.device.type,
        },
        runtime=runtime,
        prompts={
            "sha256": digest(PROMPTS),
            "sequences": len(sequences),
            "tokens": sum(map(len, sequences)),
            "lengths": tuple(map(len, sequences)),
        },
        texts={"sha256": digest(texts), "count": len(texts)},
        checks=tuple(checks),
        series=series,
    )


def run(
    runtime: Runtime,
    source: Checkpoint,
    *,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
) -> Observed:
    """Have an open runtime do all that is judged, on the default prompts and texts.

    Prompts are cut to the shorter of the two contexts, what is continued to half of it; repeated
    they fill it.
    """
    limit = min(runtime.n_positions, source.geometry.n_positions)
    prompts = [source.tokenizer.encode(prompt) for prompt in PROMPTS]
    sequences = [prompt[:limit] for prompt in prompts]
    return observe(
        runtime,
        source.tokenizer,
        sequences,
        openings=[sequences[i][: max(1, limit // 2)] for i in OPENINGS],
        whole=list(islice(cycle(chain.from_iterable(prompts)), limit)),
        max_new_tokens=new_tokens,
        texts=tokenizer_texts(),
        progress=progress or Silent(),
    )


def gather(
    observed: Observed, source: Checkpoint, witness: Witness, stored: Callable[[], Witness] | None
) -> Evidence:
    """Have both references testify; without `stored` the source's numbers are the stored ones."""
    allowed = source.tokenizer.size
    of_source = testify(witness, observed, allowed)
    of_stored: Witnessed | None = of_source
    unmade = ""
    if stored is not None:
        try:
            of_stored = testify(stored(), observed, allowed)
        except InputError as error:
            of_stored, unmade = None, f"its weights make no model: {error}"
    return Evidence(
        observed=observed,
        source=of_source,
        stored=of_stored,
        unmade=unmade,
        allowed=allowed,
        n_positions=source.geometry.n_positions,
        end_of_text=source.tokenizer.end_of_text,
    )


def _same_numbers(static: Sequence[Check], type: str, dtype: torch.dtype) -> bool:  # noqa: A002
    """Whether what is stored was found to be the reference's own weights, all of them.

    Formats keep vectors in float32 that the reference rounds with the rest, so a float16 artefact
    is the reference's own only where the source is float16 too.
    """
    if overall(static) == Verdict.FAIL or any(c.name == "weights.error" for c in static):
        return False
    return type in ("F32", "float32") or (type in ("F16", "float16") and dtype == torch.float16)


def _stored_reference(artefact: Path, format: str, device: str, progress: Progress) -> Reference:  # noqa: A002
    decoder = stored_decoder(artefact, format)
    return Reference(decoder, device=device, weights=None, progress=progress)


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
