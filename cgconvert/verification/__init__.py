"""Reference, evidence, checks, thresholds, reports."""
