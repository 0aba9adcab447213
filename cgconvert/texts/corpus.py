"""Python's own standard library as a text corpus, in three parts that never mix.

The part of a module follows from the hash of its group's name alone. So it is the same in another
Python version, and in one without the `test` package: a text that the embedded model was trained on
is an evaluation text on no machine.
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

# Packages that are not written by hand: encodings is generated charmaps but for a few modules,
# pydoc_data is the reference manual as one dict, data and tokenizedata are broken input of tests.
_SKIPPED = frozenset({"encodings", "pydoc_data", "data", "tokenizedata"})
# The start of a module's name that is written when Python is built: it holds a machine's paths.
_BUILT = "_sysconfigdata"
_HELPER = re.compile(r"_?(tester|tests)$")


def group_of(module_name: str) -> str:
    """Return the name of the group that `module_name` (dotted) shares its part with.

    The group is the top-level module or package without outer underscores or a `_py` prefix
    (`_pydecimal` is `decimal`). A test belongs to the module it tests: `test.test_json.tool`
    and `json.tests` to `json`, `test.test_xml_etree` to `xml`, `test.pickletester` to `pickle`.

    Raises ValueError where the name is empty or has an empty component.
    """
    names = module_name.split(".")
    if not all(names):
        raise ValueError(f"not a module name: {module_name!r}")
    top = names[0]
    if top == "test" and len(names) > 1:
        top = names[1].lstrip("_")
        top = top[5:] if top.startswith("test_") else _HELPER.sub("", top)
        # test_multiprocessing_fork tests multiprocessing; public modules have no underscore.
        top = top.strip("_").split("_")[0]
    elif top.startswith("_py"):
        top = top[3:]
    return top.strip("_") or names[0]


def part_of(module_name: str) -> str:
    """Return the part, one of PARTS, of the dotted `module_name`; raises ValueError as group_of."""
    value = hashlib.sha256(group_of(module_name).encode()).digest()[:8]
    fraction = int.from_bytes(value, "big") / 2**64
    if fraction < 0.1:
        return "evaluation"
    return "calibration" if fraction < 0.2 else "training"


def _read(path: Path) -> str | None:
    """Return the source with `\\n` line ends, or None where it is empty or not UTF-8."""
    data = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding not in ("utf-8", "utf-8-sig"):
            return None
        source = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None
    return source.replace("\r\n", "\n").replace("\r", "\n") if source.strip() else None


def _module(relative: str) -> str:
    """The dotted name of the module at a path relative to the library."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documents(part: str, root: Path | None) -> list[tuple[str, str]]:
    """Return (path relative to the root with slashes, source) of a part's modules, sorted."""
    if part not in PARTS:
        raise ValueError(f"no such part: {part!r}; there are {', '.join(PARTS)}")
    top = _top(root)
    documents = []
    for folder, folders, names in os.walk(top):
        # site-packages, lib-dynload and config-3.x-… are no identifiers, so they are left out too.
        folders[:] = [name for name in folders if name.isidentifier() and name not in _SKIPPED]
        for name in names:
            path = Path(folder, name)
            if path.suffix != ".py" or not path.stem.isidentifier() or name.startswith(_BUILT):
                continue
            relative = path.relative_to(top).as_posix()
            if part_of(_module(relative)) != part:
                continue
            source = _read(path)
            if source is not None:
                documents.append((relative, source))
    return sorted(documents)


def _top(root: Path | None) -> Path:
    """The folder of the library: `root`, or the running Python's."""
    return Path(sysconfig.get_path("stdlib")) if root is None else root


def files(part: str, root: Path | None = None) -> list[Path]:
    """Return the paths of a part's modules, sorted; `root` stands in for the running Python's.

    Raises ValueError where `part` is none of PARTS.
    """
    return [_top(root) / relative for relative, _ in _documents(part, root)]


def text(part: str, limit_bytes: int | None = None, root: Path | None = None) -> list[str]:
    """Return a part's documents, one a module, in the order of a hash of their names.

    That order is fixed and mixes modules, so that the start of the list is a fair sample. With
    `limit_bytes` the documents have at most that many bytes of UTF-8 together; the last one is cut
    after a full line. Raises ValueError where `part` is none of PARTS.
    """
    documents = _documents(part, root)
    documents.sort(key=lambda document: hashlib.sha256(_module(document[0]).encode()).digest())
    if limit_bytes is None:
        return [source for _, source in documents]
    chosen: list[str] = []
    left = limit_bytes
    for _, source in documents:
        data = source.encode()
        if len(data) > left:
            data = data[: data.rfind(b"\n", 0, max(left, 0)) + 1]
            return [*chosen, data.decode()] if data else chosen
        chosen.append(source)
        left -= len(data)
    return chosen


def digest(part: str, root: Path | None = None) -> str:
    """Return the sha256 (64 hex digits) over the names, relative to the root, and the contents.

    Raises ValueError where `part` is none of PARTS.
    """
    total = hashlib.sha256()
    for relative, source in _documents(part, root):
        content = hashlib.sha256(source.encode()).hexdigest()
        total.update(f"{relative}\0{content}\n".encode())
    return total.hexdigest()
