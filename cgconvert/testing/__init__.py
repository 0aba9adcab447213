"""Random checkpoints of any geometry, and the script that trained the embedded model."""
