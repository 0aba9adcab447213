"""Each declared option refuses what it cannot mean, with one line, in CLI, recipe and API alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cgconvert
from cgconvert.api.conversion_table import conversions
from cgconvert.api.declarations import CACHE, DRY_RUNS, GENERATE, OUTPUT, READ, VERIFY, WRITE
from cgconvert.cli import recipe
from cgconvert.cli.main import main
from cgconvert.cli.text import one_line, with_flags
from cgconvert.errors import CgconvertError, InputError, UsageError, in_words
from cgconvert.options import ByteSize, Option, accepted_values
from cgconvert.verification.thresholds import known_bounds

TINY = "codegen-tiny-mono"

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[Option, ...]]] = {
    **{
        name: ((name, TINY), (*conversion.options, OUTPUT, *WRITE, *READ))
        for name, conversion in conversions().items()
    },
    "verify": (("verify", "nowhere"), (*VERIFY, *READ)),
    "generate": (("generate", "nowhere", "x"), GENERATE),
    "inspect": (("inspect", TINY), READ),
    "run": (("run", "nowhere.yaml"), (*WRITE, *READ)),
}
"""Arguments that carry a command out, and its declared options."""

OPTIONS = list(
    {
        id(o): (name, o) for name, (_, options) in reversed(COMMANDS.items()) for o in options
    }.values()
)
"""Each declared option once, with the first command that has it."""
IDS = [f"{name} {option.name}" for name, option in OPTIONS]

HUGE = 10**5000


class Odd:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise ValueError("no")


def bad_values(option: Option) -> Iterator[Any]:
    """Python's values that an option cannot mean."""
    yield from (b"4", Odd(), {1, 2}, {"a": 1} if not option.is_mapping else 3)
    if option.type is bool:
        yield from (0, 1, "true", "", 1.0, math.nan, [True])
        return
    if option.type in (int, float):
        yield from ("", "4 ", "nan", math.nan, math.inf, -math.inf, True, False, [4], HUGE, -HUGE)
        if option.type is int:
            yield from (4.0, 1.5, -0.0, 10**30)
    if option.choices and option.type is int:
        yield from (min(option.choices) - 1, max(option.choices) + 1)
    elif option.type in (int, float):
        assert option.minimum is not None, f"{option.name} has no least number"
        assert option.maximum is not None, f"{option.name} has no largest number"
        step = 1 if option.type is int else 1e-9 * option.maximum
        yield option.minimum if option.exclusive_minimum else option.minimum - step
        yield option.maximum + step
    if option.choices and option.type is str:
        yield from ("", "nan", "\0", "a b", 4, True, math.nan, "x" * 5000, "\x1b[31m")
    if option.type is ByteSize:
        yield from ("", "nan", "inf", "-1", "1e400", "9" * 5000, math.nan, math.inf, True, -5, HUGE,
                    "9" * 18 + "TB")  # fmt: skip
    if option.type is Path:
        yield from ("", "a\0b", "\ud800", 4, 1.5, True, math.nan)
    if option.type is str and not option.choices:
        yield from ("a\0b", "\ud800", 4, 1.5, True, math.nan)
    if option.is_mapping:
        yield from ({1: "Q8_0"}, {"x": True}, {"x": [1]}, {"x": math.nan}, "x=1", [("x", "1")])


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=IDS)
def test_the_api_refuses_what_an_option_cannot_mean(command: str, option: Option) -> None:
    for value in bad_values(option):
        with pytest.raises(UsageError, match=rf"^`{option.name}[`=]") as caught:
            accepted_values([option], {option.name: value})
        line = str(caught.value)
        assert line.isprintable(), line
        assert len(line) < 600, line


