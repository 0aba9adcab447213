"""Which device a runtime is opened on, and what is said where there is none."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime_genai
import pytest
import torch
from llama_cpp import llama_cpp

from cgconvert import runtimes
from cgconvert.errors import InputError, UsageError
from cgconvert.model.decoder import Checkpoint
from cgconvert.model.device import torch_device
from cgconvert.runtimes import RUNTIMES, llamacpp, open_runtime, runtime_class
from cgconvert.runtimes.genai import GenaiRuntime
from cgconvert.runtimes.llamacpp import LlamaCppRuntime
from cgconvert.runtimes.onnxruntime import OnnxRuntime
from cgconvert.runtimes.runtime import Runtime
from cgconvert.runtimes.transformers import TransformersRuntime
from cgconvert.verification.reference import Reference
from cgconvert.verification.verify import verify
from tests.support.cuda_packages import CPU, IDS, cuda_is_there, no_gpu, written
from tests.support.in_process import open_runtimes_here

NAMES = [(format_, name) for format_, table in RUNTIMES.items() for name in table]
NO_GPU = (
    "/onnxruntime_src/cuda_call.cc:123 std::conditional_t<THRW, void, Status> CudaCall(ERRTYPE, "
    + "const char*, " * 30
    + "int)\nCUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; hostname=here"
)


@pytest.fixture(scope="module")
def artefacts(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(source, tmp_path_factory.mktemp("out"))


# Asked for and absent


@pytest.mark.parametrize(
    ("format_", "name", "advice"),
    [
        ("huggingface", "transformers", "device cuda: torch finds no CUDA device"),
        ("onnx", "onnxruntime", "install 'onnxruntime-gpu>="),
        ("onnx", "onnxruntime-genai", "install onnxruntime-genai-cuda"),
        ("gguf", "llama.cpp", "reinstall it with CMAKE_ARGS=-DGGML_CUDA=on"),
    ],
)
def test_absent_cuda_is_an_error_with_advice(
    format_: str,
    name: str,
    advice: str,
    artefacts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_gpu(monkeypatch)
    with pytest.raises(UsageError, match=advice + '.*use `device="cpu"`$') as caught:
        open_runtime(format_, artefacts[format_], "cuda", name=name, threads=1)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_reference_refuses_absent_cuda(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    with pytest.raises(UsageError, match='no CUDA device; use `device="cpu"`'):
        Reference(source.decoder, device="cuda")
    assert Reference(source.decoder, device="auto").device.type == "cpu"
    assert torch_device("auto").type == torch_device("cpu").type == "cpu"


@pytest.mark.parametrize("format_", RUNTIMES)
def test_verify_refuses_absent_cuda(
    format_: str, artefacts: dict[str, Path], source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    with pytest.raises(UsageError, match="device cuda"):
        verify(artefacts[format_], format_, "float16", source, "cuda", threads=1)


@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_other_devices_are_refused(format_: str, name: str, artefacts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="give auto, cpu, cuda, mps or gpu"):
        open_runtime(format_, artefacts[format_], "tpu", name=name)
    with pytest.raises(UsageError, match=r"device tpu: .* runs on cpu(,| or) cuda.* here"):
        runtime_class(format_, name).open(artefacts[format_], "tpu")
    with pytest.raises(UsageError, match="give auto, cpu, cuda, mps or gpu"):
        torch_device("tpu")


@pytest.mark.parametrize("device", ["mps", "gpu"])
@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_an_absent_gpu_is_an_error_with_advice(
    device: str, format_: str, name: str, artefacts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    no_gpu(monkeypatch)
    with pytest.raises(UsageError) as caught:
        open_runtime(format_, artefacts[format_], device, name=name, threads=1)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    is_only_elsewhere = device == "mps" and name != "transformers"
    assert ("runs on cpu" in str(caught.value)) == is_only_elsewhere
    assert str(caught.value).endswith('use `device="cpu"`') != is_only_elsewhere


def test_gpu_is_the_best_that_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    for name in ("mps", "gpu"):
        with pytest.raises(UsageError, match=f'device {name}: torch finds .*; use `device="cpu"`$'):
            torch_device(name)
    assert torch_device("gpu", cpu_without_gpu=True).type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [torch_device(name).type for name in ("auto", "cpu", "mps", "gpu")] == [
        "cpu", "cpu", "mps", "mps",
    ]  # fmt: skip
    cuda_is_there(monkeypatch)
    assert [torch_device(name).type for name in ("auto", "cpu", "mps", "gpu")] == [
        "cuda", "cpu", "mps", "cuda",
    ]  # fmt: skip


def test_llama_cpp_runs_on_any_gpu_that_it_was_built_for(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build with Vulkan or Metal is imitated; all layers are handed to the GPU."""
    no_gpu(monkeypatch)
    layers: list[int] = []
    load_model = llama_cpp.llama_model_load_from_file

    def loading(path: bytes, params: Any) -> Any:
        layers.append(params.n_gpu_layers)
        return load_model(path, params)

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", loading)
    devices = [("CPU", 0), ("Vulkan0", 1), ("Vulkan1", 2)]
    monkeypatch.setattr(llamacpp, "_devices", lambda library: devices)
    with closing(open_runtime("gguf", artefacts["gguf"], "gpu", threads=1)) as runtime:
        assert runtime.device == "gpu (Vulkan0, Vulkan1)"
        assert len(runtime.feed(IDS)) == len(IDS)
    with closing(open_runtime("gguf", artefacts["gguf"], "cpu", threads=1)) as runtime:
        assert runtime.device == "cpu"
    assert layers == [-1, 0]
    with pytest.raises(UsageError, match=r"device cuda: .* built without CUDA"):
        open_runtime("gguf", artefacts["gguf"], "cuda", threads=1)


