"""The line of progress: it fits, counts steps, estimates the time, and leaves the terminal tidy."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from cgconvert.api import progress as shown
from cgconvert.api.progress import ProgressBar, Status, fit_line
from cgconvert.io.pace import Pace, format_rate, format_time_left
from cgconvert.io.progress import Amount, LaterSteps, format_bytes, format_duration
from cgconvert.io.terminal import cell_width, shorten, shorten_path, uses_color
from cgconvert.io.ticker import Ticker
from tests.support.terminal import Screen, Session, resize, run_in_terminal

CGCONVERT = [sys.executable, "-m", "cgconvert"]
TINY = "codegen-tiny-mono"


@pytest.mark.parametrize("width", [4, 12, 20, 39, 60, 79, 119, 199])
@pytest.mark.parametrize("position", ["", "3 of 8", "[12/15] 3 of 8"])
@pytest.mark.parametrize(
    "label",
    [
        "hashing",
        "measuring the groups of qkv_proj",
        "writing out/codegen-350M-mono/gguf/codegen-350M-mono-Q8_0.gguf",
        "writing /home/someone/模型/模型模型模型模型模型模型模型模型.gguf",
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_line_fits_any_width(width: int, position: str, label: str, ascii_only: bool) -> None:
    for rate, left, elapsed in (
        ("", "", ""),
        ("120 MB/s", "about 12 min", ""),
        ("1.2 layers/min", "a few seconds", ""),
        ("", "", "12 min"),
    ):
        line = fit_line(
            Status(position, label, 0.451, rate, left, elapsed), width, ascii_only=ascii_only
        )
        assert cell_width(line) <= width
        assert "45" in line
        if width >= 39 and len(position) < 10:
            assert line.startswith(position)
            assert "45%" in line
            assert left in line
        if width >= 79:
            assert rate in line
        if width >= 79 and len(position) < 10:
            assert ("#" if ascii_only else "━") in line


def test_a_line_shows_what_is_done_and_how_long_it_takes() -> None:
    label = "writing out/codegen-350M-mono/gguf/codegen-350M-mono-Q8_0.gguf"
    status = Status("3 of 8", label, 0.45, "120 MB/s", "about 2 min")
    lines = {width: fit_line(status, width) for width in (110, 79, 39)}
    assert lines == {
        110: "3 of 8  writing out/…/gguf/codegen-350M-mono-Q8_0.gguf  ━━━━━━━──────────"
        "   45%  120 MB/s  about 2 min left",
        79: "3 of 8  writing codegen-3…Q8_0.gguf  ━━━─────   45%  120 MB/s  about 2 min left",
        39: "3 of 8 writing out/co…  45% about 2 min",
    }


@pytest.mark.parametrize(
    ("path", "width", "expected"),
    [
        ("out/model/gguf/model.gguf", 25, "out/model/gguf/model.gguf"),
        ("out/model/gguf/model.gguf", 24, "out/…/gguf/model.gguf"),
        ("out/model/gguf/model.gguf", 20, "out/…/model.gguf"),
        ("out/model/gguf/model.gguf", 15, "…/model.gguf"),
        ("/home/me/models/codegen/model.gguf", 30, "/home/…/codegen/model.gguf"),
        ("/home/me/models/codegen/model.gguf", 12, "…/model.gguf"),
        ("codegen-350M-mono-Q4_K_M.gguf", 16, "codegen-…_M.gguf"),
        ("模型/模型模型模型.gguf", 12, "模型…l.gguf"),
        ("model.gguf", 3, "m…f"),
        ("model.gguf", 1, "m"),
        ("model.gguf", 0, ""),
    ],
)
def test_a_path_is_shortened_in_its_middle(path: str, width: int, expected: str) -> None:
    shortened = shorten_path(path, width)
    assert cell_width(shortened) <= width
    if path.isascii():
        assert shortened == expected


def test_words_are_cut_at_their_end_and_paths_in_the_middle() -> None:
    assert shorten("measuring the groups of qkv_proj", 20) == "measuring the group…"
    assert shorten("writing out/model/gguf/model.gguf", 28) == "writing out/…/model.gguf"
    assert shorten("hashing", 20) == "hashing"


def test_no_estimate_is_shown_until_it_is_worth_something() -> None:
    """A thousand units at a steady two a second, after the first took a while."""
    pace, estimates = Pace(1000, 0.0), {}
    for second in range(1, 400):
        pace.advance(2, float(second))
        estimates[second] = pace.seconds_left(float(second))
    assert all(estimates[second] is None for second in range(1, 4))
    for second in range(25, 400):  # from five percent on
        left = estimates[second]
        assert left is not None
        assert left == pytest.approx(500 - second, rel=0.1, abs=2)


def test_a_slow_beginning_is_forgotten_before_the_end() -> None:
    """Three percent in four seconds, then a fifth of the units a second."""
    pace = Pace(1000, 0.0)
    for tenth in range(1, 41):
        pace.advance(1 if tenth > 10 else 0, tenth / 10)
        pace.seconds_left(tenth / 10)
    left = None
    for tenth in range(41, 86):
        pace.advance(20, tenth / 10)
        left = pace.seconds_left(tenth / 10)
    assert left is not None
    assert left < 2


def test_what_an_interrupted_run_had_done_says_nothing_about_the_pace() -> None:
    pace = Pace(1000, 0.0)
    pace.advance(900, 0.1)
    for tick in range(1, 100):
        pace.advance(1, 0.1 + tick)
    left = pace.seconds_left(99.1)
    assert left == pytest.approx(1.0, abs=1)
    assert pace.rate(99.1) == pytest.approx(1.0, rel=0.05)


def test_the_time_left_does_not_jump_and_goes_down_between_reports() -> None:
    """Steps of ten seconds each, asked for every second."""
    pace, shown_before = Pace(30, 0.0), None
    for second in range(1, 200):
        if second % 10 == 0:
            pace.advance(1, float(second))
        left = pace.seconds_left(float(second))
        if shown_before is not None and left is not None:
            assert left <= shown_before + 0.5
        shown_before = left
    assert shown_before == pytest.approx(300 - 199, rel=0.15)


def test_a_pace_that_falls_is_noticed() -> None:
    pace = Pace(100, 0.0)
    for second in range(1, 20):
        pace.advance(1, float(second))
    before, after = pace.seconds_left(19.0), pace.seconds_left(79.0)
    assert before is not None
    assert after is not None
    assert after > 2 * before


def test_amounts_are_written_as_people_say_them() -> None:
    for rate, unit, expected in (
        (120e6, "bytes", "120 MB/s"),
        (0.02, "layers", "1.2 layers/min"),
        (1.5, "layers", "1.5 layers/s"),
        (340.4, "tokens", "340 tokens/s"),
        (0.0001, "layers", "0.36 layers/h"),
        (5, "", ""),
    ):
        assert format_rate(rate, unit) == expected
    assert [format_time_left(s) for s in (0, 7, 12, 50, 58, 119, 3600, 5401, 90000, 3e5)] == [
        "a few seconds", "a few seconds", "about 10 s", "about 50 s", "about 1 min", "about 2 min",
        "about 60 min", "about 1.5 h", "about 25.0 h", "about 3 days",
    ]  # fmt: skip
    assert [format_duration(s) for s in (0.2, 9.4, 34, 58, 100)] == [
        "1 s", "9 s", "35 s", "1 min", "2 min"
    ]  # fmt: skip
    assert [format_bytes(n) for n in (0, 999, 1000, 999_999, 1.23e9)] == [
        "0 B", "999 B", "1 kB", "1 MB", "1.23 GB"
    ]  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Screen]:
    """Make stderr a terminal of 80 columns; the screen has what was drawn, once the block ends."""
    stream, screen = Terminal(), Screen(80)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(stream):
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setattr(shown, "DRAW_SECONDS", 0.0)
        yield screen
        assert sys.stderr is stream
    screen.feed(stream.getvalue())


def test_steps_are_counted_and_each_reaches_its_end() -> None:
    with terminal() as screen:
        bar = ProgressBar("[2/5]")
        bar.expect(3)
        for label in ("reading", "writing x/y", "hashing"):
            bar.step(label, Amount(10, "bytes"))
            bar.advance(10)
        bar.finish()
        bar.finish()
    assert len(screen.text.strip().splitlines()) == 1
    for number, label in enumerate(("reading", "writing x/y", "hashing"), 1):
        start = f"[2/5] {number} of 3  {label}"
        assert any(start in frame and "100%" in frame for frame in screen.frames)
    assert "[2/5] 3 of 3  hashing" in screen.text
    assert "100%  in 1 s" in screen.text


def test_steps_that_do_not_come_are_not_counted() -> None:
    with terminal() as screen:
        bar = ProgressBar()
        for later in (5, 0):
            part = LaterSteps(bar, later)
            part.expect(5)
            part.step("one", 1)
            part.finish()
    for position in ("1 of 10", "1 of 6", "2 of 2"):
        assert any(f"{position}  one" in frame for frame in screen.frames)


def test_what_is_printed_meanwhile_stands_above_the_line() -> None:
    with terminal() as screen:
        bar = ProgressBar()
        bar.step("working", 10)
        bar.advance(3)
        print("note: something", file=sys.stderr)
        bar.advance(1)
        print("half ", end="", file=sys.stderr)
        bar.advance(1)
        print("a line", file=sys.stderr)
        bar.advance(1)
        bar.finish()
    lines = screen.text.strip().splitlines()
    assert lines[:2] == ["note: something", "half a line"]
    assert lines[2].startswith("working")
    assert len(lines) == 3


def test_a_failure_leaves_the_share_that_was_reached() -> None:
    with terminal() as screen:
        bar = ProgressBar()
        bar.step("working", 10)
        bar.advance(4)
        try:
            raise ValueError
        except ValueError:
            bar.finish()
    assert "40%" in screen.text
    assert "100%" not in screen.text


@pytest.mark.parametrize(
    ("term", "terminals"), [("dumb", True), ("xterm", False)], ids=["dumb", "log"]
)
def test_a_log_has_plain_lines(
    term: str, terminals: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line begins each step and comes after LOG_SECONDS, even while nothing is reported."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminals)
    monkeypatch.setattr(shown, "LOG_SECONDS", 0.3)
    monkeypatch.setattr(shown, "TICK_SECONDS", 0.05)
    bar = ProgressBar()
    bar.expect(2)
    bar.step("calibrating", Amount(4, "layers"))
    bar.advance(1)
    time.sleep(0.7)
    bar.step("writing out/a/b/c/model.gguf", 10)
    bar.finish()
    written = capsys.readouterr().err
    assert not {"\r", "\x1b"} & set(written)
    lines = written.splitlines()
    assert lines[0] == "1 of 2  calibrating"
    assert lines[1].startswith("1 of 2  calibrating  25%")
    assert lines[-2] == "2 of 2  writing out/a/b/c/model.gguf"
    assert lines[-1] == "2 of 2  writing out/a/b/c/model.gguf  100%  in 1 s"
    assert 4 <= len(lines) <= 6


def test_a_log_of_short_work_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that takes less has nothing to report but its result or its error."""
    bar = ProgressBar(log_delay=60)
    bar.step("one", 1)
    bar.step("two", 1)
    bar.finish()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variables", "terminals", "colored"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_variables_of_the_environment_choose_colors(
    variables: dict[str, str], terminals: bool, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert uses_color(Terminal() if terminals else io.StringIO()) is colored


