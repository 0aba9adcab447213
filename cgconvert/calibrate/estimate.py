"""How long quantizing will take here, measured on small pieces of its inner loops, and its memory.

Each kind of work is timed on tensors of the model's own widths, or of MAX_WIDTH if these are wider,
and multiplied by how often it is done. Constants of another machine would mislead: on shared cores
the short operations of GPTQ take many times as long as on idle ones, and matrix products do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from cgconvert.calibrate.gptq import ColumnBlock
from cgconvert.calibrate.layerwise import ACTIVATION_BYTES, BATCH, ROWS
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.lazy import torch
from cgconvert.model.decoder import Geometry
from cgconvert.model.device import float64_device
from cgconvert.model.forward import attend, gelu, rotary
from cgconvert.write.promise import PROMISE_TOKENS, PROMISE_WINDOWS

__all__ = ["Measurements", "Work"]

MAX_WIDTH = 1024
"""The largest number of columns that is timed; the time for more grows as the operations do."""

MIN_ROUNDS, MIN_SECONDS = 3, 0.05
"""How often and how long a piece is timed; the median counts, because other programs may use the
cores."""

TIMED_STATES = 1 << 20
"""How many numbers the hidden states have in which attention is timed."""

TIMED_WEIGHTS = 1 << 15
"""How many weights the search for parameters is timed on."""

STEP_ROWS = (256, 2048)
"""The two numbers of rows with which a column of GPTQ is timed."""

STEP_COLUMNS = 4
"""How many columns a pass of GPTQ is timed on."""

INTERPRETER_BYTES = 400 << 20
"""The memory of Python with torch and the model's tokenizer."""


@dataclass(frozen=True)
class Work:
    """The amount of work of a calibration.

    Attributes:
        geometry: The geometry of the model.
        length: The number of tokens in a window.
        tokens: The number of tokens that pass through both models.
        sensitivity_tokens: The number of tokens that gradients are computed for.
        sweeps: The number of sweeps of coordinate descent.
        candidates: The number of types of which the errors are compared; 0 if none are chosen.
    """

    geometry: Geometry
    length: int
    tokens: int
    sensitivity_tokens: int
    sweeps: int
    candidates: int

    @property
    def weights(self) -> int:
        """The number of weights in all matrices."""
        return sum(rows * columns for rows, columns in self.shapes())

    def shapes(self) -> Iterable[tuple[int, int]]:
        """List the rows and columns of every matrix."""
        g = self.geometry
        layer = [(g.n_embd, g.n_embd)] * 4 + [(g.n_inner, g.n_embd), (g.n_embd, g.n_inner)]
        return [*layer * g.n_layer, *[(g.vocab_size, g.n_embd)] * 2]

    def fits(self) -> Iterable[tuple[int, int]]:
        """List the rows and columns of every call that fits rows of a matrix."""
        for rows, columns in self.shapes():
            for start in range(0, rows, ROWS):
                yield min(ROWS, rows - start), columns

    def peak_memory(self) -> int:
        """Compute about how many bytes of memory calibration takes at its peak.

        It is the largest of three phases: measuring sensitivities, fitting the widest matrix of a
        layer, and fitting rows of the vocabulary.
        """
        g = self.geometry
        states = 4 * 4 * self.tokens * g.n_embd
        layer = 4 * (4 * g.n_embd**2 + 2 * g.n_embd * g.n_inner)
        activations = 4 * self.tokens * g.n_inner
        activations = activations if activations <= ACTIVATION_BYTES else 0
        hessian = (8 + 8 + 8 + 4) * g.n_inner**2 + 8 * g.n_embd * g.n_inner
        in_layer = states + 2 * layer + activations + hessian
        vocabulary = 4 * g.vocab_size * g.n_embd
        in_vocabulary = states + 3 * vocabulary + 8 * 4 * min(ROWS, g.vocab_size) * g.n_embd
        inputs = 4 * self.sensitivity_tokens * (7 * g.n_embd + 2 * g.n_inner)
        in_sensitivities = 2 * inputs + layer + vocabulary
        return INTERPRETER_BYTES + max(in_layer, in_vocabulary, in_sensitivities)


