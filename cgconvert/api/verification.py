"""Comparing artefacts with their source: `verify`, which returns a `Verification`."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cgconvert.api.caching import checked_cache
from cgconvert.api.declarations import VERIFY
from cgconvert.api.execution import ProgressOption, Result, progress_for
from cgconvert.api.sources import Source, check_type, read_options
from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.formats.read import ReadOptions, read
from cgconvert.formats.registry import Artefact, find_all, identify
from cgconvert.io.cache import KINDS, UNPACKED, cache_used, is_cache_allowed
from cgconvert.io.file_names import can_exist
from cgconvert.io.followed_links import note_user_path
from cgconvert.io.progress import LaterSteps, shown_while_reading
from cgconvert.io.reading import within_budget
from cgconvert.io.remembered import remembering
from cgconvert.model.decoder import Checkpoint
from cgconvert.options import accepted_values
from cgconvert.runtimes import runtime_names
from cgconvert.sources.tarball import is_kept
from cgconvert.texts.text import Text, read_text
from cgconvert.verification.prompts import TEXT_TOKENS
from cgconvert.verification.report import WRITERS, check_report_path, write_reports
from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import (
    Check,
    Verdict,
    known_bounds,
    worst_verdict,
)
from cgconvert.verification.verify import MOST_STEPS
from cgconvert.verification.verify import verify as verify_artefact

__all__ = ["Verification", "artefacts_at", "reports_of", "verify"]

Bounds = Mapping[str, float | None]
"""A bound for each check, by its name; None: the value is reported but not judged."""


@dataclass(frozen=True)
class Verification:
    """The outcome of verifying one artefact or several.

    Attributes:
        reports: One for each artefact, in order of their paths.
    """

    reports: tuple[Report, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of all artefacts: name, value, bound and verdict each."""
        return tuple(check for report in self.reports for check in report.checks)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all checks: fail, warning or pass."""
        return worst_verdict(self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check failed; a warning is not a failure."""
        return self.verdict != Verdict.FAIL

    @property
    def failed(self) -> tuple[str, ...]:
        """Paths of the artefacts with at least one failed check."""
        return tuple(str(report.artefact["path"]) for report in self.reports if not report.passed)

    def to_json(self) -> str:
        """The report as JSON, schema 1 (docs/verify.md), with a newline at the end."""
        return WRITERS[".json"](self.reports)

    def to_html(self) -> str:
        """The report as one HTML page that needs no network."""
        return WRITERS[".html"](self.reports)

    def to_junit(self) -> str:
        """The report as JUnit XML, for continuous integration."""
        return WRITERS[".xml"](self.reports)

    def to_text(self) -> str:
        """The report as text: a table for each artefact, then a summary of several."""
        return WRITERS[".txt"](self.reports)

    def save(self, *paths: str | Path) -> None:
        """Write the report to files, in the format of each suffix: .json, .xml, .html, .md, .txt.

        Raises:
            UsageError: A suffix has no format, or a path is a folder.
            OutputError: Writing failed.
        """
        for path in paths:
            write_reports(self.reports, Path(path))

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """The HTML page in an iframe, so that its style does not change the notebook's."""
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def verify(
    artefact: str | Path | Result | Sequence[str | Path | Result],
    *,
    quick: bool = False,
    strict: bool = False,
    reference: Source | None = None,
    text: Sequence[str | Path | Text] = (),
    text_tokens: int = TEXT_TOKENS,
    threshold: Bounds | None = None,
    report: Sequence[str | Path] = (),
    runtime: str | None = None,
    device: str = "auto",
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    mp_num: int | Literal["auto"] | None = None,
    step: int | None = None,
    revision: str | None = None,
    adapter: str | Path | Sequence[str | Path] = (),
    cache: bool = True,
    progress: ProgressOption = None,
) -> Verification:
    """Compare artefacts with the model they were made from: first what is stored, then running.

    Every stored tensor, setting and hash is compared first. Then the artefact runs in its real
    runtime beside a reference that computes the source's float16 weights in float32.

    Args:
        artefact: Path or result of a conversion, several of these, or a folder with artefacts
            anywhere below it.
        quick: Compare the files and one prompt only; the report says what was left out.
        strict: Whether a file in the folder that belongs to no format is a failure; else it is a
            warning.
        reference: The source to compare with, see `load`; the one that the artefact's manifest
            names unless given.
        text: Files to compare logits on, beside the built-in prompts; "stdlib" for files of
            Python's own standard library.
        text_tokens: How many tokens of each text, from its beginning: at least 2.
        threshold: Other bounds by name of check, `{"logits.kl_mean": 0.05}`; None for a value
            that is only reported.
        report: Files to write the report to: .json, .xml (JUnit), .html, .md or .txt.
        runtime: Runtime to use for artefacts of its format, instead of the format's first.
        device: Where runtime and reference compute: auto (cuda or cpu), cpu, cuda, mps or gpu.
        tokenizer: See `load`; for the reference.
        config: See `load`; for the reference.
        mp_num: See `load`; for the reference.
        step: See `load`; for the reference.
        revision: See `load`; for the reference.
        adapter: See `load`; for the reference.
        cache: See `load`; it keeps outputs of the reference too.
        progress: See `execute`.

    Returns:
        Checks, verdict and reports. A check that fails raises nothing: see `passed`. A runtime
        that is not installed is a failed check, `runtime`, of the artefacts that need it.

    Raises:
        InputError: An artefact, the reference or a text cannot be read.
        UsageError: A bound does not exist, `quick` is given texts, or a device is not there.
        OutputError: A report could not be written.

    Example:
        >>> result = cgconvert.to_gguf("codegen-tiny-mono", "model.gguf", type="F16")
        >>> verification = cgconvert.verify(result)
        >>> verification.passed, str(verification.verdict), verification.checks[0].name
        (True, 'pass', 'provenance')
    """
    accepted = accepted_values(
        VERIFY,
        {
            "quick": quick,
            "strict": strict,
            "text_tokens": text_tokens,
            "threshold": threshold,
            "report": report,
            "runtime": runtime,
            "device": device,
        },
    )
    for path in accepted["report"]:
        check_report_path(path)
    options = read_options(
        tokenizer=tokenizer,
        config=config,
        mp_num=mp_num,
        step=step,
        revision=revision,
        adapter=adapter,
    )
    if reference is not None:
        check_type("reference", reference, str, Path, Checkpoint)
    shown = progress_for(progress)
    documents = [text] if isinstance(text, str | Path | Text) else text
    with checked_cache(cache):
        if reference is None or isinstance(reference, Checkpoint):
            source = reference
        else:
            with shown_while_reading(shown):
                source = read(str(reference), options)
        reports = reports_of(
            artefacts_at(artefact),
            reference=source,
            options=options,
            texts=[t if isinstance(t, Text) else read_text(_text_name(t)) for t in documents],
            thresholds=dict.fromkeys(known_bounds(), accepted.pop("threshold", {})),
            progress=shown,
            **accepted,
        )
        return Verification(tuple(reports))