def test_no_thread_lives_while_the_process_forks() -> None:
    """A fork copies locks as they are: a thread that held one would leave it locked for ever."""
    ticks: list[float] = []
    ticker = Ticker(lambda: ticks.append(time.monotonic()), 0.01)
    ticker.start()
    try:
        threads = threading.active_count()
        for _ in range(20):
            child = os.fork()
            if not child:
                os._exit(threading.active_count() != threads - 1)
            assert os.waitpid(child, 0)[1] == 0
        assert threading.active_count() == threads
        before = len(ticks)
        time.sleep(0.2)
        assert len(ticks) > before
    finally:
        ticker.stop()
    assert threading.active_count() == threads - 1


def run_cgconvert(*arguments: str, columns: int, folder: Path, **options: object) -> Session:
    return run_in_terminal([*CGCONVERT, *arguments], columns=columns, folder=folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_conversion_shows_one_line(columns: int, tmp_path: Path) -> None:
    session = run_cgconvert("to-hf", TINY, "-o", "hf", columns=columns, folder=tmp_path)
    assert session.code == 0, session.raw
    drawn = [frame for frame in session.screen.frames if "%" in frame]
    assert all(cell_width(frame) < columns for frame in drawn)
    assert any(re.search("1 of 2 +writing hf", frame) and "100%" in frame for frame in drawn)
    assert any(re.search("2 of 2 +hashing", frame) and "100%" in frame for frame in drawn)
    lines = session.screen.text.strip().splitlines()
    assert [line for line in lines if "%" in line] == lines[:1]


RESIZED = """
import time
from cgconvert.api.progress import ProgressBar
bar = ProgressBar()
bar.step("writing out/codegen-350M-mono/gguf/codegen-350M-mono-Q8_0.gguf", 20)
for _ in range(20):
    time.sleep(0.1)
    bar.advance(1)
bar.finish()
"""


def test_a_window_may_be_resized(tmp_path: Path) -> None:
    """Lines that are drawn after the window has 40 columns fit into these."""
    lengths: list[int] = []

    def narrow(written: str, terminal: int, process: object) -> None:
        if not lengths and "25%" in written:
            resize(terminal, 40)
            lengths.append(len(written))

    session = run_in_terminal([sys.executable, "-c", RESIZED], folder=tmp_path, on_output=narrow)
    assert session.code == 0, session.raw
    lines = re.split(r"[\r\n]", session.raw[lengths[0] :])[2:]
    drawn = [line.removesuffix("\x1b[K") for line in lines if "%" in line]
    assert len(drawn) > 5
    assert all(cell_width(line) < 40 for line in drawn)


def test_ctrl_c_leaves_the_terminal_tidy(tmp_path: Path) -> None:
    sent: list[bool] = []

    def interrupt(written: str, terminal: int, process: object) -> None:
        if not sent and "measuring" in written:
            os.write(terminal, b"\x03")
            sent.append(True)

    session = run_cgconvert(
        "quantize", TINY, "--bits", "4", "-o", "q.gguf",
        columns=80, folder=tmp_path, on_output=interrupt,
    )  # fmt: skip
    assert session.code == 130
    lines = session.screen.text.rstrip().splitlines()
    (drawn,) = [number for number, line in enumerate(lines) if "measuring" in line]
    assert "^C" not in session.screen.text
    assert lines[drawn + 1].startswith("cgconvert: interrupted")


@pytest.mark.parametrize("arguments", [("-q", "to-hf"), ("to-hf", "--quiet")])
def test_a_quiet_command_prints_only_its_result(arguments: tuple[str, ...], tmp_path: Path) -> None:
    session = run_cgconvert(*arguments, TINY, "-o", "hf", columns=80, folder=tmp_path)
    assert session.code == 0, session.raw
    assert session.screen.text.strip().startswith("hf  huggingface")
    assert "\x1b" not in session.raw
