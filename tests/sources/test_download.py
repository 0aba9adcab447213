"""The progress of a download: the bytes by which the Hub's cache grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from cgconvert.io.progress import shown_while_reading
from cgconvert.sources.download import shown_download


class Recorded:
    """Keeps the steps and how much of the last was reported."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.amount = 0
        self.finished = False

    def step(self, label: str, total: int) -> None:
        self.steps.append((label, total))
        self.amount = 0

    def advance(self, amount: int) -> None:
        self.amount += amount

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("total", [1000, 300, 0])
def test_the_growth_of_the_cache_is_shown(
    total: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before does not count, nor do more bytes than were announced."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--me--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "earlier").write_bytes(bytes(500))
    progress = Recorded()
    had_bars = not are_progress_bars_disabled()
    with shown_while_reading(progress), shown_download("me/model", total):
        assert are_progress_bars_disabled()
        (blobs / "new.incomplete").write_bytes(bytes(400))
    assert progress.steps == [("downloading me/model", total)]
    assert progress.amount == min(total, 400)
    assert progress.finished
    assert are_progress_bars_disabled() is not had_bars
