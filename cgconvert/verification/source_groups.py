"""The check that the source was read with the right number of groups in its packed qkv_proj.

The converter and the reference read the source in the same way, so they agree if both take it for
a wrong number of groups. Text shows it (see formats/qkv_groups.py).
"""

from __future__ import annotations

import json
from dataclasses import replace

from cgconvert.formats.qkv_groups import FAR, STEP, GroupPerplexities, measure_groups, page_ids
from cgconvert.io.cache import key_of, read_entry, write_entry
from cgconvert.io.progress import Progress
from cgconvert.lazy import torch
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.thresholds import Check, at_most

__all__ = ["CHECK_NAME", "check_source_groups"]

CHECK_NAME = "source.groups"

KIND = "groups"
"""What the cache calls the measurements."""

VERSION = 1
"""Raise this number if the mathematics of the measurement change, or the content of its file."""


def check_source_groups(
    source: Checkpoint, source_sha256: str, progress: Progress | None = None
) -> list[Check]:
    """Compare the number of groups that the source was read with to all others.

    The value is the perplexity of a page of text at that number, as a multiple of the smallest. If
    the model does not know the page, nothing is judged. There is no check if the source stores q, k
    and v apart, or if only one number fits.

    Args:
        source: The checkpoint.
        source_sha256: The digest of its files.
        progress: Gets a step and an advance for each layer.
    """
    measured = _cached(source, source_sha256, progress)
    if measured is None:
        return []
    number = source.geometry.mp_num
    detail = f"read with {number}; perplexity of a page of text: {measured.figures()}"
    if not measured.is_page_known:
        detail += "; the model does not know such text, so nothing follows"
    return [
        at_most(CHECK_NAME, measured.ratio(number), FAR if measured.is_page_known else None, detail)
    ]


def _cached(
    source: Checkpoint, source_sha256: str, progress: Progress | None
) -> GroupPerplexities | None:
    """Return the measurement from the cache, or measure and keep it there."""
    # It is the same for every number of groups that the source is read with, but 0.
    geometry = replace(source.geometry, mp_num=min(source.geometry.mp_num, 1)).as_dict()
    identity = [VERSION, source_sha256, geometry, torch.__version__, page_ids(source)]
    name = f"{key_of(identity)}.json"
    measured = _load(name, source)
    if measured is not None and progress is not None:
        # A step that is complete at once, so that the count of steps stays true.
        progress.step(STEP, 1)
        progress.advance(1)
    if measured is None:
        measured = measure_groups(source, progress)
        if measured is not None:
            write_entry(KIND, name, json.dumps(measured.by_number).encode())
    return measured


def _load(name: str, source: Checkpoint) -> GroupPerplexities | None:
    """Read a measurement; None if it is absent, damaged or has not the source's number."""
    data = read_entry(KIND, name)
    if data is None:
        return None
    try:
        perplexities = {int(number): float(value) for number, value in json.loads(data).items()}
    except (ValueError, TypeError, AttributeError):
        return None
    if source.geometry.mp_num not in perplexities:
        return None
    return GroupPerplexities(perplexities, source.tokenizer.size)