def test_llama_cpp_names_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("CPU", 0) in llamacpp._devices(llama_cpp)
    monkeypatch.setattr(llama_cpp, "_lib", object())
    assert llamacpp._devices(llama_cpp) == []  # as on Windows
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    assert llamacpp.gpu_names(llama_cpp) == "unnamed"


# Built with CUDA, but it does not start


def test_llama_cpp_built_for_cuda_refuses_an_absent_device(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_is_there(monkeypatch)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(UsageError, match='finds no CUDA device; use `device="cpu"`'):
        LlamaCppRuntime.open(artefacts["gguf"], "cuda", 1)


def test_a_provider_that_does_not_start_is_an_error(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime takes the CPU where CUDA's libraries do not load, and says nothing."""
    cuda_is_there(monkeypatch)
    opened = onnxruntime.InferenceSession

    def on_the_cpu(path: str, options: Any, **_: Any) -> onnxruntime.InferenceSession:
        return opened(path, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    with pytest.raises(UsageError, match=r"does not start; .*, or use `device=\"cpu\"`"):
        OnnxRuntime.open(artefacts["onnx"], "cuda", 1)


@pytest.mark.parametrize("kind", [OnnxRuntime, GenaiRuntime])
def test_a_gpu_that_fails_is_not_the_files_fault(
    kind: type[Runtime], artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    message: list[str] = []

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(message[0])

    cuda_is_there(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(onnxruntime_genai, "Model", fail)
    message[:] = [NO_GPU]
    with pytest.raises(UsageError, match='use `device="cpu"`: CUDA failure 100: no CUDA-capable'):
        kind.open(artefacts["onnx"], "cuda", 1)
    message[:] = ["Load model failed: Protobuf parsing failed."]
    with pytest.raises(InputError, match="cannot load it: Load model failed"):
        kind.open(artefacts["onnx"], "cuda", 1)


def test_a_model_larger_than_the_gpu_is_not_the_files_fault(
    artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB")

    def no_room(*_: Any) -> None:
        llamacpp._error_lines.append(
            "allocating 14000 MiB on device 0: cudaMalloc failed: no memory\n"
        )

    cuda_is_there(monkeypatch)
    monkeypatch.setattr(torch.nn.Module, "to", full)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", no_room)
    threads = torch.get_num_threads()
    with pytest.raises(UsageError, match='moved to cuda, use `device="cpu"`: CUDA out of memory'):
        TransformersRuntime.open(artefacts["huggingface"], "cuda", threads + 1)
    assert torch.get_num_threads() == threads
    with pytest.raises(UsageError, match=r"use `device=\"cpu\"`: .* cudaMalloc failed"):
        LlamaCppRuntime.open(artefacts["gguf"], "cuda", 1)


# auto


@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_auto_takes_the_cpu_where_the_runtime_has_no_cuda(
    format_: str, name: str, artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch)
    monkeypatch.setattr(runtimes, "_has_gpu", lambda: True)
    opened = open_runtime(format_, artefacts[format_], "auto", name=name, threads=1)
    assert opened.device == "cpu"
    assert len(opened.feed(IDS)) == len(IDS)
    opened.close()


@pytest.mark.parametrize(
    ("format_", "type_"), [("huggingface", "float16"), ("onnx", "float32"), ("gguf", "F16")]
)
def test_the_report_names_the_device(
    format_: str,
    type_: str,
    artefacts: dict[str, Path],
    source: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_gpu(monkeypatch)
    monkeypatch.setattr(runtimes, "_has_gpu", lambda: True)
    report = verify(artefacts[format_], format_, type_, source, "auto", new_tokens=0, threads=1)
    assert report.runtime["device"] == report.reference["device"] == "cpu"


@pytest.mark.parametrize(
    ("gpu", "device", "asked"),
    [(True, "auto", "cuda"), (False, "auto", "cpu"), (True, "cpu", "cpu"), (False, "cuda", "cuda")],
)
@pytest.mark.parametrize(("format_", "name"), NAMES)
def test_a_runtime_is_opened_on_the_device_asked_for(
    format_: str, name: str, gpu: bool, device: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_runtimes_here(monkeypatch)
    runtime, calls = runtime_class(format_, name), []
    monkeypatch.setattr(runtimes, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(runtime, "open", lambda *arguments: calls.append(arguments))
    open_runtime(format_, Path("artefact"), device, name=name, threads=3)
    assert calls == [(Path("artefact"), asked, 3)]
