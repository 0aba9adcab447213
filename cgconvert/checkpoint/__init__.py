"""Readers: one module a layout, one entry `read`."""

from __future__ import annotations

from cgconvert.checkpoint.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
