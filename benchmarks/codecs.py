"""Compare our block codecs with llama.cpp's C code: speed and error of every type, on one thread.

    python benchmarks/codecs.py --repeats 9

llama.cpp's function is ggml_quantize_chunk, which llama-quantize calls, from the library in
llama-cpp-python. Both encode the same float32 weights in turn, in one process. The time is the CPU
time of the thread, so that other processes disturb little, and the ratio is the median over the
pairs of runs. Errors are sums of squared differences after decoding with gguf-py. "Weighted" means
that both get an importance for each column, as from llama.cpp's imatrix.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import torch

from cgconvert import embedded
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.formats.read import read

RESULTS = Path(__file__).parent / "results"
CODECS = [codec for codec in ENCODINGS.values() if isinstance(codec, BlockCodec)]


@click.command()
@click.option("--repeats", type=click.IntRange(3), default=9, show_default=True)
@click.option(
    "--rows",
    type=click.IntRange(64),
    default=2048,
    show_default=True,
    help="Number of rows with 1024 weights.",
)
def main(repeats: int, rows: int) -> None:
    """Measure every block type."""
    torch.set_num_threads(1)
    data, importance = _data(rows), _importance(1024)
    results = []
    for codec in CODECS:
        for weights in (None, importance):
            click.echo(f"{codec.name}{' weighted' if weights is not None else ''}", err=True)
            results.append(_measure(codec, data, weights, repeats))
    _write(results, repeats, rows)


def _data(rows: int) -> dict[str, np.ndarray]:
    """Weights to encode, by name, each float32 [rows, 1024]."""
    random = np.random.default_rng(0)
    layer = read(str(embedded.path())).decoder.layers[2]
    trained = torch.cat([getattr(layer, n).read().float().reshape(-1, 256)
                         for n in ("q", "v", "o", "fc_in", "fc_out")])  # fmt: skip
    return {
        "normal": random.standard_normal((rows, 1024), dtype=np.float32),
        "heavy-tailed": random.standard_t(4, (rows // 2, 1024)).astype(np.float32),
        "trained": trained[: len(trained) // 4 * 4].reshape(-1, 1024).numpy(),
    }


def _importance(columns: int) -> np.ndarray:
    """Random weights for columns, as uneven as the mean squares of a layer's inputs."""
    random = np.random.default_rng(1)
    drawn = random.standard_normal(columns) ** 2 * random.lognormal(0, 1, columns)
    return drawn.astype(np.float32)


def _measure(
    codec: BlockCodec, data: dict[str, np.ndarray], weights: np.ndarray | None, repeats: int
) -> dict[str, Any]:
    share = None if weights is None else torch.from_numpy(weights)

    def ours(rows: np.ndarray) -> np.ndarray:
        return codec.encode(torch.from_numpy(rows), share)[0].numpy()

    def peers(rows: np.ndarray) -> np.ndarray:
        return _ggml(codec, rows, weights)

    errors = {
        name: _error(codec, ours(rows), rows, weights) / _error(codec, peers(rows), rows, weights)
        for name, rows in data.items()
    }
    rows = data["normal"]
    pairs = [(_seconds(ours, rows), _seconds(peers, rows)) for _ in range(repeats)]
    return {
        "type": codec.name,
        "weighted": weights is not None,
        "ours": rows.size / statistics.median(seconds for seconds, _ in pairs) / 1e6,
        "ggml": rows.size / statistics.median(seconds for _, seconds in pairs) / 1e6,
        "speed": statistics.median(peer / own for own, peer in pairs),
        "errors": errors,
    }


def _seconds(encode: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> float:
    began = time.thread_time()
    encode(rows)
    return time.thread_time() - began


def _error(
    codec: BlockCodec, coded: np.ndarray, rows: np.ndarray, weights: np.ndarray | None
) -> float:
    decoded = gguf.quants.dequantize(coded, gguf.GGMLQuantizationType[codec.name])
    squares = (rows.astype(np.float64) - decoded) ** 2
    return float((squares if weights is None else squares * weights).sum())


def _ggml(codec: BlockCodec, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    coded = np.zeros((len(rows), codec.row_bytes(rows.shape)), np.uint8)
    kind, matrix = (
        gguf.GGMLQuantizationType[codec.name],
        weights.ctypes.data if weights is not None else None,
    )
    function(kind, rows.ctypes.data, coded.ctypes.data, 0, *rows.shape, matrix)
    return coded


def _write(results: list[dict[str, Any]], repeats: int, rows: int) -> None:
    import llama_cpp

    machine = {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "llama_cpp_python": llama_cpp.__version__,
    }
    command = "python " + " ".join(["benchmarks/codecs.py", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    report = {"command": command, "repeats": repeats, "machine": machine, "rows": results}
    (RESULTS / "codecs.json").write_text(json.dumps(report, indent=2) + "\n")
    kinds = list(results[0]["errors"])
    lines = [
        f"`{command}`",
        "",
        f"{rows * 1024 / 1e6:.1f} M weights, one thread of {machine['cores']} "
        f"{machine['architecture']} cores ({machine['vectors']}), torch {machine['torch']}, "
        f"llama-cpp-python {machine['llama_cpp_python']}; medians of {repeats} interleaved runs. "
        "Ratios are ours to llama.cpp's: speed should be above 1, errors at or below 1.",
        "",
        "| | M weights/s | llama.cpp's C | speed | "
        + " | ".join(f"error, {k}" for k in kinds)
        + " |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    for row in results:
        name = row["type"] + (", weighted" if row["weighted"] else "")
        errors = " | ".join(f"{row['errors'][kind]:.3f}" for kind in kinds)
        lines.append(
            f"| {name} | {row['ours']:.1f} | {row['ggml']:.1f} | {row['speed']:.2f} | {errors} |"
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "codecs.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
