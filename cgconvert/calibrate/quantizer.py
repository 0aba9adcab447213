"""Calibrate a model in a folder that stores each completed step.

First the loss of each type is measured for each matrix, then every matrix is fitted to its inputs.
An interrupted run continues after its last completed step. The resulting bytes depend only on the
source, the calibration set, the types and the kind of device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgconvert.calibrate.allocation import Choice
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.gptq import Hessian, quantize_matrix
from cgconvert.calibrate.layerwise import HiddenStates, LayerwiseCalibration, QuantizedPart
from cgconvert.calibrate.sensitivity import MatrixSample, sensitivities
from cgconvert.calibrate.statistics import second_moments
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.formats.huggingface import safetensors_reader
from cgconvert.io.atomic_file import atomic_path, write_atomic
from cgconvert.io.cache import key_of
from cgconvert.io.parallel import start_workers
from cgconvert.io.progress import Amount, Progress
from cgconvert.io.reading import read_bytes
from cgconvert.lazy import safetensors_torch, torch
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import float64_device, torch_device
from cgconvert.model.dtype import UINT8
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor import LazyTensor
from cgconvert.write.promise import Promise

__all__ = ["SENSITIVITY_WINDOWS", "Quantizer"]

BASE_TYPE = "Q4_K"
"""The type whose loss is measured. The losses of other types are estimated from it."""

SENSITIVITY_WINDOWS, SENSITIVITY_BYTES = 64, 2 << 30
"""The largest number of windows that sensitivities are measured on, and the bytes that their inputs
and gradients in a layer may take. Three windows in four are training windows."""


class Quantizer:
    """The calibration of a model, whose completed steps are stored in a folder.

    Args:
        decoder: The source.
        calibration_set: The windows of text.
        vocab_size: The number of ids that the tokenizer has.
        sweeps: The number of sweeps of coordinate descent.
        folder: The folder of the steps. It must not contain steps of another source or another
            calibration set.
        progress: Advances with the steps.
        device: The device of all computations. The last digits of sums differ between kinds of
            devices, and so do the resulting bytes.
    """

    def __init__(
        self,
        decoder: Decoder,
        calibration_set: CalibrationSet,
        vocab_size: int,
        sweeps: int,
        folder: Path,
        progress: Progress,
        device: torch.device | None = None,
    ) -> None:
        self.decoder, self.calibration_set, self.vocab_size = decoder, calibration_set, vocab_size
        self.sweeps, self.device = sweeps, device or torch_device("cpu")
        self.folder, self.steps, self.progress = folder, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cpu":  # on a GPU no worker processes are needed
            start_workers(torch.get_num_threads())

    def choices(self, types: Mapping[str, BlockCodec]) -> dict[MatrixId, list[Choice]]:
        """Measure the bytes and the loss of each matrix in each type.

        The loss is the mean KL divergence, in nats per token, if only this matrix is quantized. It
        is measured for BASE_TYPE after GPTQ. For the other types it is scaled by the ratio of the
        squared output errors of direct encoding.

        Args:
            types: The types by their names. A matrix is measured in those whose blocks its rows
                consist of.
        """
        path = self.folder / "choices.json"
        if not path.is_file():
            measured: dict[str, list[tuple[str, int, float]]] = {}

            def visit(sample: MatrixSample) -> None:
                columns = sample.shape[1]
                fitting = {n: c for n, c in types.items() if columns % c.block_size == 0}
                measured[sample.name.key] = _measure_types(sample, fitting)

            self._measure(visit)
            write_atomic(path, json.dumps(measured).encode(), durable=False)
        stored = json.loads(read_bytes(path))
        return {
            MatrixId.from_key(key): [Choice(*choice) for choice in choices]
            for key, choices in stored.items()
        }

    def calibrate(self, types: Mapping[MatrixId, BlockCodec]) -> tuple[Decoder, Promise]:
        """Quantize the matrices in these types, fitted to the text.

        Matrices without a type stay unchanged. Returns the quantized decoder, whose tensors are
        read from the folder, and the loss that it has on the validation windows.
        """
        d = self.decoder
        names = {name.key: codec.name for name, codec in types.items()}
        self.steps = self.folder / key_of(names)[:16]
        self.steps.mkdir(exist_ok=True)
        train, validation = self.calibration_set.train, self.calibration_set.validation
        calibration = LayerwiseCalibration(d, types, train, validation, self.sweeps, self.device)
        with torch.inference_mode():
            promise = self._run(calibration)
        model_tensors: dict[str, Any] = self._read("wte", types, d) | self._read("head", types, d)
        layers = [
            replace(layer, **self._read(f"layer-{i}", types, layer, i))
            for i, layer in enumerate(d.layers)
        ]
        return replace(d, layers=tuple(layers), **model_tensors), promise

    def _run(self, calibration: LayerwiseCalibration) -> Promise:
        """Run the steps that the folder does not have yet; the last is to measure the loss."""
        n_layer = self.decoder.geometry.n_layer
        next_layer, states = self._read_states()
        fisher = self._fisher_matrices() if states is None else None  # a step of its own
        self.progress.step("calibrating", Amount(n_layer + 2, "layers"))
        if states is None:
            assert fisher is not None
            embedding, states = calibration.embedding(*fisher)
            self._save_step("wte", {"wte": embedding})
            self._save_states(0, states)
            next_layer = 0
        self.progress.advance(next_layer + 1)
        for i in range(next_layer, n_layer):
            self._save_step(f"layer-{i}", calibration.layer(i, states))
            self._save_states(i + 1, states)
            self.progress.advance(1)
        if not self._path("head").is_file():
            self._save_step("head", calibration.head(states))
        stored = safetensors_torch.load_file(self._path("head"))
        head = {field: QuantizedPart(t.to(self.device)) for field, t in stored.items()}
        promise = calibration.promise(head, states, self.vocab_size)
        self.progress.advance(1)
        return promise

    def _measure(self, visit: Callable[[MatrixSample], None]) -> None:
        """Measure sensitivities, and store the Fisher matrices of the embedding's output.

        `visit` is called with a sample of each matrix.
        """
        g, windows = self.decoder.geometry, self.calibration_set
        window_floats = windows.length * (7 * g.n_embd + 2 * g.n_inner)
        count = max(8, min(SENSITIVITY_WINDOWS, SENSITIVITY_BYTES // (4 * window_floats)))
        sets = windows.train[: count - count // 4], windows.validation[: count // 4]
        with torch.inference_mode(mode=False), torch.enable_grad():
            gradients = sensitivities(
                self.decoder, torch.cat(sets), self.vocab_size, visit, self.folder, self.progress,
                self.device,
            )  # fmt: skip
        by_set = gradients.split([len(ids) for ids in sets])
        positions = [set_gradients.flatten(0, 1) for set_gradients in by_set]
        sums = float64_device(self.device)
        train, validation = [(g.t() @ g).to(sums).double() for g in positions]
        _save(self._fisher_path, {"fitted": train, "held_out": validation})

    def _fisher_matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Fisher matrices of the embedding's output on training and validation windows.

        Each is the sum of g g^T over positions, float64 [n_embd, n_embd], where g is a gradient.
        """
        if not self._fisher_path.is_file():
            self._measure(lambda sample: None)
        stored = safetensors_torch.load_file(self._fisher_path)
        sums = float64_device(self.device)
        return stored["fitted"].to(sums), stored["held_out"].to(sums)

    @property
    def _fisher_path(self) -> Path:
        return self.folder / "fisher.safetensors"

    def _read_states(self) -> tuple[int, HiddenStates | None]:
        """Read the number of the next layer and the hidden states before it; None if not stored."""
        path = self._path("state")
        if not path.is_file():
            return 0, None
        stored = safetensors_torch.load_file(path)
        # A copy, because the file is replaced, which Windows refuses while its memory is mapped.
        source, quantized = (stored[name].to(self.device, copy=True) for name in ("exact", "ours"))
        return int(stored["layer"]), HiddenStates(source, quantized)

    def _save_states(self, layer: int, states: HiddenStates) -> None:
        """Store the hidden states before layer `layer`."""
        tensors = {"exact": states.source, "ours": states.quantized, "layer": torch.tensor(layer)}
        _save(self._path("state"), tensors)

    def _save_step(self, name: str, parts: Mapping[str, QuantizedPart]) -> None:
        """Store the tensors of a completed step by their fields."""
        _save(self._path(name), {field: part.stored for field, part in parts.items()})

    def _path(self, name: str) -> Path:
        return self.steps / f"{name}.safetensors"

    def _read(
        self,
        name: str,
        types: Mapping[MatrixId, BlockCodec],
        source: object,
        layer: int | None = None,
    ) -> dict[str, LazyTensor]:
        """Read the tensors of a step: quantized matrices and changed biases.

        Args:
            name: The name of the step.
            types: The block type of each quantized matrix.
            source: The decoder or the layer whose tensors the step replaces.
            layer: The number of the layer; None for the decoder.

        Returns:
            The tensors by their fields in `source`.
        """
        tensors: dict[str, LazyTensor] = {}
        for part, stored in safetensors_reader.tensors(self._path(name)).items():
            codec = types.get(MatrixId(part, layer))
            shape = getattr(source, part).shape
            is_quantized = codec is not None and stored.dtype == UINT8
            tensors[part] = (
                QuantizedTensor((stored,), shape, codec) if is_quantized and codec else stored
            )
        return tensors


