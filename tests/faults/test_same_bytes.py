"""Every output without calibration has the same bytes on any number and kind of cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from cgconvert import embedded
from cgconvert.formats.read import read
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic
from cgconvert.write import execute as execution
from cgconvert.write import plan
from cgconvert.write.execute import execute
from cgconvert.write.plan import Plan
from tests.faults.kill import file_hashes
from tests.support import plans

OUTPUTS: dict[str, Callable[..., Plan]] = {
    **{f"hf {d}": partial(plans.to_hf, dtype=d) for d in ("float16", "bfloat16", "float32")},
    "phi": partial(plans.to_hf, layout="phi"),
    **{f"onnx {d}": partial(plans.to_onnx, dtype=d) for d in ("float32", "float16")},
    **{f"onnx {b}": partial(plans.to_onnx, bits=b) for b in (4, 8)},
    **{f"gguf {t}": partial(plans.to_gguf, type=t)
       for t in ("F32", "F16", "BF16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K")},
}  # fmt: skip


GEOMETRY = Geometry(
    n_layer=1, n_embd=256, n_head=4, rotary_dim=16, n_positions=64, vocab_size=4096, mp_num=4
)
CASES = [("safetensors", name) for name in OUTPUTS] + [("jaxformer", "hf float16")]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("layout", "output"), CASES)
def test_any_number_of_processes_gives_the_same_bytes(
    layout: str,
    output: str,
    threads: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution, "SMALL_BYTES", 0)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 16)
    state = synthetic.RandomState(GEOMETRY, seed=3)
    source = synthetic.write(layout, state, GEOMETRY, tmp_path, "source", embedded.path())
    checkpoint = read(str(source))
    written = []
    for count in (1, 4):
        threads(count)
        target = tmp_path / str(count) / "out.gguf"
        execute(OUTPUTS[output](checkpoint, target))
        written.append(file_hashes(target.parent))
    assert written[0] == written[1]
    manifests = list(tmp_path.rglob("*cgconvert.json"))
    assert len(manifests) == 2
    keys = json.dumps(json.loads(manifests[0].read_text())).lower()
    assert not [word for word in ("date", 'time"', "clock", "host", "user") if word in keys]


@pytest.mark.parametrize(
    "command",
    ["to-gguf --type Q5_K_M", "to-gguf --type Q4_K_M", "to-gguf --type Q3_K", "to-gguf --type Q4_1",
     "to-onnx --bits 4", "to-hf --dtype bfloat16"],
)  # fmt: skip
def test_any_kind_of_processor_gives_the_same_bytes(command: str, tmp_path: Path) -> None:
    """torch's oldest instruction set and the newest of this processor write the same."""
    kind, *options = command.split()
    convert_embedded = [sys.executable, "-m", "cgconvert", kind, embedded.NAME, *options, "-o"]
    oldest = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([*convert_embedded, "newest/m.gguf"], cwd=tmp_path, check=True)
    subprocess.run([*convert_embedded, "oldest/m.gguf"], cwd=tmp_path, check=True, env=oldest)
    assert file_hashes(tmp_path / "newest") == file_hashes(tmp_path / "oldest")
