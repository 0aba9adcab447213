"""The options of the API's functions, which are those of the commands and of a recipe's steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cgconvert.calibrate.presets import FAST, PRESETS
from cgconvert.escaping import abridged
from cgconvert.formats.gguf.type_choices import QUANTIZED_TYPES, TYPE_ALIASES
from cgconvert.formats.onnx.format import MATRIX_BLOCKS
from cgconvert.formats.registry import formats
from cgconvert.model.device import DEVICES
from cgconvert.options import AUTO, ByteSize, Option, shown
from cgconvert.runtimes import RUNTIMES
from cgconvert.texts.text import STDLIB
from cgconvert.verification.prompts import TEXT_TOKENS
from cgconvert.verification.thresholds import known_bounds, parse_bound

__all__ = [
    "BUDGETS",
    "CACHE",
    "DRY_RUNS",
    "GENERATE",
    "NAME",
    "OUTPUT",
    "QUANTIZE",
    "READ",
    "TENSORS",
    "VERIFY",
    "WRITE",
    "declared_options",
]

MAX_GROUPS = 4096
"""The largest number of groups in qkv_proj: no model of the family has so many heads."""

MAX_STEP = 10**12
MAX_TOKENS = 10**9
MAX_SEED = 2**64 - 1
"""Far more than any run has, and few enough for each number that is computed from them."""

MAX_NATS = 100
"""The largest loss that can be asked for; a model that knows nothing loses the logarithm of its
vocabulary, 10.8 nats."""

MAX_TEMPERATURE = 100
"""The largest temperature; at 100 all tokens are nearly equally likely."""


def device_option(purpose: str) -> Option:
    """The option that says where `purpose` (the subject of a sentence) computes."""
    return Option(
        name="device",
        choices=DEVICES,
        default="auto",
        help=f"Where {purpose} computes; auto is cuda or cpu. A GPU that is not there is an error.",
    )


def _pattern_and_type(text: str) -> tuple[str, str]:
    pattern, equals, type_ = text.rpartition("=")
    if not (pattern and equals and type_):
        raise ValueError(f"{shown(text)} is not PATTERN=TYPE, as in blk.*.attn_v.weight=Q6_K")
    return pattern, _matrix_type(pattern, type_)


def _matrix_type(pattern: str, type_: object) -> str:
    if not isinstance(type_, str):
        raise ValueError(f"{abridged(pattern)}: its type is not text, as in Q6_K")
    return type_.upper()


def _check_and_bound(text: str) -> tuple[str, float | None]:
    check, equals, bound = text.partition("=")
    if not equals:
        raise ValueError(f"{shown(text)}: write CHECK=VALUE, as in logits.kl_mean=0.05")
    return check, _bound(check, bound)


def _bound(check: str, value: object) -> float | None:
    return parse_bound(check, value, sorted(set().union(*known_bounds().values())))


OUTPUT = Option(name="output", type=Path, short="-o", help="Where to write (under ./out/<name>).")

NAME = Option(
    name="name",
    help="The model's name in paths, metadata and card; the source's unless given.",
)
"""An option of every conversion."""

READ = (
    Option(
        name="tokenizer",
        type=Path,
        must_exist=True,
        help="Folder (tokenizer.json, or vocab and merges) to use instead of the source's.",
    ),
    Option(
        name="config",
        type=Path,
        must_exist=True,
        help="Configuration to use instead of the source's.",
    ),
    Option(
        name="mp_num",
        type=int,
        minimum=1,
        maximum=MAX_GROUPS,
        word=AUTO,
        metavar=f"N|{AUTO}",
        help="Groups in qkv_proj, where the configuration does not tell; auto measures it.",
    ),
    Option(
        name="step",
        type=int,
        minimum=0,
        maximum=MAX_STEP,
        help="Step of a Jaxformer run (the last).",
    ),
    Option(name="revision", help="Branch, tag or commit on the Hub."),
    Option(
        name="adapter",
        type=Path,
        must_exist=True,
        repeatable=True,
        metavar="FOLDER",
        help="Merge a LoRA adapter of peft into the weights. Repeatable, in order.",
    ),
)
"""How a source is read."""

CACHE = (
    Option(
        name="cache",
        type=bool,
        default=True,
        help="Believe nothing that is kept in the cache, and keep nothing there.",
    ),
)
"""An option of whatever reads a source: tarballs, references and hashes are kept in the cache."""

DRY_RUN = Option(
    name="dry_run",
    type=bool,
    default=False,
    help="Print the output's path, type and size and what it needs; write nothing.",
)

TENSORS = Option(
    name="tensors",
    type=bool,
    default=False,
    help="List every tensor too, before the summary.",
)

DRY_RUNS = (DRY_RUN, TENSORS)
"""Options of the commands only: the API has `plan`."""

WRITE = (
    Option(
        name="force",
        type=bool,
        default=False,
        help="Replace an earlier artefact, once the new one is complete; nothing else.",
    ),
    Option(
        name="keep",
        type=bool,
        default=True,
        help="Do not continue an interrupted run, and leave nothing for a later one.",
    ),
    Option(
        name="allow_nonfinite",
        type=bool,
        default=False,
        help="Keep NaN, infinities and what overflows to them (not in quantized types).",
    ),
)
"""How an artefact is written."""

QUANTIZE = (
    Option(
        name="bits",
        type=int,
        choices=(4, 8),
        help="Bits a weight; 4: as Q4_K_M's bytes.",
    ),
    Option(
        name="type",
        choices=QUANTIZED_TYPES,
        aliases=TYPE_ALIASES,
        help="A GGUF type, or standard mix of types.",
    ),
    Option(name="max_size", type=ByteSize, help="The largest file: 4.2GB, 500MB, or bytes."),
    Option(name="bpw", type=float, minimum=1, maximum=16, help="Bits a weight, as 4.9."),
    Option(
        name="max_kl",
        type=float,
        minimum=0,
        exclusive_minimum=True,
        maximum=MAX_NATS,
        help="The smallest file that loses no more: nats a token.",
    ),
    Option(
        name="tensor_type",
        type=Mapping[str, str],
        parse=_pattern_and_type,
        check=_matrix_type,
        metavar="PATTERN=TYPE",
        help="The type of matrices by name, as blk.*.attn_v.weight=Q6_K; repeatable.",
    ),
    Option(
        name="effort",
        choices=(FAST, *PRESETS),
        default="default",
        help="By the weights alone; fitted to a text; to more text, for longer.",
    ),
    Option(
        name="calibration",
        metavar="FILE|none",
        help="The text; the calibration part of Python's standard library unless given.",
    ),
    Option(
        name="imatrix",
        type=Path,
        metavar="FILE",
        help="llama.cpp's imatrix, in place of a text.",
    ),
    Option(
        name="save_imatrix",
        type=Path,
        metavar="FILE",
        help="Write the text's imatrix for llama.cpp.",
    ),
    device_option("the fit to a text"),
    Option(
        name="format",
        choices=("gguf", "onnx"),
        default="gguf",
        help="GGUF for llama.cpp, or ONNX MatMulNBits.",
    ),
    *MATRIX_BLOCKS,
)

RUNTIME = Option(
    name="runtime",
    choices=tuple(name for table in RUNTIMES.values() for name in table),
    help="Instead of the format's own.",
)

VERIFY = (
    Option(
        name="quick",
        type=bool,
        default=False,
        help="Compare the files and one prompt only, and say what was left out.",
    ),
    Option(
        name="strict",
        type=bool,
        default=False,
        help="A file in the folder that belongs to no format is a failure, not a warning.",
    ),
    Option(
        name="reference",
        help="The source to compare with; without it the one its manifest names.",
    ),
    Option(
        name="text",
        repeatable=True,
        metavar="FILE",
        help=f"Compare logits on this text too; {STDLIB} for files of Python's own. Repeatable.",
    ),
    Option(
        name="text_tokens",
        type=int,
        minimum=2,
        maximum=MAX_TOKENS,
        default=TEXT_TOKENS,
        metavar="N",
        help="Use the first N tokens of each text.",
    ),
    Option(
        name="threshold",
        type=Mapping[str, float | None],
        parse=_check_and_bound,
        check=_bound,
        metavar="CHECK=VALUE",
        help="Another bound, as in logits.kl_mean=0.05; none to only report. Repeatable.",
    ),
    Option(
        name="report",
        type=Path,
        repeatable=True,
        metavar="FILE",
        help="Write the verdict to a .json, .xml (JUnit), .html, .md or .txt file too. Repeatable.",
    ),
    RUNTIME,
    device_option("the runtime"),
)

GENERATE = (
    Option(
        name="max_new_tokens", type=int, minimum=1, maximum=MAX_TOKENS, default=128, metavar="N"
    ),
    Option(
        name="temperature",
        type=float,
        minimum=0,
        maximum=MAX_TEMPERATURE,
        default=0.0,
        help="0 takes the most likely token each time.",
    ),
    Option(name="seed", type=int, minimum=0, maximum=MAX_SEED, default=0),
    RUNTIME,
    device_option("the runtime"),
)

BUDGETS = ("bits", "type", "max_size", "bpw", "max_kl")
"""Options of `quantize` that say how small the artefact is to be; exactly one is given."""

QUANTIZE_HELP = """\
Write SOURCE in fewer bits. Without SOURCE: the one unquantized model under ./out.

\b
Example:
  cgconvert quantize codegen-350M-mono --bits 4
  cgconvert quantize codegen-350M-mono --max-size 200MB
  cgconvert quantize codegen-350M-mono --type Q4_K_M --effort fast
"""


def declared_options() -> list[Option]:
    """All options there are; several have the same name."""
    conversions = (option for format_ in formats() for option in format_.options)
    return [
        OUTPUT,
        NAME,
        *DRY_RUNS,
        *READ,
        *CACHE,
        *WRITE,
        *QUANTIZE,
        *VERIFY,
        *GENERATE,
        *conversions,
    ]