class Measurements:
    """The seconds that pieces of calibration take on a device.

    Args:
        geometry: The geometry of the model.
        codec: The type that most matrices will have.
        device: The device.
        length: The number of tokens in a window.
    """

    def __init__(
        self, geometry: Geometry, codec: BlockCodec, device: torch.device, length: int = 256
    ) -> None:
        self.geometry, self.codec, self.device, self.length = geometry, codec, device, length
        self.width = min(geometry.n_embd, MAX_WIDTH)

    def calibration_seconds(self, work: Work) -> float:
        """Estimate how long calibration takes."""
        g, n, m = work.geometry, work.geometry.n_embd, work.geometry.n_inner
        tokens, layers = work.tokens, work.geometry.n_layer
        validation = tokens / 5
        flops: float = (
            tokens * layers * (22 * n * n + 10 * n * m + m * m)
        )  # forward passes, statistics
        double_flops: float = layers * (8 * n**3 + 3 * m**3) / 2  # factors of Hessians
        steps = 0.0
        encoded = work.weights
        for rows, columns in work.fits():
            flops += rows * columns**2 * (5 + 4 * work.sweeps)
            flops += validation * 6 * rows * columns
            if columns == n:  # targets are computed in float64
                double_flops += 2 * rows * columns**2
            steps += columns * self.column_seconds(rows, 1 + work.sweeps)
            steps += rows * columns * self._fit_seconds
        if work.candidates:
            sampled = sum(min(512, rows) * columns for rows, columns in work.shapes())
            encoded += work.candidates * sampled
            double_flops += layers * (6 * n**3 + m**3) / 2
            for rows, columns in work.shapes():
                steps += columns * self.column_seconds(min(512, rows), 1)
        gradients = work.sensitivity_tokens
        flops += gradients * (layers * 18 * (4 * n * n + 2 * n * m) / 3 + 6 * g.vocab_size * n)
        flops += gradients * layers * (5 * n * n + m * m + 512 * 2 * (5 * n + m))
        flops += 4 * PROMISE_WINDOWS * PROMISE_TOKENS * g.vocab_size * n
        passes = layers * (2.5 * tokens + 4 * gradients)
        return (
            flops * self._flop_seconds
            + double_flops * self._double_flop_seconds
            + passes * self._token_seconds
            + steps
            + encoded * self.encode_seconds
        )

    def column_seconds(self, rows: int, passes: int) -> float:
        """Estimate the time that `passes` passes need for a column of so many rows."""
        fixed, for_each_row = self._step_seconds
        return passes * (fixed + rows * for_each_row)

    @cached_property
    def encode_seconds(self) -> float:
        """The time to search the parameters of one weight, on all cores."""
        blocks = self._random(max(8, TIMED_WEIGHTS // self.codec.block_size), self.codec.block_size)

        def encode() -> torch.Tensor:
            return self.codec.pack(self.codec.fit(blocks))

        if self.device.type != "cpu":
            return self._timed(encode) / blocks.numel()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker process
        try:
            return self._timed(encode) / blocks.numel() / threads
        finally:
            torch.set_num_threads(threads)

    @cached_property
    def _flop_seconds(self) -> float:
        """The time of an operation in a matrix product of float32."""
        left, right = self._random(1024, self.width), self._random(1024, self.width)
        return self._timed(lambda: left @ right.t()) / (2 * 1024**2 * self.width)

    @cached_property
    def _double_flop_seconds(self) -> float:
        """The time of an operation in a matrix product of float64."""
        size = min(self.width, 512)
        matrix = self._random(size, size).to(float64_device(self.device)).double()
        return self._timed(lambda: matrix @ matrix) / (2 * size**3)

    @cached_property
    def _token_seconds(self) -> float:
        """The time for a token in a layer without its matrix products: attention and GELU."""
        g = self.geometry
        # Enough windows that the start of an operation is as small a share as in calibration.
        windows = max(2, min(BATCH, TIMED_STATES // (self.length * self.width)))
        tables = rotary(g, self.length, self.device)
        heads = max(1, self.width * g.n_head // g.n_embd)
        q = self._random(windows, self.length, heads * (g.n_embd // g.n_head))
        q = q.unflatten(-1, (heads, -1))
        inner = self._random(windows, self.length, self.width * g.n_inner // g.n_embd)

        def pass_layer() -> torch.Tensor:
            return attend(q, q, q, *tables) + gelu(inner + inner).sum()

        share = g.n_embd / (heads * (g.n_embd // g.n_head))
        return self._timed(pass_layer) * share / (windows * self.length)

    @cached_property
    def _step_seconds(self) -> tuple[float, float]:
        """The time that a pass of GPTQ takes for a column, and for each of its rows on top."""
        few, many = STEP_ROWS
        seconds = {rows: self._time_steps(rows) for rows in STEP_ROWS}
        for_each_row = max(0.0, (seconds[many] - seconds[few]) / (many - few))
        return max(0.0, seconds[few] - few * for_each_row), for_each_row

    @cached_property
    def _fit_seconds(self) -> float:
        """The time to search the parameters of one weight inside GPTQ."""
        rows = self._random(STEP_ROWS[0], self.codec.block_size)
        importance = torch.ones(self.codec.block_size, device=self.device)
        return self._timed(lambda: self.codec.fit(rows, importance).codes) / rows.numel()

    def _time_steps(self, rows: int) -> float:
        """Time a column of so many rows in GPTQ."""
        size = self.codec.block_size
        params = self.codec.fit(self._random(STEP_ROWS[0], size))
        codes = params.codes.clone(memory_format=torch.contiguous_format)
        block = ColumnBlock.from_params(self.codec, replace(params, codes=codes))
        repeats = rows // STEP_ROWS[0]
        block = block.repeated(repeats)
        transposed, factor = self._random(size, rows), self._random(size)
        errors = torch.empty_like(transposed)
        values = torch.empty(rows, size, device=self.device)

        def step() -> torch.Tensor:
            for column in range(STEP_COLUMNS):
                value = block.round(column, transposed[column])
                errors[column] = (transposed[column] - value) / factor[column]
                later = transposed[size // 2 :]  # as many columns as there are left on average
                later.addr_(factor[size // 2 :], errors[column], alpha=-1e-6)
                values[:, column] = value
            return values

        return self._timed(step) / STEP_COLUMNS

    def _random(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(*shape, generator=generator).to(self.device)

    def _timed(self, operation: Callable[[], torch.Tensor]) -> float:
        """Measure the seconds of one call of `operation`: the median of some, after a first one."""
        seconds: list[float] = []
        float(operation().flatten()[0])
        while len(seconds) < MIN_ROUNDS or (sum(seconds) < MIN_SECONDS and len(seconds) < 20):
            start = time.perf_counter()
            float(operation().flatten()[0])  # waits until a GPU has finished
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)
