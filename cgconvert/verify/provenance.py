"""Whether the manifest's account of an artefact is still true. No other check leans on it."""

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
    artefact: Path, hashes: Mapping[str, str], source: str, origin: Mapping[str, Any]
) -> Check:
    """`hashes` are the SHA-256 of the artefact's files by their path in it; `source` is the
    reference's digest, `origin` where the reference was read from.

    The value counts what does not fit. No manifest is a warning; so is a reference that the
    manifest does not name and that has another digest.
    """
    try:
        manifest = find_manifest(artefact)
    except InputError as error:
        return Check(NAME, 1.0, 0.0, "<=", Verdict.FAIL, str(error))
    if manifest is None:
        detail = f"no {manifest_path(artefact).name}: not known what it was made from"
        return Check(NAME, None, 0.0, "<=", Verdict.WARNING, detail)
    faults = _files(artefact, manifest, hashes)
    detail, other = "", manifest.source.get("sha256") != source
    if other:
        then, now = _given(manifest.source.get("origin")), _given(origin)
        if then is not None and then == now:
            faults.append(f"the source, {then}, is not what it was made from: its SHA-256 differs")
        else:
            detail = f"made from {then or 'an unnamed source'}, of another SHA-256"
    if faults:
        text = "; ".join([*faults, detail] if detail else faults)
        return Check(NAME, float(len(faults)), 0.0, "<=", Verdict.FAIL, text)
    return Check(NAME, 0.0, 0.0, "<=", Verdict.WARNING if other else Verdict.PASS, detail)


def _files(artefact: Path, manifest: Manifest, hashes: Mapping[str, str]) -> list[str]:
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


def _given(origin: Any) -> str | None:
    given = origin.get("given") if isinstance(origin, dict) else None
    return given if isinstance(given, str) else None
