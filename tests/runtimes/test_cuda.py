"""What each package is asked for where there is CUDA, told on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from llama_cpp import llama_cpp

from cgconvert.model.decoder import Checkpoint
from cgconvert.model.device import torch_device
from cgconvert.model.forward import rotary
from cgconvert.runtimes import open_runtime
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.verification import reference as reference_module
from cgconvert.verification.reference import Reference
from tests.support.cuda_packages import CPU, CUDA, IDS, cuda_is_there, written


@pytest.fixture(scope="module")
def artefacts(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(source, tmp_path_factory.mktemp("out"))


class CudaSession:
    """A session on the CPU that takes what is bound to CUDA, and keeps what was asked of it."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.bound = session, dict[str, str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def io_binding(self) -> Any:
        binding = self.session.io_binding()
        bind = binding.bind_output

        def bind_output(name: str, device: str) -> None:
            self.bound[name] = device
            bind(name, "cpu")

        binding.bind_output = bind_output
        return binding


def test_onnxruntime_keeps_its_cache_on_cuda(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = OnnxRuntime.open(artefacts["onnx"], "cpu", 1).feed(IDS)
    cuda_is_there(monkeypatch)
    session, values = onnxruntime.InferenceSession, onnxruntime.OrtValue
    empty, array_of = values.ortvalue_from_shape_and_type, values.ortvalue_from_numpy
    asked: list[dict[str, Any]] = []
    caches: list[str] = []

    def start(path: str, options: Any, **options_given: Any) -> CudaSession:
        asked.append(options_given)
        return CudaSession(session(path, options, providers=[CPU]))

    def shared(shape: Any, dtype: Any, device: str) -> Any:
        caches.append(device)
        return empty(shape, dtype, "cpu")

    def growing(array: np.ndarray, device: str = "cpu") -> Any:
        if array.ndim == 4:
            caches.append(device)
        return array_of(array, "cpu")

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    monkeypatch.setattr(values, "ortvalue_from_shape_and_type", shared)
    monkeypatch.setattr(values, "ortvalue_from_numpy", growing)
    opened: Any = open_runtime("onnx", artefacts["onnx"], "auto", threads=1)
    assert opened.device == "cuda"
    # TF32, the provider's default, would round float32 to 10 bits; no other provider may step in.
    assert asked == [{"providers": [(CUDA, {"use_tf32": "0"})], "enable_fallback": 0}]
    np.testing.assert_array_equal(opened.feed(IDS), expected)
    assert opened._session.bound == {"logits": "cpu"}
    assert caches == ["cuda"] * 2 * 3  # one buffer is past and present, and never leaves the GPU
    caches.clear()
    opened.batch([IDS, IDS[:2]])
    bound = opened._session.bound
    assert bound.pop("logits") == "cpu"
    assert set(bound.values()) == set(caches) == {"cuda"}
    assert len(bound) == len(caches) == 2 * 3


def test_genai_is_asked_for_cuda_without_tf32(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = GenaiRuntime.open(artefacts["onnx"], "cpu", 1).feed(IDS)
    cuda_is_there(monkeypatch)
    config, model = onnxruntime_genai.Config, onnxruntime_genai.Model
    asked: list[tuple[str, ...]] = []

    class Config:
        def __init__(self, path: str) -> None:
            self.real = config(path)
            self.overlay, self.clear_providers = self.real.overlay, self.real.clear_providers

        def append_provider(self, *arguments: str) -> None:
            asked.append(arguments)

        set_provider_option = append_provider

    monkeypatch.setattr(onnxruntime_genai, "Config", Config)
    monkeypatch.setattr(onnxruntime_genai, "Model", lambda arguments: model(arguments.real))
    opened = open_runtime("onnx", artefacts["onnx"], "auto", name="onnxruntime-genai", threads=1)
    assert opened.device == "cuda"
    assert asked == [("cuda",), ("cuda", "use_tf32", "0")]
    np.testing.assert_array_equal(opened.feed(IDS), expected)


@pytest.mark.parametrize(("device", "layers"), [("cpu", 0), ("cuda", -1)])  # -1: all of them
def test_llama_cpp_offloads_all_layers_or_none(
    device: str, layers: int, artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_is_there(monkeypatch)
    load, start = llama_cpp.llama_model_load_from_file, llama_cpp.llama_init_from_model
    parameters: list[tuple[int, ...]] = []

    def loaded(path: bytes, params: Any) -> Any:
        parameters.append((params.n_gpu_layers,))
        return load(path, params)

    def started(model: Any, params: Any) -> Any:
        parameters.append((params.offload_kqv, params.op_offload))
        return start(model, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", loaded)
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", started)
    opened = open_runtime("gguf", artefacts["gguf"], device, threads=1)
    assert opened.device == device
    assert parameters == [(layers,), (device == "cuda", device == "cuda")]
    opened.close()


def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch's meta device stand for cuda: it has no numbers and refuses the CPU's tensors."""
    to = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device: to(self, {"cuda": "meta"}.get(device, device))
    )


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.float16)])
def test_transformers_has_weights_and_inputs_on_the_device(
    device: str, dtype: torch.dtype, artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_is_there(monkeypatch)
    on_meta(monkeypatch)
    opened: Any = open_runtime("huggingface", artefacts["huggingface"], device, threads=1)
    assert opened.device == device
    weight = opened._model.lm_head.weight
    assert (weight.dtype, weight.device.type) == (dtype, {"cuda": "meta"}.get(device, device))
    if device == "cuda":
        opened.device = "meta"
        forward, devices = opened._model.forward, set[str]()

        def keep(**inputs: Any) -> Any:
            devices.update(t.device.type for t in inputs.values() if isinstance(t, torch.Tensor))
            return forward(**inputs)

        opened._model.forward = keep
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            opened.feed(IDS)
        assert devices == {"meta"}


def test_the_reference_keeps_every_tensor_on_cuda(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the logits, which have to come back, no tensor is on another device."""
    cuda_is_there(monkeypatch)
    assert torch_device("auto").type == torch_device("cuda").type == "cuda"
    reference = Reference(source.decoder, device="auto")
    assert reference.device.type == "cuda"
    reference.device = torch.device("meta")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        reference.logits([IDS, IDS[:2]])
    # The default device, and so the CPU, whichever is asked for.
    monkeypatch.setattr(reference_module, "rotary", lambda g, length, device: rotary(g, length))
    with pytest.raises(RuntimeError, match="not on the expected device"):
        reference.logits([IDS])
