"""How the quantization parameters of blocks are computed: by a rounding rule or by a search."""
