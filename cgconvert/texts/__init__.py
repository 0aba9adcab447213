"""Texts for calibration and verification."""
