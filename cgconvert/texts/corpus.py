"""Python's own standard library as a text corpus, in three parts that never mix.

The part of a module depends on the hash of its group's name alone. So it is the same in every
version of Python, with or without the `test` package, and no machine evaluates a model on a text
that the embedded model was trained on.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sysconfig
import tokenize
from pathlib import Path

__all__ = ["PARTS", "digest", "files", "group_of", "part_of", "text"]

PARTS = ("training", "calibration", "evaluation")

# Packages that nobody wrote by hand: most of encodings is generated character maps, pydoc_data is
# the reference manual as one dict, data and tokenizedata are broken inputs of tests.
_SKIPPED = frozenset({"encodings", "pydoc_data", "data", "tokenizedata"})
# The start of the name of a module that is generated when Python is built, with a machine's paths.
_GENERATED = "_sysconfigdata"
_TEST_HELPER = re.compile(r"_?(tester|tests)$")


def group_of(module_name: str) -> str:
    """Return the group of a module (by its dotted name): a group belongs to one part as a whole.

    The group is the top-level module or package, without underscores around its name and without
    the prefix `_py` (`_pydecimal` belongs to `decimal`). A test belongs to the group of the module
    that it tests: `test.test_json.tool` and `json.tests` to `json`, `test.test_xml_etree` to `xml`,
    `test.pickletester` to `pickle`.

    Raises ValueError if the name is empty or has an empty component.
    """
    names = module_name.split(".")
    if not all(names):
        raise ValueError(f"not a module name: {module_name!r}")
    top = names[0]
    if top == "test" and len(names) > 1:
        top = names[1].lstrip("_")
        is_test_module = top.startswith("test_")
        top = top.removeprefix("test_") if is_test_module else _TEST_HELPER.sub("", top)
        # test_multiprocessing_fork tests multiprocessing: names of public modules have no
        # underscore.
        top = top.strip("_").split("_")[0]
    elif top.startswith("_py"):
        top = top.removeprefix("_py")
    return top.strip("_") or names[0]


def part_of(module_name: str) -> str:
    """Return the part, one of PARTS, that a module belongs to, by its dotted name.

    A tenth of all groups is for evaluation and a tenth for calibration.

    Raises ValueError if the name is empty or has an empty component.
    """
    value = hashlib.sha256(group_of(module_name).encode()).digest()[:8]
    fraction = int.from_bytes(value, "big") / 2**64
    if fraction < 0.1:
        return "evaluation"
    return "calibration" if fraction < 0.2 else "training"


def _read(path: Path) -> str | None:
    """Return a module's source with `\\n` line ends, or None if it is empty or not UTF-8."""
    data = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding not in ("utf-8", "utf-8-sig"):
            return None
        source = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None
    return source.replace("\r\n", "\n").replace("\r", "\n") if source.strip() else None


def _module_name(relative: str) -> str:
    """Return the dotted name of the module at a path relative to the library's folder."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _modules(part: str, root: Path | None) -> list[tuple[str, str]]:
    """Return path (relative to the library, with slashes) and source of each module of a part."""
    if part not in PARTS:
        raise ValueError(f"no such part: {part!r}; there are {', '.join(PARTS)}")
    library = _library_folder(root)
    modules = []
    for folder, folders, names in os.walk(library):
        # This leaves out site-packages, lib-dynload and config-3.x-…, which are no identifiers.
        folders[:] = [name for name in folders if name.isidentifier() and name not in _SKIPPED]
        for name in names:
            path = Path(folder, name)
            if path.suffix != ".py" or not path.stem.isidentifier() or name.startswith(_GENERATED):
                continue
            relative = path.relative_to(library).as_posix()
            if part_of(_module_name(relative)) != part:
                continue
            source = _read(path)
            if source is not None:
                modules.append((relative, source))
    return sorted(modules)


def _library_folder(root: Path | None) -> Path:
    """The folder of the standard library: `root`, or the running Python's if None."""
    return Path(sysconfig.get_path("stdlib")) if root is None else root


def files(part: str, root: Path | None = None) -> list[Path]:
    """Return the paths of a part's modules, sorted.

    The library is the folder `root`, by default the running Python's.

    Raises ValueError if `part` is not one of PARTS.
    """
    return [_library_folder(root) / relative for relative, _ in _modules(part, root)]


def text(part: str, limit_bytes: int | None = None, root: Path | None = None) -> list[str]:
    """Return the sources of a part's modules, in the order of a hash of the modules' names.

    This order is always the same and mixes modules, so that the start of the list is a fair sample.

    Args:
        part: The part, one of PARTS.
        limit_bytes: Most bytes that the sources have together, as UTF-8. The last one is cut after
            a full line.
        root: The folder of the library; by default the running Python's.

    Raises:
        ValueError: `part` is not one of PARTS.
    """
    modules = _modules(part, root)
    modules.sort(key=lambda module: hashlib.sha256(_module_name(module[0]).encode()).digest())
    if limit_bytes is None:
        return [source for _, source in modules]
    sources: list[str] = []
    bytes_left = limit_bytes
    for _, source in modules:
        data = source.encode()
        if len(data) > bytes_left:
            data = data[: data.rfind(b"\n", 0, max(bytes_left, 0)) + 1]
            return [*sources, data.decode()] if data else sources
        sources.append(source)
        bytes_left -= len(data)
    return sources


def digest(part: str, root: Path | None = None) -> str:
    """Return one SHA-256 (hex) of the relative paths and the sources of all modules of a part.

    Raises ValueError if `part` is not one of PARTS.
    """
    hasher = hashlib.sha256()
    for relative, source in _modules(part, root):
        content = hashlib.sha256(source.encode()).hexdigest()
        hasher.update(f"{relative}\0{content}\n".encode())
    return hasher.hexdigest()