@within_budget()
def artefacts_at(
    artefact: str | Path | Result | Sequence[str | Path | Result],
) -> list[Artefact]:
    """Find the artefacts at or below one path or several.

    Raises InputError if there is none at one of them.
    """
    check_type("artefact", artefact, str, Path, Result, Sequence)
    paths = [artefact] if isinstance(artefact, str | Path | Result) else artefact
    artefacts: list[Artefact] = []
    for named in paths:
        check_type("artefact", named, str, Path, Result)
        path = Path(named)
        if not can_exist(path):
            raise InputError(f"{path}: no file has such a name")
        note_user_path(path)
        below = find_all(path)
        if not below and path.is_dir() and not any(path.iterdir()):
            raise InputError(f"{path}: is empty")
        artefacts += below or [identify(path)]  # identify raises, saying what is wrong
    return artefacts


def reports_of(
    artefacts: Sequence[Artefact],
    *,
    quick: bool = False,
    strict: bool = False,
    reference: Checkpoint | None = None,
    options: ReadOptions | None = None,
    texts: Sequence[Text] = (),
    text_tokens: int = TEXT_TOKENS,
    thresholds: Mapping[str, Bounds] | None = None,
    report: Sequence[Path] = (),
    runtime: str | None = None,
    device: str = "auto",
    progress: ProgressOption = None,
) -> Iterator[Report]:
    """Verify artefacts one after the other, yielding each report as soon as it is complete.

    Report files are written after the last. See `verify` for the arguments; `thresholds` is by
    type ("gguf Q8_0"), then by name of check, and `options` says how a reference that a
    manifest names is read.

    Raises UsageError if an artefact's format has no runtime, if `runtime` runs none of them, or if
    `quick` is given texts.
    """
    if quick and texts:
        raise UsageError("`quick` compares no text; leave out `quick` or `text`")
    for artefact in artefacts:
        runtime_names(artefact.format)  # raises for a format without one before the long work
    if runtime is not None:
        _check_runtime(runtime, artefacts)
    sources: dict[tuple[str, ReadOptions], Checkpoint] = {}
    reports = []
    shown = progress_for(progress)
    for number, artefact in enumerate(artefacts, 1):
        with shown_while_reading(shown):
            source = reference or _source_of(artefact, options or ReadOptions(), sources)
        try:
            with remembering(), within_budget(), cache_used() as kinds:
                verified = verify_artefact(
                    artefact.path,
                    artefact.format,
                    artefact.type,
                    source,
                    device,
                    thresholds=_bounds_of(artefact, thresholds or {}),
                    runtime=runtime if runtime in runtime_names(artefact.format) else None,
                    texts=texts,
                    text_tokens=text_tokens,
                    quick=quick,
                    strict=strict,
                    checked=[other.path for other in artefacts],
                    progress=LaterSteps(shown, MOST_STEPS * (len(artefacts) - number)),
                )
        except BaseException:
            shown.finish()
            raise
        verified = replace(verified, cache=_cache_entry(kinds, source))
        reports.append(verified)
        yield verified
    Verification(tuple(reports)).save(*report)


