"""Answers to flags and arguments of other tools, with what they are called here.

The tools are llama.cpp's convert_hf_to_gguf.py, llama-quantize and llama-cli, optimum-cli, the
builder of onnxruntime-genai, ct2-transformers-converter, mlx_lm and transformers' scripts.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

__all__ = ["AnsweringCommand", "explain_no_command"]

CONVERSIONS = ("to-gguf", "to-hf", "to-onnx", "quantize")
SOURCE_FIRST = "the source is the first argument: cgconvert {command} {value}"
BITS = re.compile(r"(?:u?int|q|w)?(4|8)(?:_?bits?)?")

_FLAGS_OF: Mapping[str, str] = {
    "type": "--outtype --out-type --precision -p --quantization --quant --quantize -q --ftype "
    "--torch-dtype --weight-format --fp16 --half --bf16 --qtype --wbits --q-bits --load-in-4bit "
    "--load-in-8bit --dtype --type --bits",
    "output": "--outfile --out-file --output-dir --output-path --out --outdir --out-dir --dst "
    "--mlx-path --save-dir --dest --output-folder --target-dir --output-model",
    "source": "--model -m --model-id --model-path --model-dir --model-name-or-path --input -i "
    "--hf-path --src --source --checkpoint --input-path --artefact --artifact",
    "name": "--model-name",
    "task": "--task --framework --opset --library --library-name --arch --architecture --monolith "
    "--no-post-process --batch-size --sequence-length --vocab-type",
    "endian": "--bigendian --big-endian",
    "memory": "--no-lazy --lazy --use-temp-file --low-cpu-mem-usage --max-memory",
    "part": "--vocab-only --mmproj --no-mtp --mistral-format",
    "split": "--keep-split --split --no-split --split-max-tensors --no-tensor-first-split",
    "remote": "--remote",
    "upload": "--push-to-hub --upload-repo --repo-id",
    "safetensors": "--safe-serialization --to-safetensors",
    "files": "--copy-files",
    "metadata": "--metadata",
    "optimize": "--optimize -O --optimization-level",
    "method": "--method --quant-method --algorithm --algo",
    "requantize": "--allow-requantize",
    "code": "--trust-remote-code",
    "force": "--overwrite -f -y --yes --clobber --force",
    "dry run": "--dry-run -n",
    "shards": "--split-max-size --shard-size",
    "block": "--group-size --q-group-size -g",
    "provider": "--execution-provider -e --provider",
    "text": "--dataset --calib-data --calibration-data --calib --calibration-dataset --train-file",
    "matrix types": "--output-tensor-type --token-embedding-type --pure --leave-output-tensor",
    "length": "-n --n-predict --predict --max-tokens --max-length -c --ctx-size --num-tokens",
    "prompt": "--prompt -p",
    "temperature": "--temp -t",
    "gpu": "--cuda --gpu --n-gpu-layers -ngl --gpu-layers",
    "cpu": "--cpu --no-cuda",
    "threads": "--threads -t -j --jobs --n-threads --nthreads",
    "offline": "--local-files-only --offline",
    "cache": "--cache-dir --hf-cache",
    "token": "--token --hf-token --use-auth-token --auth-token",
    "lora": "--lora --lora-path --peft --adapter-path --lora-base",
    "tokenizer": "--tokenizer-name --tokenizer-path --tokenizer-dir --pad-vocab",
    "tolerance": "--atol --rtol --tolerance --validate --check",
}
"""Flags of other tools, with hyphens, by what they mean. If a flag has several meanings, the
command answers the one that it has an answer for."""

_EVERYWHERE = {
    "code": "leave it out: code of a checkpoint is never run",
    "threads": "the environment variable OMP_NUM_THREADS={value} says how many threads",
    "offline": "the environment variable HF_HUB_OFFLINE=1 forbids downloads",
    "cache": "the environment variable HF_HUB_CACHE={value} names the Hub's cache",
    "remote": "leave it out: an id such as Salesforce/codegen-350M-mono is looked up on the Hub",
    "upload": "leave it out; 'hf upload' sends what was written",
    "memory": "leave it out: a matrix is read when it is written; --dry-run says the memory",
    "token": "run 'hf auth login', or set the environment variable HF_TOKEN",
}
_CONVERSION = {
    "output": "say -o {value}",
    "source": SOURCE_FIRST,
    "task": "leave it out: a CodeGen is exported for text generation with a cache",
    "force": "say --force",
    "name": "say --name {value}",
    "lora": "say --adapter {value}",
    "tokenizer": "say --tokenizer {value}",
    "endian": "leave it out: only little-endian files are written",
    "part": "leave it out: the whole model is written",
    "split": "leave it out: one file is written",
    "files": "leave it out: the tokenizer comes along",
    "metadata": "say --name NAME; other metadata come from the checkpoint",
    "tolerance": "cgconvert verify compares the result, with --threshold CHECK=VALUE",
    "requantize": "leave it out: the source is the checkpoint, not a quantized file of it",
}
ANSWERS: Mapping[str, Mapping[str, str]] = {
    "to-gguf": {
        **_CONVERSION,
        "text": "cgconvert quantize SOURCE --calibration {value} fits the types to a text",
        "matrix types": "cgconvert quantize has --tensor-type PATTERN=TYPE",
        "shards": "leave it out: one file is written",
    },
    "to-hf": {
        **_CONVERSION,
        "shards": "say --max-shard-size {value}",
        "split": "say --max-shard-size {value}",
        "safetensors": "leave it out: safetensors are what is written",
    },
    "to-onnx": {
        **_CONVERSION,
        "block": "say --block-size {value}",
        "provider": "say --target cpu or --target cuda",
        "gpu": "say --target cuda --dtype float16",
        "cpu": "leave it out: --target cpu is the default",
        "optimize": "leave it out: onnxruntime optimizes the graph when it is loaded",
        "text": "cgconvert quantize SOURCE --format onnx --bits 4 --calibration {value}",
    },
    "quantize": {
        **_CONVERSION,
        "block": "say --block-size {value}, with --format onnx",
        "text": "say --calibration {value}",
        "method": "say --effort fast, default or max",
        "matrix types": "say --tensor-type output.weight={value}",
        "gpu": "say --device cuda",
        "cpu": "say --device cpu",
    },
    "generate": {
        "length": "say --max-new-tokens {value}",
        "prompt": "the prompt is the second argument: cgconvert generate MODEL {value}",
        "source": "the model is the first argument: cgconvert generate {value} PROMPT",
        "temperature": "say --temperature {value}",
        "gpu": "say --device cuda",
        "cpu": "say --device cpu",
    },
    "verify": {
        "source": "the artefact is the first argument: cgconvert verify {value}",
        "output": "say --report {value}",
        "tolerance": "say --threshold CHECK=VALUE, as in logits.kl_mean=0.05",
        "gpu": "say --device cuda",
        "cpu": "say --device cpu",
    },
    "inspect": {"source": SOURCE_FIRST},
    "clean": {
        "force": "say --delete",
        "dry run": "leave it out: without --delete nothing is removed",
    },
}
"""What a command answers, by what the flag means."""


_COMMAND_OF: Mapping[str, str] = {
    "to-gguf": "gguf convert-hf-to-gguf convert-hf-to-gguf.py",
    "to-hf": "hf safetensors transformers to-safetensors to-transformers",
    "to-onnx": "onnx export",
    "quantize": "quant llama-quantize",
    "verify": "check test validate compare",
    "inspect": "info show describe dump",
    "generate": "chat complete prompt llama-cli",
    "run --list": "list ls recipes",
    "--help": "help",
    "--version": "version",
}
"""Commands of other tools, by what the same is called here."""


def explain_no_command(word: str, names: Sequence[str]) -> str:
    """Say in place of a command that there is not what may be meant, or which commands there are.

    Args:
        word: What was written as the command.
        names: The names of all commands.
    """
    plain = word.replace("_", "-").lower()
    text = f"No such command '{word}'"
    for own, others in _COMMAND_OF.items():
        if plain in others.split():
            return f"{text}: say cgconvert {own}."
    squeezed = {name.replace("-", ""): name for name in names}
    if plain.replace("-", "") in squeezed:
        return f"{text}: did you mean {squeezed[plain.replace('-', '')]}?"
    asked = _did_you_mean(plain, names)
    return f"{text}: {asked}" if asked else f"{text}; the commands are {', '.join(names)}."


class AnsweringCommand(click.Command):
    """A command that answers flags and arguments of other tools with the right words."""

    allow_extra_args = True  # they are refused below, with an answer

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raise UsageError with an answer for what is not known."""
        arguments = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name
            answer = (
                self._answer(flag, arguments)
                or _did_you_mean(flag, self._own_flags())
                or self._say_where(flag, ctx)
            )
            text = f"No such option '{flag}'"
            text += f": {answer}" if answer else ""
            raise click.UsageError(text if text.endswith("?") else f"{text}.", ctx) from None
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # the parser of options does not know its command
            raise
        if ctx.args and not ctx.resilient_parsing:
            raise click.UsageError(self._answer_extra(ctx.args, arguments), ctx)
        return rest

    def _answer(self, flag: str, arguments: Sequence[str]) -> str:
        """What to say in place of a flag, "" if it is not known."""
        plain, name = flag.replace("_", "-"), str(self.name)
        if plain in self._own_flags():
            return f"say {plain}"
        value = _value_of(flag, arguments)
        for meaning, flags in _FLAGS_OF.items():
            if plain not in flags.split():
                continue
            if meaning == "type" and name in CONVERSIONS:
                return self._say_type(plain, value)
            answer = ANSWERS.get(name, {}).get(meaning) or _EVERYWHERE.get(meaning)
            if answer:
                if meaning == "threads" and not value.strip("0").isdigit():
                    value = ""
                shown = shlex.quote(value) if value else _PLACEHOLDERS.get(meaning, "VALUE")
                return answer.format(command=name, value=shown)
        return ""

    def _own_flags(self) -> list[str]:
        """The long flags of this command that its help shows."""
        shown = [p for p in self.params if isinstance(p, click.Option) and not p.hidden]
        return [flag for param in shown for flag in param.opts if flag.startswith("--")]

    def _say_where(self, flag: str, ctx: click.Context) -> str:
        """Name the commands that have a flag which this one has not; "" if none has."""
        root = ctx.find_root()
        if not isinstance(root.command, click.Group):
            return ""
        commands = [root.command.get_command(root, n) for n in root.command.list_commands(root)]
        plain = flag.replace("_", "-")
        having = [
            f"cgconvert {c.name}"
            for c in commands
            if isinstance(c, AnsweringCommand) and plain in c._own_flags()
        ]
        return f"an option of {' and of '.join(having[:2])}" if having else ""

    def _say_type(self, flag: str, value: str) -> str:
        """What to say for a type of numbers, which each command takes in its own way."""
        value = value or _TYPE_IN_FLAG.get(flag, "")
        bits = BITS.fullmatch(value.lower())
        if self.name == "quantize" and bits and not self._choice("type", value):
            return f"say --bits {bits[1]}"
        if self.name == "to-gguf" and bits and bits[1] == "4":
            return "say --type Q4_K_M, or cgconvert quantize SOURCE --bits 4"
        for option in ("type", "dtype"):
            if choice := self._choice(option, value):
                return f"say --{option} {choice}"
        if self.name == "to-onnx" and bits:
            return f"say --bits {bits[1]}"
        if self.name == "to-hf" and (bits or value.upper().startswith(("Q", "IQ", "INT"))):
            return "to-hf stores floats; cgconvert quantize SOURCE --bits 4 writes fewer bits"
        param = next(p for p in self.params if p.name in ("type", "dtype"))
        choices = ", ".join(map(str, getattr(param.type, "choices", ())))
        fewer = ", or --bits 4 or 8" if self.name in ("to-onnx", "quantize") else ""
        return f"say --{param.name}, one of {choices}{fewer}"

    def _choice(self, name: str, value: str) -> str:
        """The choice of an option that a text stands for, "" if there is none."""
        param = next((p for p in self.params if p.name == name), None)
        canonical: Callable[[str], Any] | None = getattr(
            getattr(param and param.type, "option", None), "canonical", None
        )
        choice = canonical(value) if canonical and value else None
        return str(choice) if choice in getattr(param and param.type, "choices", ()) else ""

    def _answer_extra(self, extra: Sequence[str], arguments: Sequence[str]) -> str:
        """Say how arguments that are too many are given."""
        listed = " ".join(map(shlex.quote, extra))
        text = f"Got unexpected extra argument{'s' * (len(extra) > 1)} ({listed})"
        if self.name == "generate":
            return f"{text}: put the prompt in quotes."
        types = [choice for word in extra if (choice := self._choice("type", word))]
        paths = [word for word in extra if not self._choice("type", word)]
        if types and paths and paths[-1].isdigit():  # llama-quantize's number of threads
            paths.pop()
        if self.name not in CONVERSIONS or len(types) > 1 or len(paths) > 1:
            return f"{text}."
        kept = [word for word in arguments if word not in extra]
        added = [*(["-o", *paths] if paths else []), *(["--type", *types] if types else [])]
        corrected = " ".join(map(shlex.quote, ("cgconvert", str(self.name), *kept, *added)))
        return f"{text}; say: {corrected}"


def _did_you_mean(word: str, names: Sequence[str]) -> str:
    """Ask for the name that a mistyped word is nearest to, "" if none is near."""
    near = difflib.get_close_matches(word.replace("_", "-").lower(), names, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else ""


_PLACEHOLDERS = {
    "output": "PATH", "source": "SOURCE", "name": "NAME", "text": "FILE", "length": "N",
    "prompt": "PROMPT", "lora": "FOLDER", "tokenizer": "FOLDER", "shards": "5GB", "threads": "4",
    "cache": "FOLDER", "block": "32", "split": "5GB", "matrix types": "Q6_K", "temperature": "0.8",
}  # fmt: skip
_TYPE_IN_FLAG = {
    "--fp16": "fp16", "--half": "fp16", "--bf16": "bf16", "--load-in-4bit": "int4",
    "--load-in-8bit": "int8",
}  # fmt: skip
"""Types that a flag without a value names."""


def _value_of(flag: str, arguments: Sequence[str]) -> str:
    """The value that was given with a flag, "" if none was."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
        if argument == flag:
            return "" if following.startswith("-") else following
    return ""
