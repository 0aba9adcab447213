"""Failures around the program: kills, signals, full disks, read-only targets, concurrent runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.kill import NAME, WRITERS, Killer, Tally, file_hashes
from tests.faults.server import Outcome, Server
from tests.faults.valid_inputs import ValidInputs

MOMENTS = int(os.environ.get("CGCONVERT_TEST_MOMENTS", "20"))


@pytest.fixture(scope="module")
def killer(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Killer:
    return Killer(server, tmp_path_factory.mktemp("kill"), seed=0)


def assert_fails(outcome: Outcome, code: int, message: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert message in outcome.err


def visible(folder: Path) -> dict[str, str]:
    return {name: sha for name, sha in file_hashes(folder).items() if name[0] != "."}


def test_a_kill_at_a_random_moment_leaves_a_complete_output_or_none(killer: Killer) -> None:
    tally = Tally()
    for number in range(MOMENTS):
        killer.kill_once(list(WRITERS)[number // 2 % len(WRITERS)], tally, number)
    assert tally.faults == []
    assert sum(tally.after.values()) == MOMENTS


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize(("command", "output"), [("to-gguf", "out/m.gguf"), ("to-hf", "out/hf")])
def test_a_kill_before_each_step_of_the_commit_leaves_whole_files(
    command: str,
    output: str,
    replaced: bool,
    server: Server,
    valid_inputs: ValidInputs,
    tmp_path: Path,
) -> None:
    """Kill it before every rename, removal and sync in turn. A file and its manifest go apart.

    The next run completes the output, resumed or not. What it replaces has the same sizes: it is
    the artefact of a source with another last byte.
    """
    source = valid_inputs.copy("safetensors", tmp_path)
    arguments = (command, "source", "-o", output, "--force")
    weights = source / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert server.run(*arguments, cwd=tmp_path).code == 0
    names = file_hashes(tmp_path / "out")
    earlier = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    weights.write_bytes(raw)
    assert server.run(*arguments, cwd=tmp_path).code == 0
    complete = file_hashes(tmp_path / "out")
    old = earlier if replaced else {}
    number, seen = 0, set()
    while True:
        for name in complete:
            (tmp_path / "out" / name).unlink(missing_ok=True)
        if (tmp_path / "out/hf").is_dir():
            (tmp_path / "out/hf").rmdir()
        for name, data in old.items():
            (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / name).write_bytes(data)
        before = visible(tmp_path / "out")
        outcome = server.run(*arguments, cwd=tmp_path, die=number, journal=1)
        there = visible(tmp_path / "out")
        if outcome.code == 0:
            break
        assert outcome.code == -signal.SIGKILL, outcome.err
        if there not in (before, complete):
            kinds = {name: (sha == complete.get(name), sha == before.get(name))
                     for name, sha in there.items()}  # fmt: skip
            assert command == "to-gguf", kinds
            assert len(there) == 1, kinds  # a whole file, or a manifest that waits for its file
            assert all(any(kind) for kind in kinds.values()), kinds
        seen.add(json.dumps(there, sort_keys=True))
        assert server.run(*arguments, *["--no-keep"] * (number % 2), cwd=tmp_path).code == 0
        assert file_hashes(tmp_path / "out") == complete
        number += 1
    assert number > 5
    assert there == complete
    assert len(seen) >= 2  # as before, and complete
    assert not list(tmp_path.rglob(".*cgconvert-tmp"))


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_without_keep_ends_in_one_line_and_leaves_nothing(
    number: int, group: bool, killer: Killer, tmp_path: Path
) -> None:
    """One line, exit code 130 and nothing left, at any moment from the start to the commit.

    The commit itself is not interrupted: a signal that comes meanwhile is answered after it, and
    the output is complete.
    """
    killer.write_source(tmp_path, 1)
    assert killer.run(tmp_path, "to-gguf Q8_0").code == 0
    complete = file_hashes(tmp_path)
    shutil.rmtree(tmp_path / "out")
    before = file_hashes(tmp_path)
    codes = set()
    for part in range(6):
        outcome = killer.run(
            tmp_path, "to-gguf Q8_0", "--no-keep", kill=[number, 0.01 + part * 0.02], group=group
        )
        codes.add(outcome.code)
        if outcome.code:
            assert_fails(outcome, 130, "cgconvert: interrupted")
            assert file_hashes(tmp_path) in (before, complete)
        for path in (tmp_path / "out").glob("*"):
            path.unlink()
    assert 130 in codes


@pytest.mark.parametrize("command", ["to-gguf", "to-hf", "to-onnx"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    command: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    valid_inputs.copy("safetensors", tmp_path)
    before = file_hashes(tmp_path)
    output = "new/folder/out.gguf" if command == "to-gguf" else "new/folder/out"
    outcome = server.run(command, "source", "-o", output, cwd=tmp_path, file_bytes=300_000)
    assert_fails(outcome, 5, f"{output}: cannot be written: File too large")
    assert file_hashes(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_tarball_that_does_not_fit_leaves_nothing(
    server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    valid_inputs.copy("tarball", tmp_path)
    env = {"CGCONVERT_CACHE": str(tmp_path / "cache")}
    outcome = server.run("inspect", "source.tar.gz", cwd=tmp_path, file_bytes=300_000, env=env)
    assert_fails(outcome, 5, "source.tar.gz: cannot be unpacked: File too large")
    assert os.listdir(tmp_path) == ["source.tar.gz"]


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("/sys/cgconvert/out.gguf", 5, "/sys/cgconvert/out.gguf: "),
        ("/proc/self/out.gguf", 5, "/proc/self/out.gguf: "),
        ("source/config.json/out.gguf", 2, "the output is the input or inside it"),
        ("file/out.gguf", 5, "cannot be written"),
        ("x" * 300 + ".gguf", 5, "File name too long"),
        ("source/out.gguf", 2, "the output is the input or inside it"),
        ("source", 2, "ends in .gguf"),
        ("link/out.gguf", 2, "the output is the input or inside it"),
    ],
)
def test_impossible_outputs_are_refused(
    output: str, code: int, message: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    valid_inputs.copy("safetensors", tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to("source")
    before = file_hashes(tmp_path)
    outcome = server.run("to-gguf", "source", "-o", output, "--force", cwd=tmp_path)
    assert_fails(outcome, code, message)
    assert file_hashes(tmp_path) == before


@pytest.mark.parametrize("kind", ["jaxformer", "tarball", "safetensors"])
def test_the_output_is_never_the_input(
    kind: str, server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    source = valid_inputs.copy(kind, tmp_path / "in").relative_to(tmp_path)
    valid_inputs.copy("safetensors", tmp_path)  # a tokenizer
    before = file_hashes(tmp_path)
    outputs = [source, Path("in")] + [source / "deep" / "out"] * (kind != "tarball")
    for output in outputs:
        outcome = server.run(
            "to-hf", str(source), "-o", str(output), "--force", "--tokenizer", "source",
            cwd=tmp_path, env={"CGCONVERT_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        assert_fails(outcome, 2, "choose another -o")
        hashes = {k: v for k, v in file_hashes(tmp_path).items() if not k.startswith("cache/")}
        assert hashes == before


def test_a_second_run_to_the_same_output_is_refused(
    server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    valid_inputs.copy("safetensors", tmp_path)
    staging = tmp_path / ".out.gguf.cgconvert-tmp"
    staging.mkdir()
    with (staging / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ((), ("--force",), ("--no-keep",), ("--resume",)):
            outcome = server.run("to-gguf", "source", "-o", "out.gguf", *more, cwd=tmp_path)
            assert_fails(outcome, 2, "out.gguf is being written by another run")
    assert server.run("to-gguf", "source", "-o", "out.gguf", cwd=tmp_path).code == 0
    assert not staging.exists()


def test_a_kill_between_two_renames_keeps_the_old_folder(
    server: Server, valid_inputs: ValidInputs, tmp_path: Path
) -> None:
    """If two folders cannot be exchanged in one step, the old one is in the staging folder."""
    valid_inputs.copy("safetensors", tmp_path)
    assert server.run("to-hf", "source", "-o", "out", cwd=tmp_path).code == 0
    complete = file_hashes(tmp_path)
    staging = tmp_path / ".out.cgconvert-tmp"
    (staging / "replaced").mkdir(parents=True)
    (staging / "lock").touch()
    (staging / "content").mkdir()
    record = {"new": "content", "inode": (staging / "content").stat().st_ino}
    (staging / "commit").write_text(json.dumps(record))
    (tmp_path / "out").rename(staging / "replaced" / "out")
    outcome = server.run("to-hf", "source", "-o", "out", cwd=tmp_path)
    assert_fails(outcome, 2, "out exists; give --force")
    assert file_hashes(tmp_path) == complete
    assert not list(tmp_path.glob(".*"))


# Resuming


def interrupted_run(killer: Killer, work: Path, writer: str = "to-gguf Q8_0") -> Path:
    """Kill a run after its journal lists some rows as written; return the staging folder."""
    killer.write_source(work, 1)
    whole = killer.run(work, writer)
    assert whole.code == 0, whole.err
    (work / "out").rename(work / "expected")
    for part in range(50):
        share = (10, 8, 6, 9, 7, 5, 4, 3, 2, 1)[part % 10] / 10  # one run may be far slower
        killer.run(work, writer, kill=[signal.SIGKILL, whole.wall * share * 0.95])
        for journal in work.glob("out/.*/journal"):
            if journal.read_text().count('"position"') >= 2:
                return journal.parent
        shutil.rmtree(work / "out", ignore_errors=True)
    raise AssertionError("no kill came while rows were being written")


def test_resume_continues_where_the_journal_ends(killer: Killer, tmp_path: Path) -> None:
    staging = interrupted_run(killer, tmp_path)
    staged = staging / "content" / "m.gguf"
    with staged.open(
        "r+b"
    ) as file:  # in rows that the journal lists, which resume must not write again
        file.seek(400_000)
        mark = bytes(byte ^ 255 for byte in file.read(16))
        file.seek(400_000)
        file.write(mark)
    assert killer.run(tmp_path, "to-gguf Q8_0").code == 0
    raw = bytearray((tmp_path / "out/m.gguf").read_bytes())
    assert raw[400_000:400_016] == mark
    raw[400_000:400_016] = bytes(byte ^ 255 for byte in mark)
    assert raw == (tmp_path / "expected/m.gguf").read_bytes()
    assert not staging.exists()


def test_without_keep_an_interrupted_run_is_discarded(killer: Killer, tmp_path: Path) -> None:
    staging = interrupted_run(killer, tmp_path)
    staged = staging / "content" / "m.gguf"
    staged.write_bytes(bytes(staged.stat().st_size))  # would be continued
    outcome = killer.run(tmp_path, "to-gguf Q8_0", "--no-keep")
    assert (outcome.code, "continuing" in outcome.err) == (0, False)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "expected")


@pytest.mark.parametrize("changed", ["source", "type", "journal", "staged"])
def test_a_changed_source_type_or_staging_is_not_resumed(
    changed: str, killer: Killer, tmp_path: Path
) -> None:
    staging = interrupted_run(killer, tmp_path)
    writer = "quantize gguf 4" if changed == "type" else "to-gguf Q8_0"
    if changed == "source":  # other numbers under the same name, size and time
        weights = tmp_path / NAME / "model.safetensors"
        times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
        second_version = killer.folder / "safetensors2" / NAME / "model.safetensors"
        weights.write_bytes(second_version.read_bytes())
        os.utime(weights, ns=times)
    elif changed == "journal":
        (staging / "journal").write_bytes(b'{"key": "x"}\n\xff\n{"position": [9, 9, 9]}\n')
    elif changed == "staged":
        os.truncate(staging / "content" / "m.gguf", 1000)
    outcome = killer.run(tmp_path, writer)
    assert outcome.code == 0, outcome.err
    (tmp_path / "resumed").mkdir()
    (tmp_path / "out/m.gguf").rename(tmp_path / "resumed/m.gguf")
    assert killer.run(tmp_path, writer, "--force").code == 0
    assert (tmp_path / "out/m.gguf").read_bytes() == (tmp_path / "resumed/m.gguf").read_bytes()


INTERRUPTED = (
    r"cgconvert: interrupted(?:; kept (\d+) % \([\d.]+ [kM]B in out/\.m\.gguf\.cgconvert-tmp\): "
    r"run the same again to go on, or drop it with `cgconvert clean out/m\.gguf --delete`)?"
)


def test_an_interruption_keeps_what_is_written_and_says_so(killer: Killer, tmp_path: Path) -> None:
    """Each run writes more of the output; a signal during the commit is answered after it."""
    killer.write_source(tmp_path, 1)
    assert killer.run(tmp_path, "to-gguf Q8_0").code == 0
    complete = file_hashes(tmp_path)
    shutil.rmtree(tmp_path / "out")
    assert killer.run(tmp_path, "to-gguf Q8_0", file_bytes=2_000_000).code == 5
    share = ""
    for part in range(40):  # the time grows beyond what the slowest machine needs
        outcome = killer.run(tmp_path, "to-gguf Q8_0", kill=[signal.SIGINT, 0.01 * 1.25**part])
        continued = re.search(r"^continuing at (\d+) %: out/m.gguf$", outcome.err, re.MULTILINE)
        assert (continued[1] if continued else "") == share, outcome.err
        if file_hashes(tmp_path) == complete:
            break
        last = outcome.err.splitlines()[-1]
        kept = re.fullmatch(INTERRUPTED, last)
        assert (outcome.code, bool(kept)) == (130, True), outcome.err
        share = kept[1] or "" if kept else ""
        assert bool(list(tmp_path.rglob("*.cgconvert-tmp"))) == bool(share)
    assert file_hashes(tmp_path) == complete
    assert not list(tmp_path.rglob("*.cgconvert-tmp"))
