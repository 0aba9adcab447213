"""Encodings: rows of weights to bytes and back."""
