"""What a dry run says of quantizing: time, memory and the quick way."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cgconvert.calibrate.estimate import Measurements, Work
from cgconvert.calibrate.rounded_plan import duration_range, rounding_seconds
from cgconvert.cli.main import main
from cgconvert.codecs.block_codec import BlockCodec
from cgconvert.codecs.ggml import ENCODINGS
from cgconvert.io.progress import SilentProgress
from cgconvert.model.decoder import Geometry
from tests.conftest import first_layers
from tests.support import plans

SHAPES = {
    "350M": {"n_layer": 20, "n_embd": 1024, "n_head": 16, "rotary_dim": 32, "vocab_size": 51200},
    "16B": {"n_layer": 34, "n_embd": 6144, "n_head": 24, "rotary_dim": 64, "vocab_size": 51200},
}
CPU = torch.device("cpu")


def shape(name: str) -> Geometry:
    sizes = SHAPES[name]
    return Geometry(
        **sizes, n_positions=2048, n_inner=4 * sizes["n_embd"], mp_num=4, layer_norm_epsilon=1e-5
    )


def q4_k() -> BlockCodec:
    codec = ENCODINGS["Q4_K"]
    assert isinstance(codec, BlockCodec)
    return codec


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "1 s"), (5, "4 to 6 s"), (40, "30 to 50 s"), (100, "1 to 2 min"),
        (480, "6 to 10 min"), (600, "8 to 12 min"), (7200, "1.6 to 2.5 h"),
    ],
)  # fmt: skip
def test_a_time_is_a_range(seconds: float, text: str) -> None:
    assert duration_range(seconds) == text


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_of_any_size_is_estimated_in_seconds(name: str) -> None:
    """Wide models are timed on pieces as small as those of narrow ones."""
    start = time.process_time()
    measurements = Measurements(shape(name), q4_k(), CPU)
    work = Work(shape(name), 256, 160 * 256, 64 * 256, 2, 5)
    assert measurements.calibration_seconds(work) > 30 * measurements.encode_seconds
    assert time.process_time() - start < 8  # 0.6 of an idle core


def test_more_work_takes_longer() -> None:
    geometry = shape("350M")
    measurements = Measurements(geometry, q4_k(), CPU)
    least = measurements.calibration_seconds(Work(geometry, 256, 40 * 256, 16 * 256, 2, 0))
    usual = measurements.calibration_seconds(Work(geometry, 256, 160 * 256, 64 * 256, 2, 5))
    most = measurements.calibration_seconds(Work(geometry, 256, 640 * 256, 64 * 256, 4, 5))
    assert least < usual < most
    assert rounding_seconds(q4_k(), 350_000_000) < usual


def test_the_estimate_is_of_the_order_of_the_work(tmp_path: Path) -> None:
    """Two layers, in this process's own time on one thread: other programs do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("cgconvert.calibrate.estimate.time.perf_counter", time.process_time)
            plan = plans.quantize(first_layers(1, positions=64), type="Q4_0")
            measurements = Measurements(plan.source.geometry, plan.timed_codec, CPU, 64)
            estimate = measurements.calibration_seconds(plan.work())
        start = time.process_time()
        plan.resolve(tmp_path, SilentProgress())
        seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert 1 / 3 < estimate / seconds < 3, (estimate, seconds)


def test_the_quick_way_is_estimated_without_torch(tmp_path: Path) -> None:
    command = "from cgconvert.cli.main import main; import sys\n" + (
        "try: main('quantize codegen-tiny-mono --type Q4_K_M --effort fast --dry-run'.split())\n"
        "finally: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True)
    lines = run.stdout.decode().splitlines()
    assert re.fullmatch(r"time:  (\d+ to )?\d+ (s|min), by the speed of this machine", lines[-2])
    assert lines[-1] == "False"


def test_a_dry_run_names_the_quick_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Measurements, "_timed", lambda self, operation: 1e-3)
    with pytest.raises(SystemExit):
        main(["quantize", "codegen-tiny-mono", "--bits", "4", "--dry-run"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"path: out/codegen-tiny-mono/gguf/codegen-tiny-mono-5\.\d\dbpw\.gguf", text)
    assert "size: at most 4.49 MB" in text
    assert re.search(r"needs: about \d+ MB of memory, \d+ MB of disk", text)
    assert re.search(r"time: .* by --effort fast: [\d to]+ s", text)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_is_about_what_calibration_takes(tmp_path: Path) -> None:
    """One layer in a process of its own, with the whole vocabulary and the usual text."""
    code = (
        "from pathlib import Path\n"
        "import sys\n"
        "from cgconvert.io.progress import SilentProgress\n"
        "from tests.conftest import first_layers\n"
        "from tests.support import plans\n"
        "plan = plans.quantize(first_layers(1, positions=128), type='Q4_0')\n"
        "plan.resolve(Path(sys.argv[1]), SilentProgress())\n"
        "print(plan.work().peak_memory())\n"
        # ru_maxrss would begin with the memory of the process that started this one.
        "status = Path('/proc/self/status').read_text().split('VmHWM:')[1]\n"
        "print(int(status.split()[0]) * 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "steps"], capture_output=True)
    computed, measured = map(int, run.stdout.split())
    assert 1 / 2 < computed / measured < 2, (computed, measured)