def _measure_types(
    sample: MatrixSample, types: Mapping[str, BlockCodec]
) -> list[tuple[str, int, float]]:
    """Measure the (type, bytes, loss) of a matrix in each type; see Quantizer.choices."""
    # The embedding is fitted to the Fisher matrix of its outputs, other matrices to their inputs.
    is_embedding = sample.is_embedding
    x = (sample.gradients if is_embedding else sample.inputs).flatten(0, 1)
    hessian = Hessian.from_moments(second_moments(x), overwrite=True).to(x.device)
    weight = sample.weight
    ones = weight.new_ones(len(weight))
    row_importance = ones if is_embedding else sample.gradients.square().sum((0, 1))
    errors = {}
    for name, codec in types.items():
        error = codec.decode_rows(codec.encode_rows(weight), weight.shape) - weight
        errors[name] = float((((error @ hessian.matrix) * error).sum(1) * row_importance).sum())
    base = BASE_TYPE if BASE_TYPE in types else next(iter(types))
    codec = types[base]
    stored = quantize_matrix(weight, hessian, codec, sweeps=0)
    loss = sample.loss(codec.decode_rows(stored, weight.shape))
    loss_per_error = loss / max(errors[base], 1e-300)
    return [
        (name, codec.stored_bytes(sample.shape), loss_per_error * errors[name])
        for name, codec in types.items()
    ]


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors into a safetensors file, which appears only when it is complete."""
    with atomic_path(path, durable=False) as partial:
        safetensors_torch.save_file(
            {name: t.cpu().contiguous() for name, t in tensors.items()}, partial
        )
