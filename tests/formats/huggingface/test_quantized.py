"""Weights that another library quantized are named as such, before any other fault is."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgconvert.errors import InputError
from cgconvert.formats.read import read

Make = Callable[..., Path]
State = dict[str, torch.Tensor]


def gptq(stem: str, w: torch.Tensor) -> State:
    rows, columns = w.shape
    return {
        f"{stem}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(columns // 128, rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.ones(columns // 128, rows).half(),
        f"{stem}.g_idx": torch.arange(columns, dtype=torch.int32) // 128,
    }


def awq(stem: str, w: torch.Tensor) -> State:
    rows, columns = w.shape
    return {
        f"{stem}.qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(columns // 128, rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.ones(columns // 128, rows).half(),
    }


def eight_bits(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.weight": w.to(torch.int8), f"{stem}.SCB": torch.ones(w.shape[0])}


def four_bits(stem: str, w: torch.Tensor) -> State:
    return {
        f"{stem}.weight": torch.zeros(w.numel() // 2, 1, dtype=torch.uint8),
        f"{stem}.weight.absmax": torch.zeros(w.numel() // 64, dtype=torch.uint8),
        f"{stem}.weight.quant_map": torch.zeros(16),
        f"{stem}.weight.nested_absmax": torch.zeros(9),
        f"{stem}.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
    }


def fp8(dtype: torch.dtype) -> Callable[[str, torch.Tensor], State]:
    return lambda stem, w: {f"{stem}.weight": w.to(dtype)}


def fp8_with_scales(stem: str, w: torch.Tensor) -> State:
    return {
        f"{stem}.weight": w.to(torch.float8_e4m3fn),
        f"{stem}.weight_scale_inv": torch.ones(1, 1),
    }


def packed(stem: str, w: torch.Tensor) -> State:
    return {
        f"{stem}.weight_packed": torch.zeros(w.shape[0], w.shape[1] // 8, dtype=torch.int32),
        f"{stem}.weight_scale": torch.ones(w.shape[0], 1),
        f"{stem}.weight_shape": torch.tensor(w.shape),
    }


def hqq(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.W_q": w.to(torch.uint8), f"{stem}.scale": torch.ones(1)}


def eetq(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.weight": w.to(torch.int8).T.contiguous(),
            f"{stem}.weight_scales": torch.ones(w.shape[0]).half()}  # fmt: skip


def quanto(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.weight._data": w.to(torch.int8), f"{stem}.weight._scale": torch.ones(1)}


def torchao(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}._weight_qdata": w.to(torch.int8), f"{stem}._weight_scale": torch.ones(1)}


def bits_of(dtype: torch.dtype) -> Callable[[str, torch.Tensor], State]:
    return lambda stem, w: {f"{stem}.weight": w.half().view(dtype)}


def int8(stem: str, w: torch.Tensor) -> State:
    return {f"{stem}.weight": w.to(torch.int8)}


CHANGE = "convert the original weights from which these were made"

KINDS: dict[str, tuple[Callable[[str, torch.Tensor], State], Any, str]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}, rf"is quantized \(gptq\).*{CHANGE}"),
    "gptq, no configuration": (gptq, None, r"is quantized \(gptq\)"),
    "gptq, a broken configuration": (gptq, ["gptq"], r"is quantized \(gptq\)"),
    "awq": (awq, {"quant_method": "awq", "bits": 4}, r"is quantized \(awq\)"),
    "awq, no configuration": (awq, None, r"is quantized \(gptq or awq\)"),
    "bitsandbytes 8": (
        eight_bits, {"quant_method": "bitsandbytes", "load_in_8bit": True},
        r"is quantized \(bitsandbytes, 8 bits\).*call model\.dequantize\(\)",
    ),
    "bitsandbytes 8, no configuration": (
        eight_bits, {}, r"is quantized \(bitsandbytes, 8 bits\)",
    ),
    "bitsandbytes 4": (
        four_bits, {"load_in_4bit": True}, r"is quantized \(bitsandbytes, 4 bits\)",
    ),
    "bitsandbytes 4, a broken configuration": (
        four_bits, "nf4", r"is quantized \(bitsandbytes, 4 bits\)",
    ),
    "fp8": (
        fp8(torch.float8_e4m3fn), {"quant_method": "fp8"},
        r"is quantized \(fp8\).*type F8_E4M3 is not supported",
    ),
    "fp8, no configuration": (
        fp8(torch.float8_e5m2), None, r"is quantized \(fp8\).*type F8_E5M2 is not supported",
    ),
    "fp8 with scales": (fp8_with_scales, None, r"is quantized \(fp8\).*weight_scale_inv"),
    "compressed-tensors": (packed, {"quant_method": "compressed-tensors"},
                           r"is quantized \(compressed-tensors\)"),
    "compressed-tensors, no configuration": (packed, {"quant_method": 7},
                                             r"is quantized \(compressed-tensors\)"),
    "hqq": (hqq, None, r"is quantized \(hqq\)"),
    "eetq": (eetq, None, r"is quantized \(eetq\)"),
    "quanto": (quanto, None, r"is quantized \(quanto\)"),
    "torchao": (torchao, {"quant_method": "torchao"}, r"is quantized \(torchao\)"),
    "unknown to us": (int8, {"quant_method": "new-one"}, r"is quantized \(new-one\)"),
    "int8 alone": (int8, None, r"is quantized \(8 bits\).*type I8 is not supported"),
    "uint16": (bits_of(torch.uint16), None,
               r"is stored as U16, and type U16 is not supported: if these are the bits of"),
    "int16": (bits_of(torch.int16), None, r"is stored as I16, and type I16 is not supported"),
}  # fmt: skip


def quantize(folder: Path, kind: str, head_too: bool = False) -> State:
    """Replace each matrix of the layers as `kind` does, and say so in config.json."""
    replace, settings, _ = KINDS[kind]
    state: State = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        is_matrix = tensor.ndim == 2 and name.startswith("transformer.h.")
        state |= (
            replace(name.removesuffix(".weight"), tensor.float()) if is_matrix else {name: tensor}
        )
    config = json.loads((folder / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_source_is_named(kind: str, make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    save_file(quantize(folder, kind), folder / "model.safetensors")
    with pytest.raises(InputError, match=KINDS[kind][2]):
        read(str(folder))


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes 8", "bitsandbytes 4", "hqq"])
def test_a_quantized_torch_file_is_named(kind: str, make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    torch.save(quantize(folder, kind), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=KINDS[kind][2]):
        read(str(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16])
def test_other_types_in_a_torch_file(dtype: torch.dtype, make_checkpoint: Make) -> None:
    folder = make_checkpoint("torch")
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    name = "transformer.h.0.mlp.fc_in.weight"
    state[name] = state[name].view(dtype) if dtype == torch.uint16 else state[name].to(dtype)
    torch.save(state, path)
    method = "" if dtype == torch.uint16 else r"is quantized \(fp8\).*"
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"{method}fc_in.*type {kind} is not supported"):
        read(str(folder))


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
def test_torch_s_own_quantized_tensors(make_checkpoint: Make) -> None:
    folder = make_checkpoint("torch")
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    name = "transformer.h.0.mlp.fc_in.weight"
    state[name] = torch.quantize_per_tensor(state[name].float(), 0.01, 0, torch.qint8)
    torch.save(state, path)
    with pytest.raises(InputError, match=r"is quantized \(torch\.ao\)"):
        read(str(folder))


class Affine:
    """Stands in for a tensor of torchao: only its name is in the pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Affine, ())


