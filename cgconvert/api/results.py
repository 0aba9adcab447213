"""What the functions of the API return: an artefact that was written, or a verification."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.verify.report import WRITERS, write_reports
from cgconvert.verify.report.model import Report
from cgconvert.verify.verdict import Check, Verdict, worst_verdict
from cgconvert.write.manifest import Manifest

__all__ = ["Result", "Verification"]


@dataclass(frozen=True)
class Result:
    """An artefact that was written.

    Attributes:
        path: The folder, or the one file of a GGUF.
        manifest: What it was made from, with which options, and the SHA-256 of every file; the
            same is written to `cgconvert.json` in the folder or beside the file.
    """

    path: Path
    manifest: Manifest

    @property
    def format(self) -> str:
        """Name of the format: huggingface, onnx, gguf or one that was registered."""
        return self.manifest.format

    @property
    def type(self) -> str:
        """Stored type of the matrices, such as float16, int4 or Q4_K_M."""
        return self.manifest.type

    @property
    def types(self) -> Mapping[str, str]:
        """Type chosen for each matrix, by the name of its tensor; empty where all have `type`."""
        types: Mapping[str, str] = self.manifest.options.get("types", {})
        return types

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the conversion as the manifest has them."""
        return self.manifest.options

    @property
    def bytes(self) -> int:
        """Bytes of all files, the manifest apart."""
        return sum(int(entry["bytes"]) for entry in self.manifest.files.values())

    def __fspath__(self) -> str:
        """The path, so that a result stands wherever a path does: `cgconvert.verify(result)`."""
        return str(self.path)


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
        """The worst of all: fail, warning or pass."""
        return worst_verdict(self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check failed; a warning is not a failure."""
        return self.verdict != Verdict.FAIL

    @property
    def failed(self) -> tuple[str, ...]:
        """Paths of the artefacts of which a check failed."""
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
        """A table for each artefact and, where there are several, one of all."""
        return WRITERS[".txt"](self.reports)

    def save(self, *paths: str | Path) -> None:
        """Write the report to files, each in the format of its suffix: .json, .xml, .html, .txt.

        Raises:
            UsageError: A suffix has no format.
            OutputError: Writing failed.
        """
        for path in paths:
            write_reports(self.reports, Path(path))

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """The HTML page in a frame of its own, so that its style stays out of a notebook's."""
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'
