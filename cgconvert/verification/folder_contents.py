"""What of an artefact's folder is judged, and the check that nothing else lies in it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cgconvert.errors import InputError, first_few
from cgconvert.formats.registry import load
from cgconvert.verification.report import is_report
from cgconvert.verification.thresholds import MAX_NAMED, Check, Verdict
from cgconvert.write.manifest import artefact_files, expected_files, find_manifest

__all__ = ["CHECK_NAME", "check_folder_contents", "judged_files"]

CHECK_NAME = "files"


def check_folder_contents(
    artefact: Path,
    format: str,  # noqa: A002
    checked: Collection[Path] = (),
    *,
    strict: bool = False,
) -> list[Check]:
    """Name the files and entries of an artefact's folder that no other check has judged.

    The value is their number. It is a failure if a program would load one of them, and with
    `strict` for any of them; else a warning. Reports of cgconvert do not count.

    Args:
        artefact: The file or folder.
        format: The name of its format.
        checked: The artefacts that are verified together with it.
        strict: Whether a file that belongs to no format is a failure.

    Returns:
        The check; none if the format has no folder.

    Raises:
        InputError: The folder cannot be listed, or a file in it is broken.
    """
    unchecked = load(format).unchecked(artefact, checked)
    if unchecked is None:
        return []
    unknown = [
        *(
            f"{name} belongs to no format"
            for name in unchecked.unknown
            if not is_report(unchecked.folder / name)
        ),
        *(f"{entry}, which belongs to no format" for entry in unchecked.unknown_entries),
    ]
    named = [*unchecked.loaded, *unknown]
    detail = first_few(named, MAX_NAMED)
    verdict = Verdict.PASS
    if named:
        verdict = Verdict.FAIL if unchecked.loaded or strict else Verdict.WARNING
    return [Check(CHECK_NAME, float(len(named)), 0.0, "<=", verdict, detail)]


def judged_files(
    artefact: Path,
    format: str,  # noqa: A002
    checked: Collection[Path] = (),
) -> dict[str, Path]:
    """Find the files that make up an artefact, by their paths in it; its manifest is left out.

    These are the files that its format reads, and those that its manifest names and that have the
    size that stands there. Anything else in its folder may be of any size, or a link to a file of
    the user's, and is not read.

    Raises InputError as `check_folder_contents`.
    """
    files = artefact_files(artefact)
    unchecked = load(format).unchecked(artefact, checked)
    if unchecked is None or not artefact.is_dir():
        return files
    try:
        manifest = find_manifest(artefact)
    except InputError:  # the check "provenance" says so
        manifest = None
    sizes = {
        name: entry.get("bytes")
        for name, entry in (expected_files(artefact, manifest) if manifest else {}).items()
    }
    own = {(unchecked.folder / name).resolve() for name in unchecked.own}
    return {
        name: path
        for name, path in files.items()
        if path.resolve() in own or sizes.get(name) == path.stat().st_size
    }
