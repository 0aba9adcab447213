"""Artefacts with something beside or in them that a program would take for what was checked."""
