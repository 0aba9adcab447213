"""Measure what quantization loses in onnxruntime: ours, and its own MatMulNBitsQuantizer.

    python benchmarks/quality_onnx.py --model codegen-tiny-mono

All files are made from one source, those of the peers from our float32 graph of it, all with blocks
of 32 and 8-bit activations (accuracy level 4). Losses are measured as in quality.py. Bytes count
all matrices that are multiplied, including the head. The embedding is not counted, because the
peers leave it in float32; ours has 8 bits. GPTQ and ours use the same windows.

The peers quantize every MatMul in 4 bits, including the head. With `8-bit head`, k_quant first
quantizes the head in 8 bits, and the named peer quantizes the rest. The GPTQ of onnxruntime 1.32
only rounds: it takes a column of its upper triangular factor where errors must be propagated by the
row (neural_compressor/weight_only.py, `gptq`), and that column is zero.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx as onnx_format
import onnxruntime
from losses import EvaluationText, Row, store_rows, table
from measuring import command, machine, work_folder
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    WeightOnlyQuantConfig,
)

from cgconvert.calibrate.calibration_set import PRESETS, CalibrationSet
from cgconvert.calibrate.onnx import calibrate_onnx, variant_types
from cgconvert.codecs.matmul_nbits import MatMulNBits
from cgconvert.codecs.quantized_tensor import QuantizedTensor, block_codec_of
from cgconvert.formats.onnx import writer as onnx
from cgconvert.formats.onnx.reader import find_graph
from cgconvert.formats.onnx.variant import Variant
from cgconvert.formats.read import read
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Checkpoint, Geometry
from cgconvert.model.matrix_id import LAYER_MATRICES, MatrixId
from cgconvert.model.tensor import InMemoryTensor, LazyTensor
from cgconvert.model.tensor_names import ONNX
from cgconvert.texts.text import STDLIB, read_text
from cgconvert.write.execute import execute

BLOCK, LEVEL = 32, 4
EFFORT = PRESETS["default"]
HEAD = "lm_head"
KEPT = ("choices.json", "fisher.safetensors")
"""Files of the calibration steps that do not depend on the types."""


class Bench:
    """Creates files and measures their losses, which it collects in `rows`."""

    def __init__(
        self, source: Checkpoint, evaluation: EvaluationText, threads: int, folder: Path
    ) -> None:
        self.source, self.evaluation, self.folder = source, evaluation, folder
        self.rows: list[Row] = []
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads, self.options.log_severity_level = threads, 3
        text = read_text(STDLIB, "calibration")
        ids = text.ids(source.tokenizer)
        self.windows = CalibrationSet.sample(ids, source.geometry, text.name, EFFORT)

    def measure(self, name: str, graph: Path, nbytes: int, seconds: float) -> None:
        """Run a graph on the evaluation text, and append its losses."""
        session = onnxruntime.InferenceSession(
            str(graph), self.options, providers=["CPUExecutionProvider"]
        )
        inputs = {value.name for value in session.get_inputs()}
        logits = [
            session.run(["logits"], {k: v for k, v in feeds.items() if k in inputs})[0][0]
            for feeds in _feeds(self.evaluation.sequences, self.source.geometry)
        ]
        self.rows.append(self.evaluation.row(name, nbytes, seconds, np.concatenate(logits)))
        click.echo(f"{name}: KL {self.rows[-1].kl:.3g}, {nbytes:,} bytes", err=True)

    def ours(
        self, name: str, make: Callable[[], tuple[Checkpoint, Sequence[str]]], symmetric: bool
    ) -> None:
        """Write our file of the model that `make` returns with the names of its changed vectors."""
        began, path = time.monotonic(), self.folder / "ours"
        checkpoint, adjusted = make()
        plan = onnx.plan(checkpoint, path, bits=4, symmetric=symmetric, adjusted=adjusted)
        execute(plan, force=True)
        matrices = (i for i in plan.tensors if isinstance(block_codec_of(i.encoding), MatMulNBits))
        nbytes = sum(
            tensor_plan.nbytes for tensor_plan in matrices if tensor_plan.name != ONNX.model["wte"]
        )
        self.measure(name, find_graph(path), nbytes, time.monotonic() - began)

    def calibrated(self, name: str, symmetric: bool = False, nbytes: int | None = None) -> None:
        """Calibrate within `nbytes`, which do not include the embedding."""
        g, kept = self.source.geometry, self.folder / "kept"
        kept.mkdir(exist_ok=True)
        variant = Variant(bits=4, symmetric=symmetric)
        if nbytes is not None:
            nbytes += g.vocab_size * g.n_embd + 2 * g.vocab_size * g.n_embd // 128
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            work = Path(folder)
            for file in kept.iterdir():
                shutil.copy(file, work)

            def make() -> tuple[Checkpoint, Sequence[str]]:
                calibrated = calibrate_onnx(
                    self.source, variant, self.windows, EFFORT, work, SilentProgress(), nbytes
                )
                return calibrated.checkpoint, calibrated.adjusted

            self.ours(name, make, symmetric)
            for file in (work / step for step in KEPT):
                if file.is_file():
                    shutil.copy(file, kept)

    def peer(
        self, name: str, algorithm: WeightOnlyQuantConfig, symmetric: bool = False, head: int = 4
    ) -> int:
        """Quantize with a peer and measure it. Returns the bytes of the matrices."""
        model = onnx_format.load(str(find_graph(self.folder / "float")))
        for value in model.graph.input:
            if value.name == "position_ids":  # no node reads it; two of the peers fail on that
                model.graph.input.remove(value)
                break
        began = time.monotonic()
        if head == 8:
            rest = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name != HEAD]
            eight = KQuantWeightOnlyQuantConfig(customized_weight_config={HEAD: {"bits": 8}})
            model = _quantized(model, eight, False, rest)
        model = _quantized(model, algorithm, symmetric, [])
        seconds = time.monotonic() - began
        nodes = (n for n in model.graph.node if n.op_type in ("MatMul", "MatMulNBits"))
        read_by = {name for node in nodes for name in node.input}
        weights = (t for t in model.graph.initializer if t.name in read_by)
        nbytes = sum(onnx_format.numpy_helper.to_array(tensor).nbytes for tensor in weights)
        graph = self.folder / "peer.onnx"
        onnx_format.save_model(model, str(graph))
        self.measure(f"onnxruntime {name}", graph, nbytes, seconds)
        return nbytes


class Reader(CalibrationDataReader):
    """Feeds windows of text to onnxruntime's GPTQ, one at a time."""

    def __init__(self, windows: Sequence[Sequence[int]], geometry: Geometry) -> None:
        self.windows, self.geometry = windows, geometry
        self.left: Iterator[dict[str, np.ndarray]] | None = None

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self.left is None:
            self.left = _feeds(self.windows, self.geometry)
        feeds = next(self.left, None)
        return feeds and {name: value for name, value in feeds.items() if name != "position_ids"}


