"""What a graph is made for: the values of the options `client` and `target`."""

from __future__ import annotations

__all__ = ["CLIENTS", "TARGETS"]

CLIENTS = ("any", "transformers.js")
TARGETS = ("cpu", "cuda")
