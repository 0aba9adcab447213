"""Random command lines: every command with every declared option, with right and hostile values.

The options are read from the commands themselves, so that a new option is tried without a word
here. The names of files are those of `command_folder.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from cgconvert.api.declarations import declared_options
from cgconvert.cli.commands import command, command_names
from cgconvert.options import ByteSize, Option
from tests.faults.mutated_bytes import Choose, pick

__all__ = ["OUTPUT_OPTIONS", "CommandLine", "random_command_line"]

OUTPUT_OPTIONS = ("output", "report", "save_imatrix")
"""The options that name what a command writes."""


@dataclass(frozen=True)
class CommandLine:
    """A command line, what it may write, and the environment.

    `outputs` are the values of OUTPUT_OPTIONS as they are given. A value of `environment` that is
    None stands for a variable that is not set.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    environment: Mapping[str, str | None]


SOURCES = ("checkpoint", "torch/source", "jaxformer/source", "tarball/source.tar.gz", "hf/source",
           "phi/source", "gguf/source.gguf", "onnx/source", "onnx-int4/source", "adapter/source",
           "codegen-tiny-mono")  # fmt: skip
TEXT_FILES = ("text.txt", "stdlib", "none")
READ_FILES = ("imatrix.gguf", "imatrix.dat", "recipe.yaml", "checkpoint/config.json",
              "checkpoint/tokenizer.json", "tokenizer")  # fmt: skip
STRANGE_FILES = (
    "fifo", "socket", "null", "zero", "empty", "empty-folder", "foreign", "latin1.txt", "nul.txt",
    "sparse", "sparse.gguf", "sparse.tar.gz", "link-to-file", "link-to-itself", "link-to-nothing",
    "link-to-checkpoint", "link-to-zero", os.fsdecode(b"not\xffutf8"), "red\x1b[31m\nname", "-dash",
    "list.json", "list.yaml", "unreadable", "earlier", "earlier.gguf",
)  # fmt: skip
"""Files that are there, and are not what any option takes."""

SYSTEM_FILES = ("/", "/dev/zero", "/dev/tty", "/dev/random", "/dev/fd/0", "/dev/stdin", "/dev/full",
                "/proc/self/mem", "/proc/self/environ", "/proc/self/cmdline",
                "/proc/self/fd", "/proc", "/sys/kernel/mm", "/proc/sys/vm/drop_caches",
                "/sys/power/state", "/proc/self/root/etc", "/etc/shadow")  # fmt: skip
"""Files of the system. They are only ever named where something is read."""

TEXTS = (
    "", " ", "-", "--", ".", "..", "./", "~", "$HOME", "*", "a b", "a\nb", "\r", "\t",
    "\x1b[31mred", "\x9b31m", "\u202e", "\u2028", "é", "😀", os.fsdecode(b"\xff"),
    os.fsdecode(b"\xed\xa0\x80"),
    "x" * 300, "y" * 5000, "z" * 120_000, "missing", "missing/deep/file", "a/../missing", "%s%n",
    "{}", "{0.__class__}", "`mp_num`", "`mp_num=4`", "[bold]x[/bold]", "org/name", "org/name/x",
    "org/" + "n" * 200, "../../x", "http://127.0.0.1:9/x", "file:///etc/passwd", "hf://org/name",
    "codegen-350M-mono", "Salesforce/codegen-350M-mono", "codegen-tiny", "@main", "a@b", "a=b",
    "=", "x=", "=x", "*=Q8_0", "[=Q8_0", "**=q4_k_m", "blk.*=F99", "*" * 200 + "x=Q8_0",
    "logits.kl_mean=0.05", "logits.kl_mean=nan", "logits.kl_mean=inf", "logits.kl_mean=-1",
    "logits.kl_mean=none", "x.y=1", "logits.kl_mean=" + "9" * 5000,
)  # fmt: skip

