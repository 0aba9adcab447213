"""Random recipes: mostly right by the schema of `cgconvert run`, with hostile values in them.

The text is YAML in its flow form, `{source: checkpoint, steps: [{to-gguf: {type: F16}}]}`.
"""

from __future__ import annotations

from cgconvert.cli.recipe import MATRIX, TOP, steps
from cgconvert.options import ByteSize, Option
from tests.faults.mutated_bytes import Choose, mutated_bytes, pick

__all__ = ["random_recipe"]

SCALARS = (
    "~", "null", "''", "true", "no", "0", "-1", "1", "8", "4.5", "1e-3", "1e400", ".inf", "-.inf",
    ".nan", "-0.0", "0x1F", "0o17", "0b11", "017", "1_000", "190:20:30", "12e03", "+1",
    "9" * 5000, "0." + "0" * 5000 + "1", "1e99999999", "2001-01-01", "2001-99-99", "2001-12-14t21"
    ":59:43.10-05:00", "=", "<<", "'${{ matrix.type }}'", "'${{ matrix.x }}'", "'${{ }}'",
    "'${{ matrix }}'", "'${{ matrix.type }}${{ matrix.type }}'", "'${{ a.b.c }}'", "'${{'",
    '"\\0"', '"\\e[31m"', '"a\\nb"', '"\\ud800"', '"\\U0001F600"', '"\\x85"', '"\\u2028"',
    '"\\uFEFF"', "'é'", "'\u202e'", "x" * 300, "x" * 20_000, "'../x'", "'.'", "'/'", "'~'",
    "/dev/zero", "/proc/self/mem", "fifo", "'nul\\0'", "text.txt", "none", "stdlib",
    "!!python/object/apply:os.system [touch ran]", "!!python/name:os.system ''",
    "!!binary aGVsbG8=",
    "!!binary '='", "!!int x", "!!int ''", "!!float x", "!!float ''", "!!bool 7", "!!null 7",
    "!!timestamp x", "!!set {a}", "!!omap [a: 1]", "!!str 4", "!!str {a: 1}", "!local x", "!",
    "! 4",
    "!!merge x", "!<tag:yaml.org,2002:int> 8", "&a 8", "*a", "*missing", "&a [*a]", "&a {x: *a}",
    "{<<: {a: 1}}", "{<<: *a}", "[]", "{}", "[1, [2]]", "[{}]", "{? [a] : b}", "{? {a: b} : c}",
    "{a: 1, a: 2}", "[" * 90 + "]" * 90, "{a: " * 900 + "}" * 900, "[" * 900, "'", '"', "@", "`",
    "%", "\t", "#", "|", ">", "- x", "---", "...", ",", ": :", "\0", "\x1b[2J", "\x7f", "\ufffe",
)  # fmt: skip
"""Values as YAML has them: every type and tag, numbers of all kinds, aliases, what is no YAML."""

PATHS = ("out/a.gguf", "out/b", "out/c", "out-d.gguf", "out.json", "out.html", "out.txt", "out.xml")

GOOD: dict[str, tuple[str, ...]] = {
    "source": ("checkpoint", "hf/source", "gguf/source.gguf", "codegen-tiny-mono"),
    "reference": ("checkpoint", "hf/source"),
    "output": PATHS[:4],
    "report": PATHS[4:],
    "save_imatrix": ("out-imatrix.gguf",),
    "imatrix": ("imatrix.gguf", "imatrix.dat", "out-imatrix.gguf"),
    "calibration": ("text.txt", "none"),
    "text": ("text.txt", "[text.txt, stdlib]"),
    "tokenizer": ("tokenizer", "checkpoint"),
    "config": ("checkpoint/config.json",),
    "adapter": ("adapter/source", "[adapter/source]"),
    "tensor_type": ("{'*': Q8_0}", "{'blk.*.attn_v.weight': Q6_K, '*': q4_0}"),
    "threshold": ("{logits.kl_mean: 0.05}", "{logits.kl_mean: none}", "{logits.kl_mean: ~}"),
    "thresholds": ("{gguf Q8_0: {logits.kl_mean: 0.05}}", "{gguf F16: {logits.kl_mean: none}}"),
    "description": ("text", "'a: b'"),
    "effort": ("fast",),
}
"""Valid values of options that are no plain choice or number."""

