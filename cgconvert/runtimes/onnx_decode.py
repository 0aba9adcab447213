"""One sequence in onnxruntime with past and present in one buffer, so that a step copies nothing.

GroupQueryAttention writes in place where it gets the same memory as past and as present
(group_query_attention.cc: past_present_share_buffer); the buffer is as long as the context, and
how much of it is filled it takes from the attention mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["DTYPES", "INPUTS", "KEEP", "PAST", "PRESENT", "SharedCache"]

PAST, PRESENT = "past_key_values.", "present."
INPUTS = ("input_ids", "attention_mask", "position_ids")
KEEP = "num_logits_to_keep"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Shape = tuple[int, int, int, int]


class SharedCache:
    """Everything a step needs is allocated and bound when the first token comes.

    `caches` has the shape [1, heads, positions, head size] and type of each past_key_values.N.*.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        caches: Mapping[str, tuple[Shape, Any]],
        device: str,
    ) -> None:
        from onnxruntime import OrtValue

        self.length = 0
        self._session = session
        self._keeps = any(value.name == KEEP for value in session.get_inputs())
        logits = session.get_outputs()[0]
        buffers = {
            name: OrtValue.ortvalue_from_shape_and_type(shape, dtype, device)
            for name, (shape, dtype) in caches.items()
        }
        positions = next(iter(caches.values()))[0][2]
        self._mask = np.ones((1, positions), dtype=np.int64)
        self._binding = session.io_binding()
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), buffer)
        self._token, self._position = np.zeros((2, 1, 1), dtype=np.int64)
        row = np.empty((1, 1, int(logits.shape[2])), dtype=DTYPES[logits.type])
        self._row = OrtValue.ortvalue_from_numpy(row)

    def feed(self, ids: Sequence[int], keep: int = 0) -> np.ndarray:
        """Logits after each of the tokens, float32 [len(ids), vocabulary].

        After the last `keep` alone where that is not 0 and the graph has an input to say so.
        """
        total = self.length + len(ids)
        if len(ids) == 1:
            tokens, positions = self._token, self._position
            tokens[:], positions[:] = ids, self.length
            self._binding.bind_ortvalue_output("logits", self._row)
        else:
            tokens = np.asarray(ids, dtype=np.int64)[None]
            positions = np.arange(self.length, total)[None]
            self._binding.bind_output("logits", "cpu")
        given = (tokens, self._mask[:, :total], positions)
        for name, array in zip(INPUTS, given, strict=True):
            self._binding.bind_cpu_input(name, array)
        if self._keeps:
            self._binding.bind_cpu_input(KEEP, np.array(keep))
        self._session.run_with_iobinding(self._binding)
        self.length = total
        logits: np.ndarray = self._binding.get_outputs()[-1].numpy()[0]
        # A row is written over by the next step.
        return logits.astype(np.float32, copy=len(ids) == 1)
