"""Ways from the weights of blocks to their quantization parameters."""
