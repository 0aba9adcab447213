"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest

from cgconvert.verification.report.model import Report
from cgconvert.verification.thresholds import Verdict
from tests.support.reports import CHECKS, HOSTILE, report


@pytest.fixture(params=["out/tiny.gguf", HOSTILE])
def reports(request: pytest.FixtureRequest) -> list[Report]:
    passing = tuple(c for c in CHECKS if c.verdict in (Verdict.PASS, Verdict.INFO))
    return [report(request.param), report("out/other.gguf", passing)]
