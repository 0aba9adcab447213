"""The result of a calibration, the same for every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cgconvert.codecs.quantized_tensor import QuantizedTensor
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.decoder import Decoder
from cgconvert.model.tensor_names import TensorNames

__all__ = ["CalibrationResult", "adjusted_vectors"]


@dataclass(frozen=True)
class CalibrationResult:
    """A calibrated model.

    Attributes:
        checkpoint: The model, its matrices quantized and some of its biases changed.
        types: The type of each matrix by its name in the format, in the order of the model.
        adjusted: Names in the format of the vectors that are no longer the source's.
        expected_kl: The loss that was expected, in nats a token; None where no type was chosen.
    """

    checkpoint: Checkpoint
    types: Mapping[str, str]
    adjusted: tuple[str, ...]
    expected_kl: float | None

    @classmethod
    def of(
        cls,
        source: Checkpoint,
        calibrated: Decoder,
        types: Mapping[str, str],
        names: TensorNames,
        expected_kl: float | None,
    ) -> CalibrationResult:
        """The result of turning `source` into `calibrated`, for a format with these names."""
        return cls(
            checkpoint=replace(source, decoder=calibrated),
            types=types,
            adjusted=adjusted_vectors(source.decoder, calibrated, names),
            expected_kl=expected_kl,
        )


def adjusted_vectors(source: Decoder, calibrated: Decoder, names: TensorNames) -> tuple[str, ...]:
    """Names of the tensors that are neither the source's any more nor quantized."""
    layers: list[tuple[int | None, object, object]] = [
        (i, *pair) for i, pair in enumerate(zip(source.layers, calibrated.layers, strict=True))
    ]
    changed = []
    for layer, before, after in [*layers, (None, source, calibrated)]:
        for part in names.model if layer is None else names.layer:
            tensor = getattr(after, part)
            if tensor is not getattr(before, part) and not isinstance(tensor, QuantizedTensor):
                changed.append(names.name(part, layer))
    return tuple(changed)
