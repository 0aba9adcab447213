"""Whether an artefact and its source are still what the manifest says.

No other check relies on the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.verify.verdict import Check, Verdict
from cgconvert.write.manifest import Manifest, expected, find_manifest, manifest_path

__all__ = ["check_provenance"]

NAME = "provenance"


def check_provenance(
    artefact: Path, hashes: Mapping[str, str], source_sha256: str, origin: Mapping[str, Any]
) -> Check:
    """Compare the artefact's files and the reference with the manifest.

    The value counts the differences. A missing manifest is a warning; so is a reference of another
    digest that was not read from where the manifest says the source was.

    Args:
        artefact: The file or folder.
        hashes: SHA-256 of the artefact's files by their path in it.
        source_sha256: The digest of the reference's files.
        origin: Where the reference was read from.
    """
    try:
        manifest = find_manifest(artefact)
    except InputError as error:
        return Check(NAME, 1.0, 0.0, "<=", Verdict.FAIL, str(error))
    if manifest is None:
        detail = f"no {manifest_path(artefact).name}: not known what it was made from"
        return Check(NAME, None, 0.0, "<=", Verdict.WARNING, detail)
    faults = _file_faults(artefact, manifest, hashes)
    detail, differs = "", manifest.source.get("sha256") != source_sha256
    if differs:
        recorded, current = _source_name(manifest.source.get("origin")), _source_name(origin)
        if recorded is not None and recorded == current:
            faults.append(
                f"the source, {recorded}, is not what it was made from: its SHA-256 differs"
            )
        else:
            detail = f"made from {recorded or 'an unnamed source'}, of another SHA-256"
    if faults:
        text = "; ".join([*faults, detail] if detail else faults)
        return Check(NAME, float(len(faults)), 0.0, "<=", Verdict.FAIL, text)
    return Check(NAME, 0.0, 0.0, "<=", Verdict.WARNING if differs else Verdict.PASS, detail)


def _file_faults(artefact: Path, manifest: Manifest, hashes: Mapping[str, str]) -> list[str]:
    """Files that are not as the manifest says, a phrase each."""
    faults = []
    if (path := manifest_path(artefact)).read_bytes() != manifest.to_json():
        faults.append(f"{path.name} is not as it was written")
    for name, entry in expected(artefact, manifest).items():
        if name not in hashes:
            faults.append(f"{name} is missing")
        elif entry.get("sha256") != hashes[name]:
            faults.append(f"{name} is not as it was written: its SHA-256 differs")
        elif entry.get("bytes") != (size := _size(artefact, name)):
            faults.append(f"{name} has {size} bytes, the manifest says {entry.get('bytes')}")
    return faults


def _size(artefact: Path, name: str) -> int:
    return (artefact / name if artefact.is_dir() else artefact).stat().st_size


def _source_name(origin: Any) -> str | None:
    """What the source was called when it was read, None where the manifest does not say."""
    name = origin.get("given") if isinstance(origin, dict) else None
    return name if isinstance(name, str) else None