def _cache_entry(kinds: set[str], source: Checkpoint) -> dict[str, Any]:
    """The report's `cache`, from the kinds of what was taken from the cache for an artefact."""
    taken = kinds | ({UNPACKED} if is_kept(source.path) else set())
    words = tuple(words for kind, words in KINDS.items() if kind in taken)
    return {"allowed": is_cache_allowed(), "used": bool(words), "for": words}


def _text_name(text: object) -> str:
    (name,) = accepted_values(VERIFY, {"text": [text]})["text"]
    return str(name)


def _bounds_of(artefact: Artefact, thresholds: Mapping[str, Bounds]) -> Bounds:
    """The bounds that are set for an artefact's type.

    Those for the type in which most of its bytes are stored hold too, where it has no own.
    """
    types = (artefact.bounds_type, artefact.type)
    kinds = (f"{artefact.format} {type_}" for type_ in types)
    return {check: bound for kind in kinds for check, bound in thresholds.get(kind, {}).items()}


def _check_runtime(runtime: str, artefacts: Sequence[Artefact]) -> None:
    formats = list(dict.fromkeys(artefact.format for artefact in artefacts))
    fitting = [name for format_ in formats for name in runtime_names(format_)]
    if runtime not in fitting:
        raise UsageError(
            f"runtime {runtime!r} does not run {' or '.join(formats)}; use {' or '.join(fitting)}"
        )


def _source_of(
    artefact: Artefact, options: ReadOptions, sources: dict[tuple[str, ReadOptions], Checkpoint]
) -> Checkpoint:
    """The source that an artefact's manifest names, read the way it was read for the conversion.

    `sources` keeps those that were read, by name and options.
    """
    advice = "give it with `reference=SOURCE`"
    if artefact.manifest is None:
        raise UsageError(f"{artefact.path}: has no manifest to tell its source; {advice}")
    origin = artefact.manifest.source.get("origin", {})
    name = str(origin.get("given", artefact.manifest.name))
    overriding = {key: value for key, value in vars(options).items() if value not in (None, ())}
    reading = replace(ReadOptions.from_origin(origin), **overriding)
    if (name, reading) not in sources:
        try:
            sources[name, reading] = read(name, reading)
        except CgconvertError as error:
            raise type(error)(f"{error}; if its source is elsewhere now, {advice}") from error
    return sources[name, reading]
