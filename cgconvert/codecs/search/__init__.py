"""Searches for the scales, minimums and codes of least squared error."""
