"""Records of verifications that passed, so that the same one need not run again.

A record stands for exact bytes: of every file of the artefacts and of their sources, of the texts;
and for the bounds, the other options and the versions of everything that computed. It lies in
cgconvert's cache, and without it a verification is only run once more.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.formats.registry import artefact_format
from cgconvert.io.cache import key_of, read_entry, write_entry
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.folder_contents import judged_files
from cgconvert.verification.report.model import Report, run_description
from cgconvert.version import __version__
from cgconvert.write.known_hashes import known_sha256, known_source
from cgconvert.write.manifest import artefact_files, manifest_path

__all__ = ["Passed", "VerificationRecord"]

PACKAGES = (
    "torch", "numpy", "tokenizers", "safetensors", "gguf", "onnx", "transformers", "onnxruntime",
    "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda", "llama-cpp-python",
)  # fmt: skip
"""What reads artefacts, computes references and runs artefacts."""


KIND = "verified"
"""What the cache calls the records."""


@dataclass(frozen=True)
class Passed:
    """A verification that passed.

    Attributes:
        runs: What ran of each artefact: "gguf Q8_0 in llama.cpp 0.3.36 on cpu".
        reports: SHA-256 of each file of a report that was written then, by its path.
    """

    runs: tuple[str, ...]
    reports: Mapping[str, str]


class VerificationRecord:
    """The record of one verification: an entry of cgconvert's cache.

    Args:
        subjects: Each artefact's path, with the model that it is compared with.
        settings: Everything else that the verdict depends on, as JSON values: bounds, hashes of
            texts, options.
    """

    def __init__(
        self, subjects: Sequence[tuple[Path, Checkpoint]], settings: Mapping[str, Any]
    ) -> None:
        identity = {
            "cgconvert": __version__,
            "versions": {name: _version(name) for name in PACKAGES},
            "machine": [platform.machine(), platform.system(), platform.python_version()],
            "artefacts": [
                [os.path.abspath(path), _hashes(path), known_source(source)["sha256"],
                 {name: str(value) for name, value in source.origin.items()}]
                for path, source in subjects
            ],
            "settings": settings,
        }  # fmt: skip
        self.name = key_of(identity)

    def read(self, reports: Sequence[Path]) -> Passed | None:
        """Return the verification of this record; None if there is none, or if `reports` differ.

        Each file of a report must be as that verification wrote it.
        """
        data = read_entry(KIND, self.name)
        if data is None:
            return None
        fields = json.loads(data)
        passed = Passed(tuple(fields["runs"]), fields["reports"])
        for path in reports:
            sha256 = passed.reports.get(os.path.abspath(path))
            if sha256 is None or not path.is_file() or known_sha256(path) != sha256:
                return None
        return passed

    def write(self, verified: Sequence[Report], reports: Sequence[Path]) -> None:
        """Record reports without a failed check, and the files that they were written to."""
        fields = {
            "runs": [run_description(vars(report)) for report in verified],
            "reports": {os.path.abspath(path): known_sha256(path) for path in reports},
        }
        write_entry(KIND, self.name, json.dumps(fields).encode())


def _version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hashes(artefact: Path) -> dict[str, str]:
    """SHA-256 of every file of an artefact, the manifest's too, by its path.

    What lies beside it has an entry, too, under what is said of it.
    """
    manifest, kind = manifest_path(artefact), artefact_format(artefact)
    files = judged_files(artefact, kind.name) if kind else artefact_files(artefact)
    files = {**files, manifest.name: manifest}
    unchecked = kind.unchecked(artefact) if kind else None
    beside = dict.fromkeys((*unchecked.loaded, *unchecked.unknown), "") if unchecked else {}
    return {name: known_sha256(path) for name, path in files.items() if path.is_file()} | beside