CALLS: dict[str, Callable[..., object]] = {
    "load": lambda **options: cgconvert.load(TINY, **options),
    "inspect": lambda **options: cgconvert.inspect(TINY, **options),
    "verify": lambda **options: cgconvert.verify("nowhere", **options),
    "generate": lambda **options: cgconvert.generate("nowhere", "x", **options),
    "stream_generate": lambda **options: next(cgconvert.stream_generate("nowhere", "x", **options)),
    "plan": lambda **options: cgconvert.plan(TINY, "quantize", **options),
    "to_hf": lambda **options: cgconvert.to_hf(TINY, **options),
    "to_onnx": lambda **options: cgconvert.to_onnx(TINY, **options),
    "to_gguf": lambda **options: cgconvert.to_gguf(TINY, **options),
    "quantize": lambda **options: cgconvert.quantize(TINY, **options),
}
TAKEN: dict[str, tuple[Option, ...]] = {
    **dict.fromkeys(("load", "inspect"), (*READ, *CACHE)),
    **dict.fromkeys(("generate", "stream_generate"), (*GENERATE, *CACHE)),
    **{
        name.replace("-", "_"): (*conversion.options, *READ, *CACHE)
        for name, conversion in conversions().items()
    },
    "plan": (*conversions()["quantize"].options, *READ, *CACHE),
    "verify": (*VERIFY, *READ, *CACHE),
}


