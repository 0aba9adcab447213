"""`cgconvert run`: which recipe and source it takes, and what it does with the steps."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cgconvert import embedded
from cgconvert.api.conversions import plan
from cgconvert.api.execution import execute
from cgconvert.api.sources import load
from cgconvert.cli import recipe, shipped
from cgconvert.cli.main import main
from cgconvert.cli.recipe_list import listing
from cgconvert.errors import Interrupted
from cgconvert.io.cache import cache_folder
from cgconvert.io.progress import SilentProgress
from cgconvert.model import family
from cgconvert.model.dtype import FLOAT16
from cgconvert.model.tensor import Zeros
from cgconvert.model.tensor_names import CODEGEN, GPTJ
from cgconvert.testing.synthetic import tensor_shapes

TINY = embedded.NAME

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `cgconvert run` in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["run", *arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return int(caught.value.code or 0), printed.out, printed.err

    return call


def headers(out: str) -> list[str]:
    """The lines that name a step."""
    return [line for line in out.splitlines() if line.startswith("[")]


def test_a_recipe_is_read_from_the_standard_input(run: Run, tmp_path: Path) -> None:
    text = f"source: {TINY}\nsteps: [to-gguf: {{type: Q8_0, output: x.gguf}}]\n"
    code, out, err = run("-", stdin=text)
    assert (code, headers(out)) == (0, ["[1/1] to-gguf type Q8_0, output x.gguf"]), err
    assert (tmp_path / "x.gguf").is_file()
    code, _, err = run("-", stdin=text.replace("Q8_0", "Q9"))
    assert (code, "cgconvert: stdin:2: type Q9 is not one of" in err) == (3, True)
    code, _, err = run("-", stdin="")
    assert (code, "stdin: is empty" in err) == (3, True)


def test_a_pipe_by_name_is_no_recipe(run: Run, tmp_path: Path) -> None:
    """Nobody knows whether it ever ends; the standard input is given as `-`."""
    read_end, write_end = os.pipe()
    os.write(write_end, f"source: {TINY}\nsteps: [to-gguf]\n".encode())
    os.close(write_end)
    code, out, err = run(f"/dev/fd/{read_end}", "--dry-run")
    assert (code, out, "not a regular file" in err) == (3, "", True), err
    os.close(read_end)


def test_the_source_may_be_another(run: Run, tmp_path: Path) -> None:
    shutil.copytree(embedded.path(), tmp_path / "mine")
    (tmp_path / "r.yaml").write_text("source: nowhere\nsteps: [to-gguf: {type: Q8_0}]\n")
    code, _, err = run("r.yaml", "--source", "mine")
    assert code == 0, err
    assert (tmp_path / "out/mine/gguf/mine-Q8_0.gguf").is_file()
    manifest = json.loads((tmp_path / "out/mine/gguf/mine-Q8_0.gguf.cgconvert.json").read_text())
    assert manifest["source"]["origin"]["given"] == "mine"
    code, _, err = run("r.yaml")
    assert (code, "nowhere: no such file" in err) == (3, True)


@pytest.mark.parametrize("name", ["codegen-2B-multi", "nsql-350M", "gpt-j-6B"])
def test_a_published_name_is_the_source_of_its_recipe(name: str, run: Run, tmp_path: Path) -> None:
    """The folder ./NAME is what a published name means first; it has no model here."""
    (tmp_path / name).mkdir()
    code, _, err = run(name)
    assert (code, err.startswith(f"cgconvert: {name}: ")) == (3, True), err


def test_what_is_no_recipe_is_a_source_to_give(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "someone/codegen-sql"):
        code, _, err = run(name)
        assert (code, f"codegen-350M-mono --source {name}" in err) == (3, True)
    code, _, err = run()
    assert (code, "Missing argument 'RECIPE'; cgconvert run --list" in err) == (2, True)


def test_options_of_reading_hold_for_all_steps_unless_a_step_has_its_own(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"source: {TINY}\nstep: 7\nsteps: [to-gguf: {{mp_num: 2}}, to-hf]\n"
    )
    code, _, err = run("r.yaml", "--dry-run")
    assert (code, "step" in err) == (2, True)  # the built-in model is no training run
    (tmp_path / "r.yaml").write_text(f"source: {TINY}\nsteps: [to-hf: {{tokenizer: nowhere}}]\n")
    code, _, err = run("r.yaml", "--dry-run")
    assert (code, "nowhere" in err) == (3, True)
    (tmp_path / "r.yaml").write_text(f"source: {TINY}\ntokenizer: nowhere\nsteps: [to-hf]\n")
    code, _, err = run("r.yaml", "--tokenizer", str(embedded.path()), "--dry-run")
    assert code == 0, err


def test_two_steps_of_one_output_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"source: {TINY}\nsteps:\n  - to-gguf\n  - to-onnx: {{bits: 4, matrix: "
        "{block_size: [32, 64]}}\n"
    )
    code, _, err = run("r.yaml")
    assert code == 3
    assert "r.yaml:4: to-onnx bits 4, block_size 64: would write out/" in err
    assert "as the step of line 4 does; give one of them another output" in err
    assert os.listdir(tmp_path) == ["r.yaml"]


OVERLAPS = {
    "another spelling": "[to-gguf: {output: a/m.gguf}, to-gguf: {output: a/../a/m.gguf}]",
    "a link": "[to-gguf: {output: real/m.gguf}, to-gguf: {output: link/m.gguf}]",
    "a file in a folder": "[to-hf: {output: c}, to-gguf: {output: c/m.gguf}]",
    "a folder around a file": "[to-gguf: {output: c/m.gguf}, to-hf: {output: c}]",
    "a report in an artefact": "[to-hf: {output: c}, verify: {report: c/report.html}]",
    "a report in place of a manifest": "[to-gguf: {output: m.gguf}, "
    "verify: {report: m.gguf.cgconvert.json}]",
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_steps_that_write_over_each_other_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "r.yaml").write_text(f"source: {TINY}\nsteps: {OVERLAPS[name]}\n")
    code, _, err = run("r.yaml", "--force")
    assert code == 3, err
    assert "as the step of line 2" in err
    assert sorted(os.listdir(tmp_path)) == ["link", "r.yaml", "real"]
    assert not os.listdir(tmp_path / "real")


def test_verify_looks_at_all_steps_before_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"source: {TINY}\n"
        "steps:\n"
        "  - to-gguf: {matrix: {type: [F16, Q8_0]}}\n"
        "  - verify: {report: [one.json, one.html], threshold: {logits.kl_mean: 0.01}}\n"
        "  - to-hf: {output: later}\n"
    )
    code, out, err = run("r.yaml")
    assert code == 0, err
    assert [line.partition("] ")[2].partition(" ")[0] for line in headers(out)] == [
        "to-gguf", "to-gguf", "verify", "to-hf",
    ]  # fmt: skip
    report = json.loads((tmp_path / "one.json").read_text())
    assert [entry["artefact"]["type"] for entry in report["artefacts"]] == ["F16", "Q8_0"]
    for entry in report["artefacts"]:
        (mean,) = [check for check in entry["checks"] if check["name"] == "logits.kl_mean"]
        assert mean["threshold"] == 0.01
    assert (tmp_path / "one.html").is_file()
    assert (tmp_path / "later").is_dir()


STEPS = f"""\
source: {TINY}
steps:
  - to-gguf: {{type: Q8_0, output: q8.gguf}}
  - verify: {{report: verdict.json}}
  - to-hf: {{output: hf}}
  - quantize: {{bits: 4, effort: fast, output: q4.gguf}}
