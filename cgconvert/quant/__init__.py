"""Encodings: one block codec a file; rows of numbers to bytes and back."""