@pytest.mark.parametrize("function", CALLS)
def test_every_function_of_the_api_checks_its_options(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in TAKEN[function]:
        for value in bad_values(option):
            if option.name in ("text", "reference") and not isinstance(value, str):
                continue  # these take more than a path: a model, a text
            with pytest.raises(CgconvertError) as caught:
                CALLS[function](**{option.name: value})
            assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def texts_of(option: Option) -> Iterator[str]:
    """What may be typed for an option, and cannot mean anything."""
    if option.type in (int, float):
        yield from (
            "",
            "nan",
            "-inf",
            "1e400",
            "9" * 5000,
            "-" + "9" * 5000,
            "true",
            "1_0",
            "0x4",
            "٣",
            "four",
            "4,0",
            "\x1b[31m",
            "4\u2028",
            "\udcff",
            "\ud800",
        )
        if option.type is int:
            yield from ("4.0", "-0.0", "1e2", "1e-400")
        if not option.choices:
            assert option.minimum is not None
            assert option.maximum is not None
            yield str(option.minimum if option.exclusive_minimum else option.minimum - 1)
            yield str(option.maximum + 1)
    elif option.choices:
        yield from ("", "nan", "x" * 5000, "\x1b[31m", "a\u202eb", "\udcff", "a\0b")
    elif option.type is ByteSize:
        yield from ("", "nan", "inf", "-5GB", "1e400", "9" * 5000, "\x1b[31m", "a\0b", "٣GB")
    elif option.type is Path:
        yield from ("", "a\0b", "\ud800")
    elif option.is_mapping:
        yield from ("", "=", "x", "x=", "=x", "\x1b[31m", "logits.kl_mean=nan", "\udcff=\udcff")
    else:
        yield from ("a\0b", "\ud800")


def outcome(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and the one line on its stderr."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capfd.readouterr()
    line = err.removesuffix("\n")
    assert out == ""
    assert line.isprintable(), line
    assert line.startswith("cgconvert: ")
    return int(left.value.code or 0), line.removeprefix("cgconvert: ")


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=IDS)
def test_a_command_refuses_what_an_option_cannot_mean(
    command: str,
    option: Option,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, _ = COMMANDS[command]
    if option.type is bool:
        code, line = outcome([*arguments, f"{option.flag}=true"], capfd)
        assert (code, "does not take a value" in line) == (2, True)
        return
    for text in texts_of(option):
        code, line = outcome([*arguments, f"{option.flag}={text}"], capfd)
        assert code == 2, (text, line)
        if option.is_mapping and "=" in text:
            continue  # it is compared with the names of the model's matrices
        with pytest.raises(UsageError) as refused:
            option.read(text)
        message = with_flags(str(refused.value), [option])
        assert line == one_line(f"{message} (see cgconvert {command} --help)")
    assert list(tmp_path.iterdir()) == []


def yaml_of(option: Option) -> Iterator[tuple[str, Any]]:
    """What may stand in a recipe for an option, and the Python value that this is."""
    plain: dict[str, Any] = {
        "''": "", ".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf, "true": True, "[a]": None,
        "{a: 1}": None, "2024-01-01": None, "!!binary aGk=": None, "!x y": None, "null": None,
        "!!float x": None, "&a x": None, "9" * 5000: None, "1e400": None, '"\\0"': "\0",
        '"\\uD800"': None,
    }  # fmt: skip
    if option.type in (int, float) and not option.choices:
        assert option.minimum is not None
        assert option.maximum is not None
        low = option.minimum if option.exclusive_minimum else option.minimum - 1
        plain |= {str(low): low, str(option.maximum + 1): option.maximum + 1}
        plain |= {"'4'": "4"}
    if option.type is int:
        plain |= {"4.0": 4.0, "-0.0": -0.0, "1e2": "1e2"}
    for text, value in plain.items():
        is_bool = option.type is bool and text == "true"
        is_text = option.type in (str, Path, ByteSize) and not option.choices
        is_plain_text = is_text and text in ("''", "&a x", "1e400", "9" * 5000, "!!float x")
        is_list = option.repeatable and text == "[a]"
        if not (is_bool or is_plain_text or is_list):
            yield text, value


@pytest.mark.parametrize(
    ("command", "option"),
    [(c, o) for c, o in OPTIONS if c in recipe.steps() and o not in DRY_RUNS],
    ids=[i for i, (c, o) in zip(IDS, OPTIONS, strict=True) if c in recipe.steps()],
)
def test_a_recipe_refuses_what_an_option_cannot_mean(
    command: str, option: Option, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    for text, value in yaml_of(option):
        step = f"{{{option.name}: {text}}}"
        path.write_text(f"source: {TINY}\nsteps:\n  - to-hf\n  - {command}: {step}\n")
        with pytest.raises(InputError) as caught:
            recipe.load(path, known_bounds())
        line = str(caught.value)
        assert line.startswith(f"{path}:4"), (text, line)
        assert "\n" not in line
        if value is not None and not option.is_mapping and option.type in (int, float):
            with pytest.raises(UsageError) as refused:
                option.accept_item(value)
            assert line == f"{path}:4: {in_words(str(refused.value))}"


def test_numbers_that_mean_something_are_taken_in_every_spelling(tmp_path: Path) -> None:
    options = {option.name: option for option in (*conversions()["quantize"].options, *GENERATE)}
    for text in ("1e-3", "0.001", ".001", "+1E-3"):
        assert options["max_kl"].read(text) == 0.001
        path = tmp_path / "recipe.yaml"
        path.write_text(f"source: {TINY}\nsteps:\n  - quantize: {{max_kl: {text}}}\n")
        assert recipe.load(path)[0].steps[0].options == {"max_kl": 0.001}
    assert json.dumps(options["temperature"].read("-0.0")) == "0.0"
    assert options["seed"].read(str(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize(
    "value", [None, 5, b"x", [], Odd(), math.nan], ids=lambda v: type(v).__name__
)
def test_sources_and_paths_of_another_type_are_refused(value: Any) -> None:
    calls: dict[str, Callable[[], object]] = {
        "source": lambda: cgconvert.load(value),
        "source to convert": lambda: cgconvert.to_gguf(value),
        "path": lambda: cgconvert.inspect(value),
        "artefact": lambda: cgconvert.verify([value]),
        "artefact to run": lambda: cgconvert.generate(value, "x"),
        "prompt": lambda: cgconvert.generate(TINY, value),
        "path to clean": lambda: cgconvert.clean(value),
    }
    for label, call in calls.items():
        with pytest.raises(UsageError, match=f"{label.split()[0]}: .* is not a str"):
            call()