NUMBERS = {int: ("1", "2", "8", "64"), float: ("0.5", "4.5", "8"), bool: ("true", "false")}

HEADS = ("", "", "", "", "\ufeff", "%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! tag:x:\n---\n",
         "---\n", "--- &a\n", "!!map ", "!x ", "# \x1b[31m\n", "a: 1\n---\n")  # fmt: skip
TAILS = ("", "", "", "", "\n...\n", "\n---\nsource: x\n", "}", "]", "\n# é", "\0")


def random_recipe(choose: Choose) -> bytes:
    """Return the text of a recipe."""
    entries = {"source": _value(Option(name="source"), choose), "steps": _steps(choose)}
    while choose(0, 2) == 0:
        name = pick(choose, tuple(TOP))
        option = TOP[name]
        if name == MATRIX:
            entries[name] = _matrix(("source", "type", "name", "x"), choose)
        elif name != "steps":
            entries[name] = _value(option or Option(name=name), choose)
    text = _mapping(entries, choose)
    raw = f"{pick(choose, HEADS)}{text}{pick(choose, TAILS)}".encode(errors="surrogatepass")
    return raw if choose(0, 5) else mutated_bytes(raw, choose)


def _steps(choose: Choose) -> str:
    if choose(0, 30) == 0:
        return pick(choose, SCALARS)
    return "[" + ", ".join(_step(choose) for _ in range(choose(1, 3))) + "]"


def _step(choose: Choose) -> str:
    commands = steps()
    command = pick(choose, tuple(commands))
    options = commands[command]
    if choose(0, 15) == 0:
        return pick(choose, (command, pick(choose, SCALARS), f"{command}: {{}}"))
    entries = {}
    if command == "quantize":
        entries = {"type": pick(choose, ("Q8_0", "Q4_0", "q4_k_m", "'${{ matrix.type }}'")),
                   "effort": "fast"}  # fmt: skip
    for _ in range(choose(0, 3)):
        name = pick(choose, tuple(options))
        spelling = name.replace("_", "-") if choose(0, 3) == 0 else name
        entries[spelling] = _value(options[name], choose)
    if choose(0, 5) == 0:
        entries[MATRIX] = _matrix(tuple(options), choose)
    return f"{{{command}: {_mapping(entries, choose)}}}"


def _matrix(names: tuple[str, ...], choose: Choose) -> str:
    values = {}
    for _ in range(choose(1, 3)):
        axis = [pick(choose, (*PATHS, "Q8_0", "F16", "checkpoint", pick(choose, SCALARS)))
                for _ in range(choose(0, 3))]  # fmt: skip
        values[pick(choose, names)] = f"[{', '.join(axis)}]"
    return _mapping(values, choose)


def _mapping(entries: dict[str, str], choose: Choose) -> str:
    """A mapping in flow form; now and then one of its names is hostile or stands twice."""
    parts = [f"{name}: {value}" for name, value in entries.items()]
    if parts and choose(0, 25) == 0:
        parts.append(pick(choose, (parts[0], f"{pick(choose, SCALARS)}: 1", pick(choose, SCALARS))))
    return "{" + ", ".join(parts) + "}"


def _value(option: Option, choose: Choose) -> str:
    """A value of an option: twice of three times a right one."""
    if choose(0, 2) == 0:
        return pick(choose, SCALARS)
    if option.name in GOOD:
        return pick(choose, GOOD[option.name])
    if option.choices:
        return str(pick(choose, (*option.choices, *option.aliases)))
    if option.type is ByteSize:
        return pick(choose, ("5GB", "1.5MiB", "400kB", "2000000"))
    return pick(choose, NUMBERS.get(option.type, ("name", "'a name'", "main")))
