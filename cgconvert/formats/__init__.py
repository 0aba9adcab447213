"""Formats: what reads, plans, describes and checks each kind of artefact."""
