"""Run an artefact in its real runtime and hold it against the fp16 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from cgconvert.errors import CgconvertError, UsageError
from cgconvert.formats.registry import load
from cgconvert.io.progress import Progress, Silent
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.runtimes import RUNTIMES, open_runtime, version_of
from cgconvert.sources.tarball import cache_folder
from cgconvert.texts.text import Text
from cgconvert.verify.checks import Losses, run_checks
from cgconvert.verify.evidence import Observed, gather
from cgconvert.verify.float32_graph import check_graph
from cgconvert.verify.observe import NEW_TOKENS, observe
from cgconvert.verify.prompts import PROMPTS, TEXT_TOKENS, digest, windows
from cgconvert.verify.provenance import check_provenance
from cgconvert.verify.reference import Reference
from cgconvert.verify.reference_cache import CachedReference
from cgconvert.verify.report.model import Report, rounded
from cgconvert.verify.thresholds import thresholds_for
from cgconvert.verify.verdict import Check, Verdict, at_most, overall
from cgconvert.verify.weights import check_weights
from cgconvert.write.hashing import file_sha256, source_digest
from cgconvert.write.manifest import manifest_path

__all__ = ["verify"]

NOT_OPENED = "-"
"""The version of a runtime that could not open the artefact."""

NAMED = 3
"""How many differences a check's detail names."""

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
    texts: Sequence[Text] = (),
    text_tokens: int = TEXT_TOKENS,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the artefact at `artefact` against the checkpoint it was made from.

    Its manifest and stored weights come first, before anything runs: where they fail and the
    runtime cannot open it or breaks off, that is a failed check called runtime. Then the artefact
    runs and is closed, then the reference goes through its layers once.
    `device` (cpu, cuda, auto) is for both; auto takes what each can have. `thresholds` replaces
    bounds by name of check; `runtime` is the format's first unless named, `threads` is for it.
    Logits are compared on the prompts and on the first `text_tokens` tokens of each of `texts`.
    A check that fails is in the report and raises nothing.

    Raises InputError where the artefact or the reference cannot be read, a threshold is unknown or
    a text too short, UsageError where a runtime (MissingRuntimeError) or device is not there.
    """
    progress = progress or Silent()
    source = Reference(
        reference.decoder,
        device=device,
        weights=None if type in WIDER_THAN_HALF else torch.float16,
        progress=progress,
    )
    thresholds_for(format, type, overrides=thresholds)  # a mistake there shows before the work
    context = reference.geometry.n_positions
    passages = {text: windows(text, reference.tokenizer, text_tokens, context) for text in texts}
    files, digest_now = _hashes(artefact), source_digest(reference)["sha256"]
    checks = [check_provenance(artefact, files, digest_now, reference.origin)]
    stored, tensors = check_weights(artefact, format, reference.decoder, progress)
    settings = _settings_checks(artefact, format, reference)
    checks += [*stored, *settings]
    broken = overall(checks[1:]) == Verdict.FAIL
    observed: Observed | None = None
    name = runtime or next(iter(RUNTIMES[format]))
    ran = {"name": name, "version": NOT_OPENED, "device": device}
    try:
        opened = open_runtime(format, artefact, device, name=name, threads=threads)
        try:
            ran = {"name": opened.name, "version": version_of(opened), "device": opened.device}
            more = [window for cut in passages.values() for window in cut]
            observed = observe(opened, reference, more, new_tokens=new_tokens, progress=progress)
        finally:
            opened.close()
    except CgconvertError as error:
        absent = isinstance(error, UsageError) and ran["version"] == NOT_OPENED
        if absent or not broken:
            raise
        checks.append(Check("runtime", None, None, "<=", Verdict.FAIL, str(error)))
    series: dict[str, list[float | None]] = {}
    if observed is not None:
        witness = CachedReference(source, digest_now, cache_folder() / "reference")
        own = partial(_stored_reference, artefact, format, device, progress)
        same = _same_numbers(stored, type, reference.decoder.dtype)
        evidence = gather(observed, reference, witness, None if same else own)
        losses = Losses.of(evidence)
        bounds = thresholds_for(format, type, ran["device"], thresholds)
        checks += run_checks(evidence, losses, bounds)
        if type in ("int4", "int8") and (ran["name"], ran["device"]) == ("onnxruntime", "cpu"):
            checks += check_graph(artefact, evidence, threads)
        series = {"logits.kl": rounded(losses.source.kl)} if losses.source else {}
    progress.finish()
    sequences = observed.sequences if observed else ()
    tokenized = [text.text for text in observed.texts] if observed else []
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
            "compute": "float32",
            "device": source.device.type,
        },
        runtime=ran,
        prompts={
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
                for text, cut in passages.items()
            ),
        },
        texts={"sha256": digest(tokenized), "count": len(tokenized)},
        checks=tuple(checks),
        series=series,
        tensors=tuple(tensors),
    )


def _settings_checks(artefact: Path, format: str, source: Checkpoint) -> list[Check]:  # noqa: A002
    """settings and tokenizer.files: how many entries are not as the source's tokenizer has them."""
    differences = load(format).settings(artefact, source)
    named = {"settings": differences.settings, "tokenizer.files": differences.tokenizer}
    return [at_most(name, float(len(texts)), 0, _first(texts)) for name, texts in named.items()]


def _first(texts: Sequence[str]) -> str:
    more = [f"{len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return "; ".join([*texts[:NAMED], *more])


def _same_numbers(static: Sequence[Check], type: str, dtype: torch.dtype) -> bool:  # noqa: A002
    """Whether what is stored was found to be the reference's own weights, all of them.

    Formats keep vectors in float32 that the reference rounds with the rest, so a float16 artefact
    is the reference's own only where the source is float16 too.
    """
    if overall(static) == Verdict.FAIL or any(c.name == "weights.error" for c in static):
        return False
    return type in ("F32", "float32") or (type in ("F16", "float16") and dtype == torch.float16)


def _stored_reference(artefact: Path, format: str, device: str, progress: Progress) -> Reference:  # noqa: A002
    decoder = load(format).decoder(artefact)
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