"""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and which one it is."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.name != "r.yaml"
    }


def test_a_recipe_goes_on_where_it_was_and_does_nothing_once_it_is_finished(
    run: Run, tmp_path: Path
) -> None:
    """The verification in its middle is one of the steps; --dry-run says all of it before."""
    (tmp_path / "r.yaml").write_text(STEPS[: STEPS.index("  - to-hf")])
    assert run("r.yaml")[0] == 0
    first = snapshot(tmp_path)

    (tmp_path / "r.yaml").write_text(STEPS)
    code, dry, err = run("r.yaml", "--dry-run")
    assert (code, snapshot(tmp_path)) == (0, first), err
    code, out, err = run("r.yaml")
    assert code == 0, err
    for text in (dry, out):
        lines = text.splitlines()
        assert lines[:3] == [
            "[1/4] to-gguf type Q8_0, output q8.gguf",
            "already there: q8.gguf",
            "[2/4] verify report verdict.json",
        ]
        assert lines[3] == (
            "verified before, with the same files, bounds and versions (so says the cache); passed:"
        )
        assert lines[4].startswith("  gguf Q8_0 in llama.cpp")
        assert text.count("already there") == 1
    assert {name: state for name, state in snapshot(tmp_path).items() if name in first} == first
    finished = snapshot(tmp_path)
    assert {"hf/cgconvert.json", "q4.gguf"} <= finished.keys()

    code, out, err = run("r.yaml")
    assert (code, out.count("already there"), out.count("verified before")) == (0, 3, 1), err
    assert snapshot(tmp_path) == finished
    code, dry, _ = run("r.yaml", "--dry-run")
    assert code == 0
    finished_out = out.replace("--force verifies again\n", "")
    assert dry == f"{finished_out}4 of 4 steps are there, 0 would run\n"


WITHOUT_VERIFY = STEPS.replace("  - verify: {report: verdict.json}\n", "")


def assert_stops(run: Run, folder: Path, line: str, reason: str, advice: str) -> None:
    """A run and a dry run say the same, in one line, and nothing is written."""
    before = snapshot(folder)
    code, out, err = run("r.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"cgconvert: {line}: {reason}")
    assert err.rstrip().endswith(advice)
    code, out, _ = run("r.yaml", "--dry-run")
    assert code == 0
    assert f"would stop: {reason}" in out
    assert advice in out
    assert re.search(r"nothing would be written: 1 of \d steps would stop\n$", out)
    assert snapshot(folder) == before


def test_a_recipe_stops_before_it_begins_for_what_differs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WITHOUT_VERIFY)
    assert run("r.yaml")[0] == 0
    (tmp_path / "r.yaml").write_text(
        STEPS.replace("hf}", "hf, dtype: float32}")
        .replace("verify: {report: verdict.json}", "to-gguf: {output: new.gguf}")
    )  # fmt: skip
    line = "r.yaml:5: to-hf output hf, dtype float32"
    advice = "; --force replaces it, or give the step another output"
    assert_stops(run, tmp_path, line, "hf has ", advice)


def test_a_recipe_stops_for_what_is_not_cgconverts_and_force_does_not_help(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(WITHOUT_VERIFY)
    (tmp_path / "q4.gguf").write_text("a thesis")
    line = "r.yaml:5: quantize bits 4, effort fast, output q4.gguf"
    assert_stops(run, tmp_path, line, "q4.gguf: ", "; move it, or give the step another output")
    code, _, err = run("r.yaml", "--force")
    assert (code, (tmp_path / "q4.gguf").read_text()) == (2, "a thesis"), err


class InterruptedProgress(SilentProgress):
    """Interrupts the run when everything is written and about to be hashed."""

    def step(self, label: str, total: int) -> None:
        if label == "hashing":
            raise Interrupted


def test_a_recipe_goes_on_with_what_an_interrupted_run_has_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WITHOUT_VERIFY)
    interrupted = plan(TINY, "to-hf", "hf")
    with pytest.raises(Interrupted):
        execute(interrupted, progress=InterruptedProgress())
    code, out, err = run("r.yaml", "--dry-run")
    assert (code, out.count("would continue at ")) == (0, 1), err
    assert out.endswith("0 of 3 steps are there, 3 would run\n")
    code, out, err = run("r.yaml")
    assert (code, err.count("continuing at ")) == (0, 1), err


def test_force_replaces_only_what_differs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WITHOUT_VERIFY)
    assert run("r.yaml")[0] == 0
    before = snapshot(tmp_path)
    text = (tmp_path / "r.yaml").read_text()
    (tmp_path / "r.yaml").write_text(text.replace("Q8_0", "Q4_0"))
    code, out, err = run("r.yaml", "--force")
    assert (code, out.count("already there")) == (0, 2), err
    after = snapshot(tmp_path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"q8.gguf", "q8.gguf.cgconvert.json"}


def test_what_was_verified_is_verified_again_where_something_differs(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(STEPS[: STEPS.index("  - to-hf")])
    assert run("r.yaml")[0] == 0
    (tmp_path / "verdict.json").unlink()
    code, out, err = run("r.yaml")
    assert (code, "verified before" in out) == (0, False), err
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "pass"
    with (tmp_path / "q8.gguf").open("r+b") as file:  # of the same size
        file.seek(-100, os.SEEK_END)
        file.write(bytes(50))
    code, _, err = run("r.yaml")
    assert (code, "q8.gguf: changed since it was written" in err) == (2, True), err
    assert "--force" not in err


def test_a_failed_verification_is_not_recorded(run: Run, tmp_path: Path) -> None:
    text = STEPS[: STEPS.index("  - to-hf")].replace(
        "report:", "threshold: {logits.kl_mean: -1}, report:"
    )
    (tmp_path / "r.yaml").write_text(text)
    records = cache_folder() / "verified"
    before = set(records.glob("*"))
    assert run("r.yaml")[0] == 4
    assert set(records.glob("*")) == before


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_fits_the_terminal(columns: int) -> None:
    wrapped = listing(columns)
    assert max(map(len, wrapped.splitlines())) <= columns
    assert wrapped.split() == listing().split()


def test_the_list_has_source_steps_sizes_and_outputs(run: Run) -> None:
    _, out, _ = run("--list")
    entries = dict(entry.split("\n", 1) for entry in out.strip().split("\n\n"))
    assert list(entries) == list(shipped.shipped())
    entry = entries["codegen-2B-mono"]
    for part in (
        "source  codegen-2B-mono, or codegen-2B-nl, or codegen-2B-multi", "GB in float16", "GB are",
        "steps   to-hf dtype float16; to-hf", "bits 4, format onnx; verify",
        "writes  out/codegen-2B-mono/",
    ):  # fmt: skip
        assert part in entry


@pytest.mark.parametrize("name", [name for name in shipped.shipped() if name != TINY])
def test_a_shipped_recipe_says_how_much_it_writes(name: str) -> None:
    """Plans of a model without numbers; a fitted artefact has the size of a simple one."""
    (loaded,) = recipe.load(shipped.shipped()[name])
    geometry = family.geometry(name)
    shapes = tensor_shapes(geometry)
    zeros = {part: Zeros(shape, FLOAT16) for part, shape in shapes.items()}
    names = CODEGEN if geometry.mp_num else GPTJ
    decoder = names.decoder(geometry, zeros, name)
    checkpoint = replace(load(TINY), name=name, decoder=decoder)
    written = 0
    for step in loaded.steps:
        if step.command != "verify":
            effort = {"effort": "fast"} if step.command == "quantize" else {}
            written += plan(checkpoint, step.command, **step.options, **effort).nbytes
    sizes = {
        "in float16": sum(2 * math.prod(shape) for shape in shapes.values()),
        "are written": written,
    }
    for words, size in sizes.items():
        (stated,) = (
            float(part.split()[-1]) for part in loaded.description.split(f" GB {words}")[:1]
        )
        assert stated == pytest.approx(size / 1e9, rel=0.05, abs=0.05), words


WITHOUT_CACHE: dict[str, tuple[str, tuple[str, ...]]] = {
    "--no-cache": ("", ("--no-cache",)),
    "the recipe's": ("cache: false\n", ()),
    "the steps'": ("", ()),
}


@pytest.mark.parametrize("place", WITHOUT_CACHE)
def test_without_the_cache_a_recipe_neither_reads_nor_writes_it(
    place: str, run: Run, tmp_path: Path
) -> None:
    top, flags = WITHOUT_CACHE[place]
    own = ", cache: false" if place == "the steps'" else ""
    (tmp_path / "r.yaml").write_text(
        f"source: {TINY}\n{top}steps:\n  - to-gguf: {{type: Q8_0{own}}}\n"
        f"  - verify: {{quick: true{own}}}\n"
    )
    for _ in range(2):
        code, out, err = run("r.yaml", *flags)
        assert code == 0, err
        assert "verified before" not in out
        assert "; without the cache" in out
    assert not any((cache_folder() / kind).exists() for kind in ("hashes", "verified"))
