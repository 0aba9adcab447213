"""The check that an artefact and its source are still what the manifest says.

No other check relies on the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, in_words
from cgconvert.io.reading import read_bytes
from cgconvert.verification.thresholds import Check, Verdict
from cgconvert.write.manifest import (
    Manifest,
    artefact_files,
    expected_files,
    find_manifest,
    manifest_path,
)

__all__ = ["check_provenance", "is_other_source", "is_source_change", "source_name"]

CHECK_NAME = "provenance"

SOURCE_CHANGED = "is not what it was made from"
OTHER_SOURCE = "made from "


def check_provenance(
    artefact: Path, hashes: Mapping[str, str], source_sha256: str, origin: Mapping[str, Any]
) -> Check:
    """Compare the artefact's files and its source with the manifest.

    The value is the number of differences. A missing manifest is a warning. So is a source with
    another digest than the manifest's, unless it was read from the place that the manifest names:
    then the source itself has changed, which is a difference.

    Args:
        artefact: The file or folder.
        hashes: SHA-256 of the artefact's files by their path in it; a file of another size than
            the manifest's needs none.
        source_sha256: The digest of the source's files.
        origin: Where the source was read from (see Checkpoint.origin).
    """
    try:
        manifest = find_manifest(artefact)
    except InputError as error:
        return Check(CHECK_NAME, 1.0, 0.0, "<=", Verdict.FAIL, in_words(str(error)))
    if manifest is None:
        detail = f"no {manifest_path(artefact).name}: not known what it was made from"
        return Check(CHECK_NAME, None, 0.0, "<=", Verdict.WARNING, detail)
    differences = _file_differences(artefact, manifest, hashes)
    detail, is_another = "", manifest.source.get("sha256") != source_sha256
    if is_another:
        recorded, current = source_name(manifest.source.get("origin")), source_name(origin)
        if recorded is not None and recorded == current:
            differences.append(f"the source, {recorded}, {SOURCE_CHANGED}: its SHA-256 differs")
        else:
            detail = f"{OTHER_SOURCE}{recorded or 'an unnamed source'}, of another SHA-256"
    if differences:
        text = "; ".join([*differences, detail] if detail else differences)
        return Check(CHECK_NAME, float(len(differences)), 0.0, "<=", Verdict.FAIL, text)
    verdict = Verdict.WARNING if is_another else Verdict.PASS
    return Check(CHECK_NAME, 0.0, 0.0, "<=", verdict, detail)


def is_source_change(check: Check) -> bool:
    """Whether the check failed because the source was changed, and for nothing else."""
    first, *others = check.detail.split("; ")
    return check.verdict == Verdict.FAIL and SOURCE_CHANGED in first and not others


def is_other_source(check: Check) -> bool:
    """Whether the check says that the reference is not the source that the manifest names."""
    return any(phrase.startswith(OTHER_SOURCE) for phrase in check.detail.split("; "))


def _file_differences(artefact: Path, manifest: Manifest, hashes: Mapping[str, str]) -> list[str]:
    """List what is not as the manifest says: a phrase for each file."""
    differences, present = [], artefact_files(artefact)
    if read_bytes(path := manifest_path(artefact)) != manifest.to_json():
        differences.append(f"{path.name} is not as it was written")
    for name, entry in expected_files(artefact, manifest).items():
        if name not in present:
            differences.append(f"{name} is missing")
        elif name in hashes and entry.get("sha256") != hashes[name]:
            differences.append(f"{name} is not as it was written: its SHA-256 differs")
        elif entry.get("bytes") != (size := present[name].stat().st_size):
            differences.append(f"{name} has {size} bytes, the manifest says {entry.get('bytes')}")
        elif name not in hashes:
            differences.append(f"{name} was not read")
    return differences


def source_name(origin: Any) -> str | None:
    """How the user named the source and its adapters; None if the origin does not say."""
    name = origin.get("given") if isinstance(origin, dict) else None
    if not isinstance(name, str):
        return None
    adapters = origin.get("adapter")
    return f"{name} with {', '.join(map(str, adapters))}" if isinstance(adapters, list) else name
