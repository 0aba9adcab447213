"""A whole model, calibrated: what each type would cost, then every matrix fitted to its inputs.

Everything lies in a folder, a file for each step that is complete, so what was interrupted goes on
where it was. The bytes follow from the source, the text and the types alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cgconvert.calibrate.allocation import Choice
from cgconvert.calibrate.gptq import Hessian, quantize
from cgconvert.calibrate.layerwise import Calibration, Quantized, State
from cgconvert.calibrate.preset import CalibrationPreset
from cgconvert.calibrate.sensitivity import Matrix, Name, sensitivities
from cgconvert.calibrate.statistics import moments_of
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.coded import Coded
from cgconvert.errors import InputError
from cgconvert.formats.huggingface import safetensors_reader as safetensors
from cgconvert.io.parallel import start_workers
from cgconvert.io.progress import Progress
from cgconvert.io.staging import atomic_path, write_atomic
from cgconvert.model.decoder import Decoder, Geometry
from cgconvert.model.device import CPU
from cgconvert.model.tensor import LazyTensor

__all__ = ["CalibrationSet", "Quantizer"]

BASE = "Q4_K"
"""The type whose loss is measured; others follow from it."""

LEAST = 5
"""Windows that are the least to calibrate with; one in five is held out."""

STATES, STATE_BYTES = 4, 4 << 29
"""Hidden states of all windows that a layer keeps, and what they may take in memory."""

MEASURED, MEASURED_BYTES = 64, 2 << 30
"""Windows that sensitivities are measured on, three of four of the fitted ones, and what their
inputs and gradients in a layer may take in memory."""


@dataclass(frozen=True)
class CalibrationSet:
    """Ids, int64 [windows, T] each, that have no window in common."""

    fitted: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(
        cls, ids: Sequence[int], geometry: Geometry, name: str, effort: CalibrationPreset
    ) -> CalibrationSet:
        """A fair sample of a text, of fewer windows where the model is so wide that their hidden
        states would not fit. Raises InputError where it is too short."""
        length = min(effort.length, geometry.n_positions)
        most = STATE_BYTES // (4 * STATES * length * geometry.n_embd)
        count = len(ids) // length
        if count < LEAST:
            raise InputError(
                f"{name}: {len(ids)} tokens are too few to calibrate with; {LEAST * length} are "
                "the least, or give --calibration none"
            )
        whole = torch.tensor(ids[: count * length]).view(count, length)
        order = torch.from_numpy(np.random.default_rng(0).permutation(count))
        chosen = whole[order[: max(LEAST, min(effort.fitted + effort.held_out, most))]]
        edge = len(chosen) - min(effort.held_out, max(1, len(chosen) // LEAST))
        return cls(chosen[:edge], chosen[edge:])

    @property
    def sha256(self) -> str:
        """Of all ids and of which are held out."""
        total = hashlib.sha256(str(self.fitted.shape).encode())
        for part in (self.fitted, self.held_out):
            total.update(part.numpy().tobytes())
        return total.hexdigest()


class Quantizer:
    """`folder` holds what is done, for this `decoder` and these `windows` alone.

    `allowed` is the number of ids the tokenizer has; `sweeps` of coordinate descent are done. The
    bytes depend on the kind of `device`, in the last digits of sums.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: CalibrationSet,
        allowed: int,
        sweeps: int,
        folder: Path,
        progress: Progress,
        device: torch.device = CPU,
    ) -> None:
        self.decoder, self.windows, self.allowed = decoder, windows, allowed
        self.sweeps, self.device = sweeps, device
        self.folder, self.steps, self.progress = folder, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        if device.type == "cpu":  # a GPU searches alone
            start_workers(torch.get_num_threads())

    def choices(self, types: Mapping[str, BlockCodec]) -> dict[Name, list[Choice]]:
        """What each matrix would take and cost in each of `types`: bytes, and KL in nats a token.

        One type is measured with error feedback, one matrix at a time; what others lose beside it
        is told by the plain search.
        """
        path = self.folder / "choices.json"
        if not path.is_file():
            found: dict[str, list[tuple[str, int, float]]] = {}

            def visit(matrix: Matrix) -> None:
                fits = {n: c for n, c in types.items() if matrix.shape[1] % c.block_size == 0}
                found[_text(matrix.name)] = _costs(matrix, fits)

            self._measure(visit)
            write_atomic(path, json.dumps(found).encode(), durable=False)
        told = json.loads(path.read_text())
        return {_name(key): [Choice(*choice) for choice in some] for key, some in told.items()}

    def calibrated(self, types: Mapping[Name, BlockCodec]) -> Decoder:
        """The model in these types, fitted to the text; matrices without one stay as they are."""
        d, layers = self.decoder, self.decoder.geometry.n_layer
        told = {_text(name): codec.name for name, codec in types.items()}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self.steps = self.folder / digest[:16]
        self.steps.mkdir(exist_ok=True)
        calibration = Calibration(
            d, types, *self._windows(), self.sweeps, self.progress, self.device
        )
        with torch.inference_mode():
            self._calibrate(calibration)
        ends: dict[str, Any] = self._read("wte", types, d) | self._read("head", types, d)
        blocks = [
            replace(block, **self._read(f"layer-{i}", types, block, i))
            for i, block in zip(range(layers), d.layers, strict=True)
        ]
        return replace(d, layers=tuple(blocks), **ends)

    def _calibrate(self, calibration: Calibration) -> None:
        layers = self.decoder.geometry.n_layer
        self.progress.step("calibrating", layers + 2)
        reached, state = self._state()
        if state is None:
            embedding, state = calibration.embedding(*self._fishers())
            self._keep("wte", {"wte": embedding})
            self._keep_state(0, state)
            reached = 0
        self.progress.advance(reached + 1)
        for i in range(reached, layers):
            self._keep(f"layer-{i}", calibration.layer(i, state))
            self._keep_state(i + 1, state)
            self.progress.advance(1)
        if not self._path("head").is_file():
            self._keep("head", calibration.head(state))
        self.progress.advance(1)

    def _measure(self, visit: Callable[[Matrix], None]) -> None:
        """Sensitivities, and the Fisher matrices of the embedding's output, which are kept."""
        g, (fitted, held_out) = self.decoder.geometry, self._windows()
        floats = fitted.shape[1] * (7 * g.n_embd + 2 * g.n_inner)
        count = max(8, min(MEASURED, MEASURED_BYTES // (4 * floats)))
        parts = fitted[: count - count // 4], held_out[: count // 4]
        with torch.inference_mode(mode=False), torch.enable_grad():
            gradients = sensitivities(
                self.decoder, torch.cat(parts), self.allowed, visit, self.folder, self.progress,
                self.device,
            )  # fmt: skip
        rows = [part.flatten(0, 1) for part in gradients.split([len(part) for part in parts])]
        fishers = [(part.t() @ part).double() for part in rows]
        _save(self._fisher, {"fitted": fishers[0], "held_out": fishers[1]})

    def _fishers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """On fitted windows and on some held out."""
        if not self._fisher.is_file():
            self._measure(lambda matrix: None)
        found = load_file(self._fisher)
        return found["fitted"].to(self.device), found["held_out"].to(self.device)

    @property
    def _fisher(self) -> Path:
        return self.folder / "fisher.safetensors"

    def _windows(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.windows.fitted, self.windows.held_out

    def _state(self) -> tuple[int, State | None]:
        path = self._path("state")
        if not path.is_file():
            return 0, None
        found = load_file(path)
        hidden = (found[name].to(self.device) for name in ("exact", "ours"))
        return int(found["layer"]), State(*hidden)

    def _keep_state(self, layer: int, state: State) -> None:
        tensors = {"exact": state.exact, "ours": state.ours, "layer": torch.tensor(layer)}
        _save(self._path("state"), tensors)

    def _keep(self, name: str, found: Mapping[str, Quantized]) -> None:
        _save(self._path(name), {part: one.stored for part, one in found.items()})

    def _path(self, name: str) -> Path:
        return self.steps / f"{name}.safetensors"

    def _read(
        self, name: str, types: Mapping[Name, BlockCodec], source: object, layer: int | None = None
    ) -> dict[str, LazyTensor]:
        """The parts of a step, by name: coded matrices and new biases."""
        found: dict[str, LazyTensor] = {}
        for part, stored in safetensors.tensors(self._path(name)).items():
            codec = types.get(part if layer is None else (layer, part))
            shape = getattr(source, part).shape
            coded = codec is not None and stored.dtype == torch.uint8
            found[part] = Coded(stored, shape, codec) if coded and codec else stored
        return found


def _costs(matrix: Matrix, types: Mapping[str, BlockCodec]) -> list[tuple[str, int, float]]:
    """(type, bytes, loss) each."""
    embedding = matrix.inputs.dtype == torch.int64
    x = (matrix.gradients if embedding else matrix.inputs).flatten(0, 1)
    hessian = Hessian.of(moments_of(x), scratch=True)
    weight = matrix.weight
    ones = weight.new_ones(len(weight))
    share = ones if embedding else matrix.gradients.square().sum((0, 1))
    errors = {}
    for name, codec in types.items():
        error = codec.decode(codec.encode(weight)[0], weight.shape) - weight
        errors[name] = float((((error @ hessian.matrix) * error).sum(1) * share).sum())
    measured = BASE if BASE in types else next(iter(types))
    codec = types[measured]
    coded = quantize(weight, hessian, codec, sweeps=0)
    loss = matrix.loss(codec.decode(coded, weight.shape)) / max(errors[measured], 1e-300)
    return [
        (name, codec.stored_bytes(matrix.shape), loss * errors[name])
        for name, codec in types.items()
    ]


def _text(name: Name) -> str:
    return name if isinstance(name, str) else f"{name[0]}.{name[1]}"


def _name(text: str) -> Name:
    layer, dot, part = text.partition(".")
    return (int(layer), part) if dot else text


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with atomic_path(path, durable=False) as partial:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial)