NUMBERS = (
    "0", "-0", "1", "-1", "2", "4", "8", "16", "17", "32", "64", "4.5", "1e-3", "0.1", "-5", "1e3",
    "1e400", "-1e400", "1e-400", "nan", "NaN", "inf", "-inf", "infinity", "9" * 30, "9" * 5000,
    "-" + "9" * 5000, "0." + "0" * 5000 + "1", "0x10", "010", "1_0", " 1", "1 ", "+1", "٣", "１",
    "1,5", "1/2", "2147483648", "9223372036854775807", "18446744073709551616", "true", "auto",
    "None", "5GB", "1.5MiB", "400kB", "0B", "5 GB", "5PB", "1e3GB", "٣GB", "infGB", "nanB",
    "99999999999999999999TB", "0.0000001B", "100", "100000",
)  # fmt: skip

OUTPUTS = (
    "new", "new.gguf", "new.json", "new.html", "new.txt", "new.xml", "new.md", "out/x",
    "out/x.gguf", "deep/er/x", "new/", "./new.gguf", "a/../new.gguf", "earlier", "earlier.gguf",
    "checkpoint", "hf/source", "gguf/source.gguf", "foreign", "text.txt", "empty", "empty-folder",
    "fifo", "null",
    "zero", "socket", "link-to-file", "link-to-nothing", "link-to-itself", "home",
    "link-to-checkpoint", os.fsdecode(b"new\xff"), "new\x1b[31m\n", "new\u202e", "n" * 300,
    "n" * 250, "n" * 240 + ".gguf", "", " ", ".", "..", "-", "text.txt/x", "null/x", "-x.gguf",
    ".hidden.gguf", "new.cgconvert.json", ".new.cgconvert-tmp", "checkpoint/new", "earlier/new",
    "earlier.gguf.cgconvert.json", "CON", "new:stream",
)  # fmt: skip
"""Names to write to; all in the working folder."""

ENVIRONMENTS: Sequence[Mapping[str, str | None]] = (
    *({},) * 12, {"HOME": None}, {"HOME": ""}, {"HOME": "/proc/nonexistent"}, {"HOME": "text.txt"},
    {"CGCONVERT_CACHE": ""}, {"CGCONVERT_CACHE": "text.txt"}, {"CGCONVERT_CACHE": "/dev/null"},
    {"CGCONVERT_CACHE": "foreign"}, {"CGCONVERT_CACHE": "."},
    {"CGCONVERT_CACHE": "earlier"}, {"CGCONVERT_CACHE": "fifo"},
    {"CGCONVERT_CACHE": "cache/x\x1b[31m"},
    {"CGCONVERT_CACHE": os.fsdecode(b"cache/\xff")}, {"CGCONVERT_CACHE": "/proc/x"},
    {"CGCONVERT_CACHE": "link-to-itself"}, {"CGCONVERT_CACHE": "link-to-nothing"},
    {"XDG_CACHE_HOME": "/proc/nonexistent", "CGCONVERT_CACHE": None},
    {"TMPDIR": "/proc/nonexistent"},
    {"TMPDIR": "fifo"}, {"COLUMNS": "0"}, {"COLUMNS": "-5"}, {"COLUMNS": "x"},
    {"COLUMNS": "9" * 30}, {"COLUMNS": "9" * 5000}, {"COLUMNS": "٣"}, {"COLUMNS": "1"},
    {"FORCE_COLOR": "1"},
    {"FORCE_COLOR": "x"}, {"TERM": "\x1b"}, {"TERM": None}, {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "xx_XX"}, {"OMP_NUM_THREADS": "x"}, {"OMP_NUM_THREADS": "-1"},
    {"OMP_NUM_THREADS": "9" * 30}, {"OMP_NUM_THREADS": "2,3"}, {"HF_HOME": "text.txt"},
    {"HF_HUB_CACHE": "fifo"}, {"HF_ENDPOINT": "x\x1b"}, {"HF_HUB_ETAG_TIMEOUT": "x"},
    {"HF_HUB_ETAG_TIMEOUT": "nan"}, {"HF_TOKEN": "\n"}, {"HF_TOKEN": "é"},
    {"SOURCE_DATE_EPOCH": "x"},
    {"CUDA_VISIBLE_DEVICES": "x"},
    {"_CGCONVERT_COMPLETE": "bash_complete", "COMP_WORDS": "x ", "COMP_CWORD": "9"},
)  # fmt: skip
"""Variables that cgconvert or its libraries read."""


