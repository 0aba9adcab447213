"""ONNX folders for onnxruntime, onnxruntime-genai, optimum and transformers.js."""
