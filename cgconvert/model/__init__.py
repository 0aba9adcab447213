"""The model: geometry, lazy tensors, tensor names, forward pass, tokenizer."""
