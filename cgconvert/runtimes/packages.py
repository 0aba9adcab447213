"""Import the package of a runtime, and say what to install if that fails."""

from __future__ import annotations

import importlib
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from cgconvert.errors import MissingRuntimeError
from cgconvert.installation import requirements
from cgconvert.io.telemetry import forbid_telemetry, forbid_telemetry_events

__all__ = ["broken_package", "import_package"]


def import_package(module: str, package: str, extra: str, oldest: str | None = None) -> Any:
    """Import a module of a runtime's package.

    Args:
        module: The module, such as "llama_cpp.llama_cpp".
        package: The name under which it is installed.
        extra: The extra of cgconvert that requires it.
        oldest: The oldest version that runs some artefacts; None for the one that `extra` requires.

    Raises:
        MissingRuntimeError: It is not installed, older than cgconvert needs, or cannot be imported,
            as without a library of the system or after half an update.
    """
    forbid_telemetry()
    top = module.partition(".")[0]
    try:
        imported = importlib.import_module(module)
        version = str(getattr(importlib.import_module(top), "__version__", ""))
    except ModuleNotFoundError as error:
        if error.name in (top, module):
            raise MissingRuntimeError(package, extra) from error
        raise broken_package(package, extra, error) from error
    except Exception as error:  # each of them fails in its own way
        raise broken_package(package, extra, error) from error
    forbid_telemetry_events(imported)
    needed = _needed(package, extra) if oldest is None else SpecifierSet(f">={oldest}")
    try:
        is_old = needed is not None and not needed.contains(Version(version), prereleases=True)
    except InvalidVersion:  # none, or that of a build of one's own
        is_old = False
    if is_old:
        raise MissingRuntimeError(package, extra, f"{version} is installed, needed is {needed}")
    return imported


def broken_package(package: str, extra: str, error: BaseException) -> MissingRuntimeError:
    """Make the error for a package that is installed and cannot be imported."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return MissingRuntimeError(
        package,
        extra,
        f"is installed and cannot be imported ({reason}); install it again",
        again=True,
    )


def _needed(package: str, extra: str) -> Any:
    """The versions of a package that its extra allows, None if it names none."""
    for line in requirements(extra, package):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name.lower() == package.lower() and len(requirement.specifier):
            return requirement.specifier
    return None