def random_command_line(choose: Choose) -> CommandLine:
    """Return a command line; most of it is right, so that it gets far."""
    declared = {option.name: option for option in declared_options()}
    name = pick(choose, tuple(command_names()))
    made = command(name)
    assert made is not None
    outputs: list[str] = []
    parts = [[_argument(name, param, choose)] for param in made.params
             if isinstance(param, click.Argument) and choose(0, 15)]  # fmt: skip
    if name == "quantize" and choose(0, 9):
        parts += [["--effort", "fast"], ["--bits", pick(choose, ("8", "4"))]]
    if name == "generate":
        parts.append(["--max-new-tokens", "2"])
    if name == "verify" and choose(0, 2):
        parts += [["--quick"], ["--reference", "checkpoint"]]
    options = [param for param in made.params if isinstance(param, click.Option)]
    for _ in range(choose(0, 4)):
        param = pick(choose, options)
        words = _option(param, declared.get(str(param.name)), choose, name)
        parts.append(words)
        if param.name in OUTPUT_OPTIONS and not param.is_flag:
            outputs.append(words[-1].removeprefix(f"{param.opts[-1]}="))
    if choose(0, 19) == 0:
        parts.append([pick(choose, ("--", *TEXTS, "--unknown", "-Z", "--help", "--out", "-o",
                                    "--bits=", "-qv", "-h"))])  # fmt: skip
    if name in ("run", "quantize") and ["codegen-tiny-mono"] in parts:
        parts.append(["--dry-run"])  # minutes of work
    for _ in range(choose(0, 2)):  # options may stand anywhere
        index = choose(0, len(parts))
        parts = parts[index:] + parts[:index]
    first = pick(choose, ([name],) * 30 + (["-q", name], ["-v", name], [pick(choose, TEXTS)], []))
    if name == "clean":  # it walks through folders, and with --delete removes what it knows
        parts = [words for words in parts if not words[0].startswith(("/", "~", ".."))]
    arguments = tuple(word for words in [first, *parts] for word in words)
    return CommandLine(arguments, tuple(outputs), dict(pick(choose, ENVIRONMENTS)))


def _argument(name: str, param: click.Parameter, choose: Choose) -> str:
    if param.name == "prompt":
        return pick(choose, ("def f(x):", "def f(x):", *TEXTS))
    if param.name == "recipe_file":
        good: tuple[str, ...] = ("recipe.yaml", "codegen-tiny-mono", "-")
    else:
        good = ("earlier", "out") if name == "clean" else SOURCES
    return _path(good, choose)


def _path(good: tuple[str, ...], choose: Choose) -> str:
    """A path to read: three times of four a right one."""
    strange = (*READ_FILES, *TEXT_FILES, *SOURCES, *STRANGE_FILES, *SYSTEM_FILES, *TEXTS)
    return pick(choose, good if choose(0, 3) else strange)


def _option(param: click.Option, option: Option | None, choose: Choose, name: str) -> list[str]:
    """The words of an option: its flag and its value, in one word or in two."""
    flag = pick(choose, param.opts)
    if param.is_flag:
        return [flag]
    value = _option_value(param, option, choose)
    return [f"{flag}={value}"] if flag.startswith("--") and choose(0, 1) else [flag, value]


def _option_value(param: click.Option, option: Option | None, choose: Choose) -> str:
    if param.name in OUTPUT_OPTIONS:
        return pick(choose, OUTPUTS[: 10 if choose(0, 1) else len(OUTPUTS)])
    if option is None or (choose(0, 9) == 0 and option.type is not Path):
        return pick(choose, TEXTS)
    if option.choices:
        return str(pick(choose, (*option.choices, *option.aliases, "", "x", "GGUF")))
    if option.type in (int, float, ByteSize):
        return pick(choose, NUMBERS)
    good = {"tokenizer": ("tokenizer", "checkpoint"), "config": ("checkpoint/config.json",),
            "adapter": ("adapter/source",), "imatrix": ("imatrix.gguf", "imatrix.dat"),
            "reference": ("checkpoint",), "source": ("checkpoint",),
            "text": TEXT_FILES, "calibration": TEXT_FILES}.get(option.name)  # fmt: skip
    return _path(good, choose) if good else pick(choose, TEXTS)
