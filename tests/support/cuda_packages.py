"""Artefacts to run on a device, and runtime packages that report CUDA or none."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import onnxruntime_genai
import pytest
import torch
from llama_cpp import llama_cpp

from cgconvert.formats.gguf import writer as gguf
from cgconvert.formats.huggingface import writer as huggingface
from cgconvert.formats.onnx import writer as onnx
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.execute import execute
from tests.support.in_process import open_runtimes_here

IDS = [1, 2, 3, 4, 5]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def written(source: Checkpoint, folder: Path) -> dict[str, Path]:
    """Write one artefact of each format; return their paths by format."""
    plans = {
        "huggingface": huggingface.plan(
            source, folder / "hf", dtype="float16", layout="codegen", max_shard_size=10**9
        ),
        "onnx": onnx.plan(source, folder / "onnx"),
        "gguf": gguf.plan(source, folder / "model.gguf", type="F16"),
    }
    for plan in plans.values():
        execute(plan)
    return {name: plan.output for name, plan in plans.items()}


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every package report that there is no GPU, even on a machine with a GPU."""
    open_runtimes_here(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: False)
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | ")


def cuda_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every package report a CUDA device."""
    open_runtimes_here(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: True)
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CUDA : ARCHS = 800 | ")
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