@click.command()
@click.option("--model", default="codegen-tiny-mono", show_default=True)
@click.option("--tokens", type=click.IntRange(512), default=16384, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path))
def main(model: str, tokens: int, threads: int, work: Path | None) -> None:
    """Create every file and measure its loss."""
    logging.disable(logging.WARNING)  # the peers log every node
    source = read(model)
    evaluation = EvaluationText(source, tokens)
    with work_folder(work) as folder:
        bench = Bench(source, evaluation, threads, folder)
        execute(onnx.plan(source, bench.folder / "float"))
        reader = Reader(bench.windows.train.tolist(), source.geometry)
        default = DefaultWeightOnlyQuantConfig
        sizes = {}
        for head, label in ((4, ""), (8, " + 8-bit head")):
            for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
                config = default(BLOCK, is_symmetric=symmetric, accuracy_level=LEVEL)
                bench.peer(f"RTN {kind}{label}", config, symmetric, head)
            config = KQuantWeightOnlyQuantConfig()
            sizes[head] = bench.peer(f"k_quant{label}", config, head=head)
            config = GPTQWeightOnlyQuantConfig(calibration_data_reader=reader)
            bench.peer(f"GPTQ{label}", config, head=head)
        for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
            variant = Variant(bits=4, symmetric=symmetric)
            bench.ours(f"ours RTN {kind}", lambda: (source, ()), symmetric)
            bench.ours(
                f"ours search {kind}", lambda v=variant: (_searched(source, v), ()), symmetric
            )
            bench.calibrated(f"ours calibrated {kind}", symmetric)
        bench.calibrated("ours calibrated, k_quant's bytes", nbytes=sizes[4])
        bench.calibrated("ours calibrated, k_quant + 8-bit head's bytes", nbytes=sizes[8])
    _write_results(model, threads, bench)


def _feeds(
    sequences: Sequence[Sequence[int]], geometry: Geometry
) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of the graph for each sequence alone, with an empty cache."""
    g = geometry
    cache = {
        f"past_key_values.{i}.{part}": np.empty((1, g.n_head, 0, g.head_dim), np.float32)
        for i in range(g.n_layer)
        for part in ("key", "value")
    }
    for ids in sequences:
        yield {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
            **cache,
        }


def _quantized(
    model: onnx_format.ModelProto,
    algorithm: WeightOnlyQuantConfig,
    symmetric: bool,
    excluded: Sequence[str],
) -> onnx_format.ModelProto:
    quantizer = MatMulNBitsQuantizer(
        model, block_size=BLOCK, is_symmetric=symmetric, accuracy_level=LEVEL,
        nodes_to_exclude=list(excluded), algo_config=algorithm,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        quantizer.process()
    return quantizer.model.model


def _searched(source: Checkpoint, variant: Variant) -> Checkpoint:
    """The model in the variant's types, quantized by the search alone, without text."""

    types, d = variant_types(source.geometry, variant), source.decoder

    def quantized(name: MatrixId) -> LazyTensor:
        tensor = name.tensor(d)
        rows = types[name].encode_rows(tensor.read().float())
        return QuantizedTensor((InMemoryTensor(rows),), tensor.shape, types[name])

    layers = tuple(
        replace(layer, **{part: quantized(MatrixId(part, i)) for part in LAYER_MATRICES})
        for i, layer in enumerate(d.layers)
    )
    ends = {part: quantized(MatrixId(part)) for part in ("wte", "head")}
    return replace(source, decoder=replace(d, layers=layers, **ends))


def _write_results(model: str, threads: int, bench: Bench) -> None:
    model = Path(model).name
    shape = machine("onnxruntime", "onnx")
    base = next(r for r in bench.rows if r.name == "onnxruntime k_quant")
    lines = [
        f"`{command()}`",
        "",
        f"{model}: mean and 99th percentile of the KL divergence from the float16 reference in "
        f"onnxruntime, over {bench.evaluation.tokens} tokens that were used for no choice; seconds "
        f"on {threads} of {shape['cores']} cores, {shape['architecture']}. Bytes of the "
        "matrices that are multiplied with; the embedding, which the peers leave in float32, is "
        "not counted.",
        "",
        *table(bench.rows, base, "k_quant", "k_quant"),
    ]
    facts = {"command": command(), "model": model, "tokens": bench.evaluation.tokens,
             "threads": threads, "machine": shape}  # fmt: skip
    name = f"quality-onnx-{Path(model).name}"
    store_rows(name, facts, bench.rows, lines, "megabytes of the matrices")


if __name__ == "__main__":
    main()
