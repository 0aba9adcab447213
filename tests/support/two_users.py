"""Two users on one machine: root, who runs the tests, and nobody, who means harm.

Functions and commands run as either of them, in a folder that both can write, with the sticky bit
as /tmp has it or without. Tests that use it need root; tests/conftest.py leaves them out otherwise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

__all__ = [
    "AS_NOBODY",
    "IS_POSSIBLE",
    "NOBODY",
    "REPOSITORY",
    "ROOT",
    "User",
    "background_as_nobody",
    "call_as_nobody",
    "make_shared_folder",
    "run_as",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

User = Literal["root", "nobody"]

ROOT, NOBODY = 0, 65534
"""The numbers of the two users, and of their groups."""

IS_POSSIBLE = sys.platform == "linux" and os.geteuid() == ROOT
"""Whether this process can become another user."""

SECONDS = 60
"""After this time what runs as nobody is killed."""

AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
)  # fmt: skip
"""The command that runs another as nobody, who may read every file but write no more than usual."""

REPOSITORY = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def make_shared_folder(*, sticky: bool) -> Iterator[Path]:
    """Make a folder that every user can reach and write; it is removed at the end.

    Args:
        sticky: Whether users can rename and remove only what is theirs, as in /tmp.
    """
    with tempfile.TemporaryDirectory(prefix="two-users-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "shared"
        folder.mkdir()
        folder.chmod(0o1777 if sticky else 0o777)
        yield folder


def call_as_nobody(
    function: Callable[Parameters, Result],
    /,
    *arguments: Parameters.args,
    **names: Parameters.kwargs,
) -> Result:
    """Call a function in a forked process of nobody's; return its value or raise its error.

    The function must not compute with torch, whose threads a fork does not have.
    """
    reading, writing = os.pipe()
    child = _forked_as_nobody(lambda: _answer(writing, lambda: function(*arguments, **names)))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise AssertionError("what ran as nobody died without an answer")
    is_error, value = pickle.loads(answer)
    if is_error:
        raise value
    result: Result = value
    return result


@contextlib.contextmanager
def background_as_nobody(
    function: Callable[Parameters, object],
    /,
    *arguments: Parameters.args,
    **names: Parameters.kwargs,
) -> Iterator[int]:
    """Call a function in a process of nobody's that goes on until the block ends.

    Yields the number of the process. Wait for what it makes, for it may start late.
    """
    child = _forked_as_nobody(lambda: function(*arguments, **names))
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def run_as(
    user: User, *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of cgconvert in the folder `cwd`, with a home and a cache of the user's own.

    Nobody may read every file then, since Python or this repository may lie where only root reads,
    but may write no more than usual.
    """
    number, prefix = (ROOT, ()) if user == "root" else (NOBODY, AS_NOBODY)
    with tempfile.TemporaryDirectory(prefix=f"home-of-{user}-") as home:
        os.chown(home, number, number)
        return subprocess.run(
            [*prefix, sys.executable, "-m", "cgconvert", *arguments],
            cwd=cwd, text=True, capture_output=True, check=False, timeout=SECONDS,
            env=os.environ | {
                "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": home,
                "CGCONVERT_CACHE": f"{home}/cache", "PYTHONDONTWRITEBYTECODE": "1", **environment,
            },
        )  # fmt: skip


def _forked_as_nobody(function: Callable[[], object]) -> int:
    """Fork, become nobody in the child, and end it when the function ends; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(SECONDS)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        function()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _answer(writing: int, call: Callable[[], object]) -> None:
    """Write the value of a call, or its error, into a pipe."""
    try:
        answer = pickle.dumps((False, call()))
    except Exception as error:
        answer = pickle.dumps((True, error))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer)
