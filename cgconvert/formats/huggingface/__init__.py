"""Hugging Face folders, as CodeGen and as Phi."""
