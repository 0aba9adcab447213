"""A quantizer's promise: the loss that it measured, and the tokens that it measured it on.

The manifest has it, with the token ids themselves: another version of Python has another text in
its standard library, and a user's text may be gone. So whoever has the artefact and its source can
hold the artefact to its promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cgconvert.errors import InputError

__all__ = ["PROMISE", "PROMISE_TOKENS", "PROMISE_WINDOWS", "Promise"]

PROMISE = "promise"
"""The entry of a manifest's options."""

PROMISE_WINDOWS, PROMISE_TOKENS = 8, 128
"""How many windows are measured at most, and the most tokens of each: 6 kB in a manifest, and no
longer to verify than the prompts."""


@dataclass(frozen=True)
class Promise:
    """The loss of a quantized model on the validation windows of its calibration.

    Attributes:
        kl: The mean KL divergence from the source, in nats per token.
        standard_error: The standard error of this mean over the tokens.
        windows: The token ids of each window.
    """

    kl: float
    standard_error: float
    windows: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """The number of tokens in all windows."""
        return sum(map(len, self.windows))

    def manifest_entry(self) -> dict[str, Any]:
        """The entry of the manifest.

        It is rounded, so that the last digits of sums do not show in it. A window is one string,
        because a manifest has each number of a list on a line of its own.
        """
        return {
            "kl": float(f"{self.kl:.3g}"),
            "standard_error": float(f"{self.standard_error:.2g}"),
            "tokens": self.tokens,
            "windows": [" ".join(map(str, ids)) for ids in self.windows],
        }

    @classmethod
    def of(cls, options: Mapping[str, Any], vocab_size: int) -> Promise | None:
        """Read the promise in a manifest's options; None if there is none.

        Raises InputError if it is not what `manifest_entry` writes for so many token ids.
        """
        entry = options.get(PROMISE)
        if entry is None:
            return None
        try:
            numbers = [float(entry[name]) for name in ("kl", "standard_error")]
            lines = [str(line) for line in entry["windows"]][: PROMISE_WINDOWS + 1]
            windows = tuple(tuple(map(int, line.split())) for line in lines)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError("the promise in the manifest cannot be read") from error
        is_valid = (
            all(math.isfinite(number) and number >= 0 for number in numbers)
            and 0 < len(windows) <= PROMISE_WINDOWS
            and all(1 < len(ids) <= PROMISE_TOKENS for ids in windows)
            and all(0 <= token < vocab_size for ids in windows for token in ids)
        )
        if not is_valid:
            raise InputError("the promise in the manifest has impossible numbers")
        return cls(numbers[0], numbers[1], windows)