def test_a_tensor_of_torchao(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("torch")
    path = folder / "pytorch_model.bin"
    module = types.ModuleType("torchao.dtypes")
    module.Affine = Affine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.dtypes", module)
    monkeypatch.setattr(Affine, "__module__", "torchao.dtypes")
    state = torch.load(path, weights_only=True)
    torch.save(state | {"transformer.h.0.mlp.fc_in.weight": Affine()}, path)
    with pytest.raises(InputError, match=r"is quantized \(torchao\): .* torchao\.dtypes\.Affine"):
        read(str(folder))


def test_moss_names_its_bits_in_the_configuration(make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    save_file(quantize(folder, "awq, no configuration"), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"wbits": 4, "groupsize": 128}))
    with pytest.raises(InputError, match=r"is quantized \(gptq, 4 bits\)"):
        read(str(folder))


def test_a_method_without_known_names(make_checkpoint: Make) -> None:
    """The configuration decides where no layer has a matrix in floats."""
    folder = make_checkpoint("safetensors")
    state = load_file(folder / "model.safetensors")
    state = {n.replace(".weight", ".strange"): t for n, t in state.items()}
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "Vptq"}}
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=r"is quantized \(vptq\)"):
        read(str(folder))


def test_floats_with_a_configuration_left_over_are_read(make_checkpoint: Make) -> None:
    """An adapter that was trained on a quantized model, merged and saved as floats."""
    folder = make_checkpoint("safetensors")
    before = read(str(folder)).decoder.head.read()
    config = json.loads((folder / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(config | settings | {"wbits": 32}))
    assert torch.equal(read(str(folder)).decoder.head.read(), before)


def test_types_of_less_than_a_byte(make_checkpoint: Make) -> None:
    folder = make_checkpoint("safetensors")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F16"', b'"F4" ', 1))
    with pytest.raises(InputError, match=r"is quantized \(F4\).*type F4 is not supported"):
        read(str(folder))
