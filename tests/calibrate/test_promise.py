"""The promise of a quantizer: what the manifest holds, and how an artefact is held to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cgconvert.calibrate import gguf as calibrate
from cgconvert.calibrate.allocation import Choice
from cgconvert.calibrate.budget import Budget
from cgconvert.calibrate.gguf import calibrate_gguf
from cgconvert.calibrate.presets import PRESETS
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.errors import InputError, UsageError
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Decoder
from cgconvert.model.matrix_id import MatrixId
from cgconvert.verification.promise import check_promise
from cgconvert.verification.thresholds import Verdict
from cgconvert.write.promise import Promise
from tests.conftest import first_layers

WINDOWS = ((1, 2, 3), (4, 5))


def test_a_promise_survives_the_manifest() -> None:
    entry = Promise(0.000123456, 0.00000123456, WINDOWS).manifest_entry()
    assert entry["windows"] == ["1 2 3", "4 5"]
    assert Promise.of({"promise": entry}, 6) == Promise(0.000123, 0.0000012, WINDOWS)
    assert Promise.of({"type": "Q4_K_M"}, 6) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": "much"}, {"kl": -1}, {"kl": float("nan")}, {"standard_error": None},
        {"windows": []}, {"windows": ["1"]}, {"windows": ["1 6"]}, {"windows": ["1 -1"]},
        {"windows": ["1 x"]}, {"windows": 7}, {"windows": ["1 2"] * 9},
        {"windows": ["1 " * 129]},
    ],
)  # fmt: skip
def test_a_promise_that_nobody_wrote_is_refused(changes: dict[str, Any]) -> None:
    entry = Promise(1e-4, 1e-5, WINDOWS).manifest_entry()
    with pytest.raises(InputError, match="promise in the manifest"):
        Promise.of({"promise": {**entry, **changes}}, 6)
    with pytest.raises(InputError, match="promise in the manifest"):
        Promise.of({"promise": "small"}, 6)


@pytest.mark.parametrize(
    ("promised", "error", "loss", "noise", "passes"),
    [
        (2e-4, 1e-5, 2e-4, 0.0, True),
        (2e-4, 1e-5, 3.2e-4, 1.1e-4, True),  # what 8-bit activations add
        (2e-4, 1e-5, 5e-3, 1.1e-4, False),
        (2e-4, 1e-5, 5e-3, 0.0, False),
        (2e-4, 1e-5, 2.4e-4, 0.0, False),
        (0.0, 0.0, 1e-6, 0.0, True),
        (2e-4, 1e-5, 2e-4, -1e-9, True),
        (2e-4, 1e-5, float("nan"), float("nan"), False),
    ],
)
def test_an_artefact_is_held_to_its_promise(
    promised: float, error: float, loss: float, noise: float, passes: bool
) -> None:
    promise = Promise(promised, error, WINDOWS)
    observation: Any = SimpleNamespace(sequences=((9, 9), *WINDOWS))
    others = [100.0, 100.0]  # of the prompts
    comparisons: Any = SimpleNamespace(
        with_source=SimpleNamespace(kl=np.array([*others, *[loss] * 5])),
        with_stored=SimpleNamespace(kl=np.array([*others, *[noise] * 5])),
    )
    check = check_promise(promise, observation, comparisons)
    assert (check.name, check.verdict == Verdict.PASS) == ("calibration.loss", passes), check
    cut: Any = SimpleNamespace(sequences=((9, 9), (1, 2), (4, 5)))
    assert check_promise(promise, cut, comparisons).verdict == Verdict.INFO


class ForgetfulQuantizer:
    """A quantizer whose models lose more than its sensitivities say."""

    excess = 3.0
    calibrations = 0

    def __init__(self, decoder: Decoder, *_: object) -> None:
        self.decoder = decoder

    def choices(self, types: Mapping[str, BlockCodec]) -> dict[MatrixId, list[Choice]]:
        sizes = {"Q3_K": (3, 8e-3), "Q4_K": (4, 2e-3), "Q6_K": (6, 1e-3), "Q8_0": (8, 1e-4)}
        losses = [Choice(name, *size) for name, size in sizes.items()]
        return dict.fromkeys(MatrixId.all(1), losses)

    def calibrate(self, types: Mapping[MatrixId, BlockCodec]) -> tuple[Decoder, Promise]:
        type(self).calibrations += 1
        choices = self.choices({})
        expected = sum(
            choice.loss
            for name, codec in types.items()
            for choice in choices[name]
            if choice.type == codec.name
        )
        return self.decoder, Promise(self.excess * expected, 0.0, WINDOWS)


@pytest.mark.parametrize(("excess", "calibrations"), [(0.5, 1), (1.0, 1), (3.0, 2), (1000, None)])
def test_a_largest_loss_was_measured(
    excess: float, calibrations: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ForgetfulQuantizer, "excess", excess)
    monkeypatch.setattr(ForgetfulQuantizer, "calibrations", 0)
    monkeypatch.setattr(calibrate, "Quantizer", ForgetfulQuantizer)
    source: Any = replace(first_layers(1), name="small")

    def result() -> Any:
        arguments: Any = (None, PRESETS["default"], tmp_path, SilentProgress())
        return calibrate_gguf(source, Budget(kl=0.01), *arguments)

    if calibrations is None:
        with pytest.raises(UsageError, match="no choice of types loses as little"):
            result()
        return
    assert result().promise.kl <= 0.01
    assert ForgetfulQuantizer.calibrations == calibrations
