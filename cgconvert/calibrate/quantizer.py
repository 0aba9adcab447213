"""Calibrate a whole model in a folder that keeps each completed step.

First what each type would cost is measured, then every matrix is fitted to its inputs. A run that
was interrupted goes on after its last complete step. The bytes follow from the source, the
calibration set and the types alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cgconvert.calibrate.allocation import Choice
from cgconvert.calibrate.calibration_set import CalibrationSet
from cgconvert.calibrate.gptq import Hessian, quantize_matrix
from cgconvert.calibrate.layerwise import HiddenStates, LayerwiseCalibration, QuantizedPart
from cgconvert.calibrate.sensitivity import MatrixSample, sensitivities
from cgconvert.calibrate.statistics import second_moments
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.formats.huggingface import safetensors_reader
from cgconvert.io.parallel import start_workers
from cgconvert.io.progress import Progress
from cgconvert.io.staging import atomic_path, write_atomic
from cgconvert.model.decoder import Decoder
from cgconvert.model.device import CPU
from cgconvert.model.matrix_id import MatrixId
from cgconvert.model.tensor import LazyTensor

__all__ = ["SENSITIVITY_WINDOWS", "Quantizer"]

BASE_TYPE = "Q4_K"
"""The type whose loss is measured; that of others follows from it."""

SENSITIVITY_WINDOWS, SENSITIVITY_BYTES = 64, 2 << 30
"""Windows that sensitivities are measured on, three of four for training, and the memory that their
inputs and gradients in a layer may take, in bytes."""


class Quantizer:
    """Calibrates one `decoder` on one `calibration_set`; `folder` holds steps of these alone.

    `vocab_size` is the number of ids the tokenizer has; `sweeps` are those of coordinate descent.
    The last digits of sums, so the bytes, depend on the kind of `device`.
    """

    def __init__(
        self,
        decoder: Decoder,
        calibration_set: CalibrationSet,
        vocab_size: int,
        sweeps: int,
        folder: Path,
        progress: Progress,
        device: torch.device = CPU,
    ) -> None:
        self.decoder, self.calibration_set, self.vocab_size = decoder, calibration_set, vocab_size
        self.sweeps, self.device = sweeps, device
        self.folder, self.steps, self.progress = folder, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        if device.type == "cpu":  # a GPU searches alone
            start_workers(torch.get_num_threads())

    def choices(self, types: Mapping[str, BlockCodec]) -> dict[MatrixId, list[Choice]]:
        """Measure each matrix in each of `types`: its bytes, and the KL in nats a token it costs.

        One type is measured with GPTQ, one matrix at a time; how much more or less the others lose
        is taken from plain rounding.
        """
        path = self.folder / "choices.json"
        if not path.is_file():
            costs: dict[str, list[tuple[str, int, float]]] = {}

            def visit(sample: MatrixSample) -> None:
                columns = sample.shape[1]
                fitting = {n: c for n, c in types.items() if columns % c.block_size == 0}
                costs[sample.name.key] = _costs(sample, fitting)

            self._measure(visit)
            write_atomic(path, json.dumps(costs).encode(), durable=False)
        kept = json.loads(path.read_text())
        return {
            MatrixId.from_key(key): [Choice(*choice) for choice in choices]
            for key, choices in kept.items()
        }

    def calibrate(self, types: Mapping[MatrixId, BlockCodec]) -> Decoder:
        """Fit the matrices in these types to the text; matrices without a type stay as they are."""
        d = self.decoder
        names = {name.key: codec.name for name, codec in types.items()}
        digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
        self.steps = self.folder / digest[:16]
        self.steps.mkdir(exist_ok=True)
        train, validation = self.calibration_set.train, self.calibration_set.validation
        calibration = LayerwiseCalibration(d, types, train, validation, self.sweeps, self.device)
        with torch.inference_mode():
            self._run(calibration)
        ends: dict[str, Any] = self._read("wte", types, d) | self._read("head", types, d)
        layers = [
            replace(layer, **self._read(f"layer-{i}", types, layer, i))
            for i, layer in enumerate(d.layers)
        ]
        return replace(d, layers=tuple(layers), **ends)

    def _run(self, calibration: LayerwiseCalibration) -> None:
        """Do the steps that are missing."""
        n_layer = self.decoder.geometry.n_layer
        self.progress.step("calibrating", n_layer + 2)
        reached, states = self._read_states()
        if states is None:
            embedding, states = calibration.embedding(*self._fisher_matrices())
            self._keep("wte", {"wte": embedding})
            self._keep_states(0, states)
            reached = 0
        self.progress.advance(reached + 1)
        for i in range(reached, n_layer):
            self._keep(f"layer-{i}", calibration.layer(i, states))
            self._keep_states(i + 1, states)
            self.progress.advance(1)
        if not self._path("head").is_file():
            self._keep("head", calibration.head(states))
        self.progress.advance(1)

    def _measure(self, visit: Callable[[MatrixSample], None]) -> None:
        """Measure sensitivities, and keep the Fisher matrices of the embedding's output."""
        g, windows = self.decoder.geometry, self.calibration_set
        window_floats = windows.length * (7 * g.n_embd + 2 * g.n_inner)
        count = max(8, min(SENSITIVITY_WINDOWS, SENSITIVITY_BYTES // (4 * window_floats)))
        parts = windows.train[: count - count // 4], windows.validation[: count // 4]
        with torch.inference_mode(mode=False), torch.enable_grad():
            gradients = sensitivities(
                self.decoder, torch.cat(parts), self.vocab_size, visit, self.folder, self.progress,
                self.device,
            )  # fmt: skip
        rows = [part.flatten(0, 1) for part in gradients.split([len(part) for part in parts])]
        train, validation = [(part.t() @ part).double() for part in rows]
        _save(self._fisher_path, {"fitted": train, "held_out": validation})

    def _fisher_matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The Fisher matrices on training and on validation windows."""
        if not self._fisher_path.is_file():
            self._measure(lambda sample: None)
        kept = load_file(self._fisher_path)
        return kept["fitted"].to(self.device), kept["held_out"].to(self.device)

    @property
    def _fisher_path(self) -> Path:
        return self.folder / "fisher.safetensors"

    def _read_states(self) -> tuple[int, HiddenStates | None]:
        """The layer that comes next, and the hidden states before it, where there are any."""
        path = self._path("state")
        if not path.is_file():
            return 0, None
        kept = load_file(path)
        source, quantized = (kept[name].to(self.device) for name in ("exact", "ours"))
        return int(kept["layer"]), HiddenStates(source, quantized)

    def _keep_states(self, layer: int, states: HiddenStates) -> None:
        tensors = {"exact": states.source, "ours": states.quantized, "layer": torch.tensor(layer)}
        _save(self._path("state"), tensors)

    def _keep(self, name: str, parts: Mapping[str, QuantizedPart]) -> None:
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
        """The tensors of a step by field of `source`: quantized matrices and new biases."""
        tensors: dict[str, LazyTensor] = {}
        for part, stored in safetensors_reader.tensors(self._path(name)).items():
            codec = types.get(MatrixId(part, layer))
            shape = getattr(source, part).shape
            quantized = codec is not None and stored.dtype == torch.uint8
            tensors[part] = (
                QuantizedTensor((stored,), shape, codec) if quantized and codec else stored
            )
        return tensors


def _costs(sample: MatrixSample, types: Mapping[str, BlockCodec]) -> list[tuple[str, int, float]]:
    """The (type, bytes, loss) of a matrix in each type."""
    embedding = sample.is_embedding
    x = (sample.gradients if embedding else sample.inputs).flatten(0, 1)
    hessian = Hessian.from_moments(second_moments(x), overwrite=True)
    weight = sample.weight
    ones = weight.new_ones(len(weight))
    row_weights = ones if embedding else sample.gradients.square().sum((0, 1))
    errors = {}
    for name, codec in types.items():
        error = codec.decode_rows(codec.encode_rows(weight), weight.shape) - weight
        errors[name] = float((((error @ hessian.matrix) * error).sum(1) * row_weights).sum())
    base = BASE_TYPE if BASE_TYPE in types else next(iter(types))
    codec = types[base]
    stored = quantize_matrix(weight, hessian, codec, sweeps=0)
    loss = sample.loss(codec.decode_rows(stored, weight.shape)) / max(errors[base], 1e-300)
    return [
        (name, codec.stored_bytes(sample.shape), loss * errors[name])
        for name, codec in types.items()
    ]


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with atomic_path(path, durable=False) as partial:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial)
