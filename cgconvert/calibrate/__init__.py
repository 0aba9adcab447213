"""Quantization fitted to a calibration text."""
