"""A GGUF file that is calibrated first: types chosen for a budget, matrices fitted to a text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cgconvert.calibrate.effort import Effort
from cgconvert.calibrate.gguf import Budget, calibrate_gguf, changeable, check
from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import InputError
from cgconvert.formats import gguf
from cgconvert.manifest import libraries
from cgconvert.quant.quantizer import Windows
from cgconvert.stream.journal import sources
from cgconvert.stream.plan import Plan
from cgconvert.stream.progress import Progress
from cgconvert.text import Text

__all__ = ["CalibratedGGUF", "standard_sizes"]

STANDARD = ("Q3_K", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""File types. A file is called after the smallest that is no smaller."""

LARGEST = "Q8_0"
"""No allocation takes more."""


@dataclass(frozen=True)
class CalibratedGGUF:
    """See quantize.calibrate; `asked` is what the user said, for the manifest."""

    checkpoint: Checkpoint
    output: Path
    budget: Budget
    text: Text
    effort: Effort
    asked: Mapping[str, Any] = field(default_factory=dict)
    format: str = "gguf"

    def __post_init__(self) -> None:
        """Raises UsageError for a budget that cannot be met, before anything is measured."""
        check(self.checkpoint.decoder, self._resolved(), self._overhead())

    @property
    def windows(self) -> Windows:
        """Raises InputError where the text is too short."""
        ids = self.text.ids(self.checkpoint.tokenizer)
        return Windows.of(ids, self.checkpoint.geometry.n_positions, self.text.name, self.effort)

    @property
    def limit(self) -> int:
        """Bytes that the file has at most."""
        if self.budget.nbytes is not None:
            return self.budget.nbytes
        if self.budget.like is not None:
            return self._plain(self.budget.like, ()).nbytes
        return self._plain(self.budget.mix or LARGEST).nbytes

    @property
    def nbytes(self) -> int:
        g, effort = self.checkpoint.geometry, self.effort
        tokens = (effort.fitted + effort.held_out) * effort.length
        return 2 * self.limit + 2 * 4 * tokens * g.n_embd

    def told(self) -> str:
        g, windows = self.checkpoint.geometry, self.windows
        return (
            f"{self.text.name}: {len(windows.fitted)} windows of {windows.fitted.shape[1]} tokens "
            f"to fit to, {len(windows.held_out)} to judge by; {g.n_layer} layers"
        )

    def plan(self, folder: Path, progress: Progress) -> Plan:
        """Raises InputError where the text is too short, UsageError where nothing fits."""
        windows = self.windows
        self._claim(folder, windows)
        done = calibrate_gguf(
            self.checkpoint, self._resolved(), windows, self.effort, folder, progress,
            self._overhead(),
        )  # fmt: skip
        plan = gguf.plan(done.checkpoint, self.output, type="F16", adjusted=done.adjusted)
        sizes = standard_sizes(self.checkpoint, done.adjusted)
        label = next((t for t, size in sizes.items() if size >= plan.nbytes), LARGEST)
        type_ = self.budget.mix or label
        plan = gguf.plan(done.checkpoint, self.output, type=type_, adjusted=done.adjusted)
        calibration = {
            "text": self.text.name, "sha256": self.text.sha256, "windows": windows.sha256,
        }  # fmt: skip
        told: dict[str, Any] = {"types": dict(done.table), "adjusted": list(done.adjusted)}
        if done.expected_kl is not None:
            told["expected_kl"] = float(f"{done.expected_kl:.3g}")
        options = {"type": type_, **self.asked, "effort": self.effort.name,
                   "calibration": calibration, **told}  # fmt: skip
        return replace(plan, options=options)

    def _resolved(self) -> Budget:
        """With bytes for a standard mix whose bytes are the limit."""
        if self.budget.like is None:
            return self.budget
        return replace(self.budget, like=None, nbytes=self.limit)

    def _claim(self, folder: Path, windows: Windows) -> None:
        """Empty `folder` unless what is in it is of the same source and text."""
        told = [
            libraries(), sources(self.checkpoint), windows.sha256, vars(self.effort),
            self.checkpoint.geometry.as_dict(),
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        mark = folder / "key"
        if not mark.is_file() or mark.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            mark.write_text(key)

    def _overhead(self) -> int:
        """Bytes of the file that are not matrices': the padding behind each at its most."""
        plan = self._plain("F16")
        matrices = [item for item in plan.items if len(item.source.shape) == 2]
        return plan.nbytes - sum(i.nbytes - gguf.ALIGNMENT for i in matrices)

    def _plain(self, type_: str, adjusted: Sequence[str] | None = None) -> Plan:
        """Of the search alone, with room for the names of all vectors that can change."""
        if adjusted is None:
            adjusted = changeable(self.checkpoint.decoder)
        return gguf.plan(self.checkpoint, self.output, type=type_, adjusted=adjusted)


def standard_sizes(checkpoint: Checkpoint, adjusted: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of the whole file by type, the smallest first; without those whose blocks do not fit
    the rows."""
    found = {}
    for type_ in STANDARD:
        with contextlib.suppress(InputError):
            found[type_] = gguf.plan(
                checkpoint, Path("x.gguf"), type=type_, adjusted=adjusted
            ).nbytes
    return dict(sorted(found.items(), key=lambda entry: entry[1]))
