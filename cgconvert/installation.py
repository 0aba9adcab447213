"""How a package is added to the environment that this copy of cgconvert runs in.

The advice works for a clone, a wheel and a git URL alike, because it names the package itself, with
the bounds that cgconvert declares for it, and this environment. With the name of an extra, as
`cgconvert[llamacpp]`, pip would ask an index, where cgconvert may be someone else's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["compiler_hint", "install_command", "requirements", "uninstall_command"]

NAME = "cgconvert"
COMPILERS = ("c++", "g++", "clang++", "cl")
BUILT_LLAMA_CPP = "https://abetlen.github.io/llama-cpp-python/whl/cpu"
"""The index with built wheels that llama-cpp-python's own README names."""


def requirements(extra: str, package: str) -> tuple[str, ...]:
    """Return what an extra of cgconvert requires, as "llama-cpp-python>=0.3.36".

    It is read in the pyproject.toml of a clone, else in the metadata of the installed package. The
    name of the package alone is returned if neither is there.
    """
    declared = _declared_in_clone(extra) or _declared_in_metadata(extra)
    return declared or (package,)


def install_command(packages: Sequence[str], *, again: bool = False) -> str:
    """Write the command that installs packages here; with `again`, it installs them anew."""
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        force = ["--force"] if again else []
        return _joined(["pipx", "inject", *force, prefix.name, *packages])
    if not _has_pip():
        force = ["--reinstall", "--no-cache"] if again else []
        return _joined(["uv", "pip", "install", "--python", sys.executable, *force, *packages])
    force = ["--force-reinstall", "--no-cache-dir"] if again else []
    return _joined([sys.executable, "-m", "pip", "install", *_system_flags(), *force, *packages])


def uninstall_command(package: str) -> str:
    """Write the command that removes a package here."""
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return _joined(["pipx", "uninject", prefix.name, package])
    if not _has_pip():
        return _joined(["uv", "pip", "uninstall", "--python", sys.executable, package])
    return _joined([sys.executable, "-m", "pip", "uninstall", *_system_flags(), package])


def compiler_hint(package: str) -> str:
    """Say that llama-cpp-python needs a compiler, if there is none here; else ""."""
    if package != "llama-cpp-python" or any(map(shutil.which, COMPILERS)):
        return ""
    return (
        " (it is compiled, and no C++ compiler is here: install one, or add --extra-index-url "
        f"{BUILT_LLAMA_CPP} for a built wheel)"
    )


def _declared_in_clone(extra: str) -> tuple[str, ...]:
    """Read an extra in the pyproject.toml above this package, if it is that of cgconvert."""
    try:
        text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8")
        project = tomllib.loads(text)["project"]
    except (OSError, ValueError, KeyError):
        return ()
    if project.get("name") != NAME:
        return ()
    return tuple(project.get("optional-dependencies", {}).get(extra, ()))


def _declared_in_metadata(extra: str) -> tuple[str, ...]:
    """Read an extra in the metadata of the installed package, if it is installed."""
    try:
        lines = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    marker = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    split = (line.partition(";") for line in lines)
    return tuple(name.strip() for name, _, condition in split if marker.search(condition))


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _system_flags() -> list[str]:
    """Return the flag without which pip refuses to install into a system's own Python."""
    is_managed = (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file()
    return ["--break-system-packages"] if is_managed and sys.prefix == sys.base_prefix else []


def _joined(words: Sequence[str]) -> str:
    """Join words to a command of this system's shell."""
    if os.name != "nt":
        return shlex.join(words)
    # cmd knows double quotes only, and takes > for a redirection.
    return " ".join(
        f'"{word}"' if re.search(r"[<>=&|^]", word) else subprocess.list2cmdline([word])
        for word in words
    )
