"""The documentation: the site builds without a warning, its links lead somewhere, examples run."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import cgconvert
from tests.support.generated_docs import DOCUMENTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Every warning is an error, and so is every connection to another machine."""

    def refuse(*address: object) -> None:
        raise AssertionError(f"the build of the documentation connects to {address[1:]}")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        build(config)
    return folder


def test_the_site_has_every_guide(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages >= {"verify", "onnx", "quantize", "security", "mutations", "design"}
    assert not [page for page in pages if not (site / page / "index.html").is_file()]


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api" / "index.html").read_text("utf-8")
    names = [name for name in cgconvert.__all__ if not name.startswith("__")]
    assert [name for name in names if not re.search(rf'id="cgconvert\.[\w.]*\b{name}"', page)] == []


def test_links_to_other_files_of_the_repository_lead_into_the_site(site: Path) -> None:
    page = (site / "verify" / "index.html").read_text("utf-8")
    links = re.findall(r'href="\.\./(cgconvert/[^"]+\.py)"', page)
    assert links
    assert not [link for link in links if not (site / link).is_file()]


def test_a_page_loads_nothing_from_another_site(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*"https?://')
    assert not [path for path in site.rglob("*.html") if loads.search(path.read_text("utf-8"))]


def test_pictures_are_there_and_load_nothing() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text("utf-8") for page in pages)
    named = set(re.findall(r"images/([\w.-]+)\)", text))
    pictures = {path.name: path for path in (ROOT / "docs" / "images").iterdir()}
    assert named <= pictures.keys()
    assert named >= {f"verify-{end}-{width}.svg" for end in ("pass", "fail") for width in (80, 40)}
    for path in pictures.values():
        if path.suffix == ".svg":
            assert "url(http" not in path.read_text("utf-8").replace('"', "")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_parts_that_are_made_from_the_code_are_up_to_date(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert text == DOCUMENTS[name](text), "run python -m tests.support.generated_docs"


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert len(examples) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(examples[0], "README.md", "exec"), {})
