"""What lies at the path of a planned output: nothing, this artefact, another one, or other files.

A recipe skips what is there already, goes on with what was interrupted, and stops for the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cgconvert.errors import first_few
from cgconvert.write.known_hashes import known_source
from cgconvert.write.manifest import Manifest, find_manifest
from cgconvert.write.ownership import foreign_part, protected_place
from cgconvert.write.plan import LazyPlan, Plan

__all__ = ["OutputState", "output_state"]

NAMED = 3
"""How many differences are named."""


@dataclass(frozen=True)
class OutputState:
    """What lies at the path of a planned output.

    Attributes:
        kind: absent: nothing lies there. complete: the artefact of this plan, made from this
            source. different: another artefact of cgconvert's, which `force` may replace. foreign:
            anything else, which is never replaced.
        reason: What differs, or what is foreign, as a clause: "has type Q8_0, not Q4_0"; empty for
            the other kinds.
    """

    kind: Literal["absent", "complete", "different", "foreign"]
    reason: str = ""


def output_state(plan: LazyPlan, *, all_bytes: bool = False) -> OutputState:
    """Compare what lies at the output of a plan with what the plan would write.

    Nothing is computed for the plan. A file of the artefact counts as complete if it has the right
    size; a small one needs the right SHA-256 too. The SHA-256 of large sources that have been
    hashed before is remembered.

    Args:
        plan: The plan.
        all_bytes: Whether to compare the SHA-256 of the artefact's large files too. It is
            remembered for files that have not changed since they were written or hashed.

    Raises:
        InputError: The source cannot be read.
    """
    path = plan.output
    if not os.path.lexists(path):
        return OutputState("absent")
    if reason := protected_place(path):
        return OutputState("foreign", reason)
    if path.is_dir() != plan.is_folder:
        return OutputState("foreign", f"is a {'file' if plan.is_folder else 'folder'}")
    if reason := foreign_part(path, all_bytes=all_bytes):
        return OutputState("foreign", reason)
    manifest = find_manifest(path)
    if manifest is None:  # it was there a moment ago
        return OutputState("absent")
    differences = _differences(plan, manifest)
    if differences:
        return OutputState("different", first_few(differences, NAMED, separator=", "))
    return OutputState("complete")


def _differences(plan: LazyPlan, manifest: Manifest) -> list[str]:
    """List how the artefact of this manifest differs from what the plan would write."""
    if manifest.format != plan.format:
        return [f"has format {manifest.format}, not {plan.format}"]
    differences = _option_differences(plan, manifest.options)
    if isinstance(plan, Plan):
        if manifest.type != plan.type and not differences:
            differences.append(f"has type {manifest.type}, not {plan.type}")
        if not differences:
            differences += _file_differences(plan, manifest.files)
    missing = [name for name in manifest.files if not _exists(plan, name)]
    if missing:
        differences.append(f"lacks {first_few(missing, NAMED, separator=', ')}")
    if not differences:
        origin: Mapping[str, Any] = manifest.source.get("origin", {})
        if (
            manifest.source.get("sha256") != known_source(plan.source)["sha256"]
            or origin.get("mp_num") != plan.source.origin.get("mp_num")
            or manifest.name != plan.source.name
        ):
            differences.append(f"was made from another source ({origin.get('given', 'unnamed')})")
    return differences


def _option_differences(plan: LazyPlan, options: Mapping[str, Any]) -> list[str]:
    """Compare the options of a manifest with those that the plan's manifest would have.

    A text is compared by its content, not by its path. The device is not compared, because
    `device="auto"` may mean another device today.
    """
    expected, actual = json.loads(json.dumps(dict(plan.options))), dict(options)
    for name in plan.computed_options:
        if name not in expected:
            actual.pop(name, None)
    differences = []
    if _text_hashes(expected.pop("calibration", None)) != _text_hashes(
        actual.pop("calibration", None)
    ):
        differences.append("was fitted to another text")
    for name in dict.fromkeys((*actual, *expected)):
        if actual.get(name) != expected.get(name):
            differences.append(
                f"has {name} {_shown(actual.get(name))}, not {_shown(expected.get(name))}"
            )
    return differences


def _text_hashes(calibration: Any) -> list[Any]:
    """The hashes of a text and of its windows, from an entry of a manifest's options."""
    if not isinstance(calibration, dict):
        return []
    return [calibration.get("sha256"), calibration.get("windows")]


def _shown(value: Any) -> str:
    """Write the value of an option for a message; of a file, its name."""
    if isinstance(value, dict):
        return str(value.get("file", json.dumps(value)))
    return "none" if value is None else str(value)


def _file_differences(plan: Plan, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare the files of a manifest with those of the plan: names, sizes, bytes of headers."""
    planned = {file.path: file for file in plan.files}
    if not plan.is_folder and len(files) == len(planned) == 1:  # it may have been renamed
        planned = {next(iter(files)): plan.files[0]}
    names = [*(name for name in files if name not in planned)]
    for name, file in planned.items():
        entry = files.get(name, {})
        is_text = not file.tensors and file.size == len(file.header)
        if entry.get("bytes") != file.size or (
            is_text and entry.get("sha256") != hashlib.sha256(file.header).hexdigest()
        ):
            names.append(name)
    return [f"has another {first_few(names, NAMED, separator=', ')}"] if names else []


def _exists(plan: LazyPlan, name: str) -> bool:
    return not plan.is_folder or (plan.output / name).is_file()
