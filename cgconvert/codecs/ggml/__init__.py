"""ggml's block types, one codec each."""
