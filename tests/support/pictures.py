"""Draw docs/images: the page of a verification, wide, on a telephone and in the dark.

    python -m tests.support.pictures

It needs Chromium. The artefacts are the built-in model's, one of them damaged.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cgconvert

IMAGES = Path(__file__).parents[2] / "docs" / "images"
TINY = "codegen-tiny-mono"
TELEPHONE = 390
SIZES = {"wide": (1200, 900), "390": (TELEPHONE, 844), "dark": (1200, 900)}


def main() -> None:
    """Write a picture of each kind, of a page that passed and of one that failed."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        cgconvert.to_gguf(TINY, "right.gguf", type="Q8_0")
        cgconvert.to_gguf(TINY, "changed.gguf", type="F16")
        with Path("changed.gguf").open("r+b") as file:
            file.seek(-2_000_000, os.SEEK_END)
            file.write(bytes(64))
        cgconvert.verify("right.gguf", report=["pass.html"])
        cgconvert.verify(["right.gguf", "changed.gguf"], report=["fail.html"])
        for page in ("pass", "fail"):
            if (wider := overflow(Path(f"{page}.html").resolve())) > 0:
                sys.exit(f"{page}.html is {wider} pixels wider than a telephone")
            for kind in SIZES:
                draw(Path(f"{page}.html").resolve(), kind, IMAGES / f"verify-{page}-{kind}.png")


def draw(page: Path, kind: str, picture: Path) -> None:
    """Draw the top of a page.

    Chromium's window is at least 500 pixels wide, so a telephone is a frame in a larger page. A
    page follows the system's colours, which a headless Chromium has not: the dark ones are put in
    the place of the light ones.
    """
    width, height = SIZES[kind]
    shown = page
    if kind == "dark":
        shown = page.with_suffix(".dark.html")
        text = page.read_text("utf-8")
        shown.write_text(text.replace("(prefers-color-scheme: dark)", "screen"), "utf-8")
    if kind == "390":
        shown = page.with_suffix(".frame.html")
        frame = f'<iframe src="{page.as_uri()}" width="{width}" height="{height}"'
        shown.write_text(f'<body style="margin:0">{frame} style="border:0"></iframe>', "utf-8")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium is not installed")
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
         f"--window-size={width},{height}", f"--screenshot={picture}", shown.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def overflow(page: Path) -> int:
    """Measure by how many pixels a page is wider than a telephone."""
    probe = page.with_suffix(".probe.html")
    probe.write_text(
        f'<iframe id="f" src="{page.name}" width="{TELEPHONE}" height="844"></iframe>'
        "<script>f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth"
        " }</script>",
        "utf-8",
    )
    chromium = shutil.which("chromium") or "chromium"
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--virtual-time-budget=3000", "--dump-dom", probe.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    match = re.search(r"<title>(\d+)</title>", done.stdout)
    assert match is not None, done.stdout
    return int(match[1]) - TELEPHONE


if __name__ == "__main__":
    main()
