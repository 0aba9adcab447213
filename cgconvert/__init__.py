"""Convert Salesforce CodeGen checkpoints to safetensors, ONNX and GGUF, and prove the result."""

from cgconvert.version import __version__

__all__ = ["__version__"]
