"""Convert Salesforce CodeGen checkpoints to safetensors, ONNX and GGUF, and prove the result."""

__version__ = "0.1.0"
