"""Flags and arguments of other tools are answered with what they are called here."""

from __future__ import annotations

import shlex

import click
import pytest

from cgconvert.cli.main import cli
from cgconvert.cli.options import click_option
from cgconvert.formats.registry import formats
from cgconvert.options import Option

ANSWERS = [
    ("to-gguf SRC --outtype q8_0", "'--outtype': say --type Q8_0"),
    ("to-gguf SRC --outtype=BF16", "'--outtype': say --type BF16"),
    ("to-gguf SRC --outtype auto", "say --type, one of F32, F16, BF16, Q8_0"),
    ("to-gguf SRC --outfile OUT.gguf", "say -o OUT.gguf"),
    ("to-gguf SRC --outfile 'my model.gguf'", "say -o 'my model.gguf'"),
    ("to-gguf SRC OUT.gguf", "say: cgconvert to-gguf SRC -o OUT.gguf"),
    ("to-gguf SRC OUT.gguf q8_0", "say: cgconvert to-gguf SRC -o OUT.gguf --type Q8_0"),
    ("to-gguf SRC --dtype half", "say --type F16"),
    ("to-gguf SRC --bits 4", "say --type Q4_K_M, or cgconvert quantize SOURCE --bits 4"),
    ("to-gguf SRC --model-name tuned", "say --name tuned"),
    ("to-gguf --model SRC", "the source is the first argument: cgconvert to-gguf SRC"),
    ("to-gguf SRC --trust_remote_code", "leave it out: code of a checkpoint is never run"),
    ("to-gguf SRC --quantize Q5_K_M", "say --type Q5_K_M"),
    ("quantize in.gguf out.gguf Q4_K_M", "cgconvert quantize in.gguf -o out.gguf --type Q4_K_M"),
    ("quantize in.gguf q4_k_m", "say: cgconvert quantize in.gguf --type Q4_K_M"),
    ("quantize SRC --quantization int8", "say --type Q8_0"),
    ("quantize SRC --load-in-4bit", "say --bits 4"),
    ("quantize SRC --calib_data text.txt", "say --calibration text.txt"),
    ("to-onnx SRC --precision int4", "say --bits 4"),
    ("to-onnx SRC --precision fp16", "say --dtype float16"),
    ("to-onnx SRC --quantize", "say --dtype, one of float32, float16, or --bits 4 or 8"),
    ("to-onnx -m SRC", "the source is the first argument: cgconvert to-onnx SRC"),
    ("to-onnx SRC --task text-generation-with-past", "leave it out: a CodeGen is exported for"),
    ("to-onnx SRC --output_dir out", "say -o out"),
    ("to-hf SRC --out out", "say -o out"),
    ("to-hf SRC --output_path", "say -o PATH"),
    ("to-hf SRC --torch_dtype bfloat16", "say --dtype bfloat16"),
    ("to-hf SRC --quantization int8", "to-hf stores floats; cgconvert quantize SOURCE --bits 4"),
    ("to-hf SRC --max_shard_size 5GB", "say --max-shard-size"),
    ("to-hf SRC --overwrite", "say --force"),
    ("to-hf SRC --dtyp float16", "did you mean --dtype?"),
    ("generate -m x.gguf", "the model is the first argument: cgconvert generate x.gguf PROMPT"),
    ("generate x.gguf --prompt hello", "second argument: cgconvert generate MODEL hello"),
    ("generate x.gguf hello -n 64", "say --max-new-tokens 64"),
    ("generate x.gguf def hello", "put the prompt in quotes"),
    ("verify x.gguf --atol 0.1", "say --threshold CHECK=VALUE"),
    ("to-gguf SRC --bigendian", "leave it out: only little-endian files are written"),
    ("to-gguf SRC --use-temp-file", "leave it out: a matrix is read when it is written"),
    ("to-gguf SRC --vocab-only", "leave it out: the whole model is written"),
    ("to-gguf SRC --threads many", "OMP_NUM_THREADS=4 says how many"),
    ("to-gguf SRC --threads 8", "OMP_NUM_THREADS=8 says how many"),
    ("to-gguf SRC --imatrix x.dat", "'--imatrix': an option of cgconvert quantize."),
    ("to-gguf SRC --remote", "is looked up on the Hub"),
    ("to-gguf SRC --resumee", "No such option '--resumee'."),
    ("to-gguf SRC --typ F16", "'--typ': did you mean --type?"),
    ("to-gguf SRC --atol 1", "cgconvert verify compares the result"),
    ("to-hf SRC --push_to_hub", "'hf upload' sends what was written"),
    ("quantize a b Q4_K_M 8", "say: cgconvert quantize a -o b --type Q4_K_M"),
    ("quantize SRC --method gptq", "say --effort fast, default or max"),
    ("to-gguff SRC", "No such command 'to-gguff': did you mean to-gguf?"),
    ("to_hf SRC", "No such command 'to_hf': did you mean to-hf?"),
    ("tohf SRC", "did you mean to-hf?"),
    ("export SRC", "say cgconvert to-onnx."),
    ("help", "say cgconvert --help."),
    ("codegen-350M-mono", "; the commands are to-gguf, to-hf"),
    ("verify --device-map auto", "No such option '--device-map'"),
    ("verify a b", "Got unexpected extra argument (b)"),
]


@pytest.mark.parametrize(("command", "answer"), ANSWERS)
def test_flags_of_other_tools_get_the_right_words(command: str, answer: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        cli.main(shlex.split(command), prog_name="cgconvert", standalone_mode=False)
    assert answer in caught.value.format_message()


SPELLINGS = {
    "float16": ("fp16", "f16", "half", "Float16", "FP16", "HALF"),
    "bfloat16": ("bf16", "BF16", "BFloat16"),
    "float32": ("fp32", "f32", "float", "F32"),
    "F16": ("fp16", "f16", "half", "float16"),
    "BF16": ("bf16", "bfloat16"),
    "F32": ("f32", "fp32", "float32"),
    "Q8_0": ("q8_0", "Q8_0"),
    "Q4_K_M": ("q4_k_m", "Q4_k_M"),
}


def type_options() -> list[Option]:
    return [o for format_ in formats() for o in format_.options if o.name in ("dtype", "type")]


def test_types_have_the_same_spellings_on_the_command_line_and_in_the_api() -> None:
    assert len(type_options()) == 3
    for option in type_options():
        flag = click_option(option)
        shown = str(flag.make_metavar(click.Context(click.Command("x"))))
        for choice, spellings in SPELLINGS.items():
            if choice not in option.choices:
                continue
            assert choice in shown
            for spelling in spellings:
                assert option.accept(spelling) == choice
                assert flag.type.convert(spelling, flag, None) == choice
                assert spelling == choice or f"{spelling}|" not in shown
