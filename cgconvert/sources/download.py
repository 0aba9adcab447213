"""The progress of downloads by the Hub's client, measured by the growth of its cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cgconvert.io.progress import Amount, Progress, progress_of_reading
from cgconvert.io.ticker import Ticker

__all__ = ["shown_download"]

POLL_SECONDS = 0.5


@contextlib.contextmanager
def shown_download(repository: str, total: int) -> Iterator[None]:
    """Show progress while the block downloads `total` bytes (0 if the size is not known).

    The progress is the growth of the repository's files in the cache, so it does not depend on the
    client's version. The client's own bars are switched off: they take a line for each file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    growth = _Growth(blobs, total, progress_of_reading())
    had_bars = not are_progress_bars_disabled()
    if had_bars:
        disable_progress_bars()
    growth.progress.step(f"downloading {repository}", Amount(total, "bytes"))
    ticker = Ticker(growth.report, POLL_SECONDS)
    ticker.start()
    try:
        yield
    finally:
        ticker.stop()
        growth.report()
        if had_bars:
            enable_progress_bars()


class _Growth:
    """Reports to `progress` by how many bytes the files of a folder have grown."""

    def __init__(self, folder: Path, total: int, progress: Progress) -> None:
        self.folder, self.total, self.progress = folder, total, progress
        self.start, self.reported = _size(folder), 0

    def report(self) -> None:
        """Report what is new since the last call, up to the total."""
        grown = min(self.total, max(self.reported, _size(self.folder) - self.start))
        self.progress.advance(grown - self.reported)
        self.reported = grown


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files, which may come and go; 0 if there is no folder."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                size += entry.stat().st_size
    return size
