"""Hooks of mkdocs: the site and the repository's own pages share their texts and their links.

The pages are written for a reader of the repository, so they link to files beside `docs/`, such as
`../CONTRIBUTING.md` or `../cgconvert/model/decoder.py`. These hooks add each file that is linked to
the site (README.md as its first page) and rewrite the links. A link to a file that does not exist
is left as it is, and `mkdocs build --strict` fails because of it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FIRST_PAGE = "README.md"
ROOT_PAGES = (FIRST_PAGE, "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
"""The path of a Markdown link, without its fragment; not an address such as https://…"""
CODE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and every file that a page links to, directly or not."""
    unread = [*ROOT_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = {*unread, *(f"docs/{file.src_uri}" for file in files)}
    for page in ROOT_PAGES:
        files.append(_file(page, config))
    while unread:
        page = unread.pop()
        for target in sorted(set(links(page)) - known):
            if not (ROOT / target).is_file():
                continue
            files.append(_file(target, config))
            known.add(target)
            if target.endswith(".md"):
                unread.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the places that their targets have in the site."""
    assert page.file.abs_src_path is not None
    path = Path(page.file.abs_src_path).resolve().relative_to(ROOT).as_posix()

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        if not (ROOT / target).is_file():
            return match[1]
        start = posixpath.dirname(page.file.src_uri) or "."
        return posixpath.relpath(site_path(target), start)

    parts = CODE.split(markdown)  # code blocks have odd indices
    return "".join(LINK.sub(moved, part) if i % 2 == 0 else part for i, part in enumerate(parts))


def links(page: str) -> list[str]:
    """The paths that a page of the repository links to, from the repository's root."""
    text = CODE.sub("", (ROOT / page).read_text("utf-8"))
    folder = posixpath.dirname(page)
    return [posixpath.normpath(posixpath.join(folder, path)) for path in LINK.findall(text)]


def site_path(path: str) -> str:
    """The place that a file of the repository has among the site's sources."""
    return "index.md" if path == FIRST_PAGE else path.removeprefix("docs/")


def _file(path: str, config: MkDocsConfig) -> File:
    return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
