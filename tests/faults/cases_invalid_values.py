"""Well-formed files with invalid content: tensors, numbers, configurations, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.cases_safetensors import edit_json, write_file
from tests.faults.matrix import CONVERT_COMMANDS, SOURCE_COMMANDS, Case, Damage

__all__ = ["INVALID_VALUES"]

FILE = "model.safetensors"
PLAIN = ("to-gguf", "to-hf", "to-phi", "to-onnx-fp16")
NAME = "transformer.h.0.mlp.fc_in.weight"
BIAS = "transformer.h.0.mlp.fc_in.bias"

State = dict[str, torch.Tensor]


def change_state(change: Callable[[State], object]) -> Damage:
    def damage(source: Path) -> None:
        tensors = load_file(source / FILE)
        change(tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, source / FILE)

    return damage


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return change_state(lambda tensors: tensors.update({name: change(tensors[name])}))


def with_numbers(number: float, count: int = 3, name: str = NAME) -> Damage:
    """Replace `count` numbers of a tensor, far apart, by `number`."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[:: tensor.numel() // count][:count] = number
        return tensor

    return change_tensor(name, change)


def weights_case(damage: Damage, message: str, commands: tuple[str, ...] = SOURCE_COMMANDS) -> Case:
    return Case("safetensors", damage, message, "source", commands)


def change_config(**entries: Any) -> Damage:
    return edit_json("config.json", lambda table: table.update(entries))


def config_case(message: str, **entries: Any) -> Case:
    return Case("safetensors", change_config(**entries), message, "config.json")


TENSORS: dict[str, Case] = {
    "a tensor is missing": weights_case(change_state(lambda t: t.pop(NAME)), f"{NAME} is missing"),
    "a tensor too many": weights_case(
        change_state(lambda t: t.update(adapter=t[BIAS].clone())), "adapter is not a CodeGen tensor"
    ),
    "a thousand tensors too many": weights_case(
        change_state(lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(1000)})), "995 more"
    ),
    "a tensor of another shape": weights_case(
        change_tensor(NAME, lambda t: t[:-1]), r"is \[255, 64\], the config says \[256, 64\]"
    ),
    "a matrix the other way round": weights_case(
        change_tensor(NAME, lambda t: t.T), r"is \[64, 256\]"
    ),
    "whole numbers": weights_case(
        change_tensor(NAME, lambda t: t.int()), "int32, not a floating type"
    ),
    "NaN": weights_case(
        with_numbers(float("nan")), f"{NAME}: 3 values are NaN or infinite", CONVERT_COMMANDS
    ),
    "one NaN at the end": weights_case(
        change_tensor(
            "lm_head.bias", lambda t: torch.cat([t[:-1], t.new_full((1,), float("nan"))])
        ),
        "tensor lm_head.bias: 1 values are NaN or infinite",
        CONVERT_COMMANDS,
    ),
    "infinity": weights_case(
        with_numbers(float("-inf"), 5), f"{NAME}: 5 values are NaN or inf", CONVERT_COMMANDS
    ),
    "NaN in q, k and v": weights_case(
        with_numbers(float("nan"), 7, "transformer.h.0.attn.qkv_proj.weight"),
        r"tensor transformer\.h\.0\.attn\.qkv_proj\.weight: \d+ values are NaN",
        CONVERT_COMMANDS,
    ),
    "70000 in float16": weights_case(
        with_numbers(70000.0), f"{NAME}: 3 values overflow F16", PLAIN
    ),
    "a scale beyond float16": weights_case(
        with_numbers(1e30, 2), f"{NAME}: 2 rows cannot be Q", ("quantize", "quantize-onnx")
    ),
}

CONFIGS: dict[str, Case] = {
    "n_head does not divide": config_case("64 is not a multiple of n_head 3", n_head=3),
    "n_head and mp_num": config_case("n_head 2 does not divide into 4 groups", n_head=2),
    "n_head of 2^40": config_case("n_head is 1099511627776", n_head=1 << 40),
    "n_head as text": config_case("n_head is '4'", n_head="4"),
    "n_head as a list": config_case("n_head is", n_head=[4]),
    "rotary_dim is odd": config_case("rotary_dim 15 must be even", rotary_dim=15),
    "rotary_dim beyond the head": config_case("rotary_dim 32 must be", rotary_dim=32),
    "a million layers": config_case("n_layer is 1000000", n_layer=1_000_000),
    "1000 layers": Case(
        "safetensors",
        change_config(n_layer=1000),
        "1000 layers need more than its 13 tensors",
        "source",
    ),
    "two layers": Case(
        "safetensors", change_config(n_layer=2), "h.1.ln_1.weight is missing", "source"
    ),
    "a vocabulary that the head does not have": weights_case(
        change_tensor("lm_head.weight", lambda t: t[:-96]),
        r"differ in rows: transformer.wte.weight 4096, lm_head.weight 4000, lm_head.bias 4096",
    ),
    "a vocabulary of 2^31": config_case("vocab_size is", vocab_size=(1 << 31) - 1),
    "a context of 2^30": config_case("n_positions is", n_positions=1 << 30),
    "another width": Case(
        "safetensors", change_config(n_embd=128), r"\[4096, 64\], the conf", "source"
    ),
    "an epsilon of 0": config_case("layer_norm_epsilon is 0", layer_norm_epsilon=0),
    "an epsilon of 1e999": Case(
        "safetensors",
        lambda s: write_file(
            "config.json", (s / "config.json").read_text().replace("1e-05", "1e999")
        )(s),
        "layer_norm_epsilon is inf",
        "config.json",
    ),
    "another activation": config_case("activation_function is 'gelu'", activation_function="gelu"),
    "embeddings tied by a text": config_case(
        "tie_word_embeddings is 'yes', not true or false", tie_word_embeddings="yes"
    ),
    "another model": Case(
        "safetensors", change_config(model_type="llama"), "model_type 'llama'", "source"
    ),
    "a list for the model": config_case("model_type", model_type=["codegen"]),
    "code of its own": config_case("brings its own modelling code", auto_map={"AutoModel": "x.Y"}),
    "no rotary_dim": config_case("rotary_dim is missing", rotary_dim=None),
}

TOKENIZER = "tokenizer.json"


def tokenizer_case(damage: Damage, message: str, file: str = TOKENIZER) -> Case:
    return Case("torch", damage, message, file)


def change_tokenizer_model(change: Callable[[dict[str, Any]], object]) -> Damage:
    return edit_json(TOKENIZER, lambda table: change(table["model"]) and None)


def add_500_tokens(table: dict[str, Any]) -> None:
    added = table["added_tokens"]
    first = max(token["id"] for token in added) + 1
    added += [{**added[0], "id": first + i, "content": f"<x{i}>"} for i in range(500)]


TOKENIZERS: dict[str, Case] = {
    "truncated": tokenizer_case(lambda s: (s / TOKENIZER).write_text("{"), "not valid JSON"),
    "another kind": tokenizer_case(
        change_tokenizer_model(lambda m: m.update(type="Unigram")), "model 'Unigram'"
    ),
    "a normalizer": tokenizer_case(
        edit_json(TOKENIZER, lambda t: t.update(normalizer={"type": "Lowercase"})), "a normalizer"
    ),
    "a regular expression": tokenizer_case(
        edit_json(
            TOKENIZER,
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
        ),
        "pre-tokenizer 'Split'",
    ),
    "an id twice": tokenizer_case(
        change_tokenizer_model(lambda m: m["vocab"].update({"!": 1})),
        "given twice|is missing",
        "source",
    ),
    "an id of 2^60": tokenizer_case(
        change_tokenizer_model(lambda m: m["vocab"].update({"!": 1 << 60})), "missing", "source"
    ),
    "a negative id": tokenizer_case(
        change_tokenizer_model(lambda m: m["vocab"].update({"!": -1})), "vocabulary is not"
    ),
    "a merge of nothing": tokenizer_case(
        change_tokenizer_model(lambda m: m["merges"].append("q zzz")), "needs token", "source"
    ),
    "a merge of three": tokenizer_case(
        change_tokenizer_model(lambda m: m["merges"].append(["a", "b", "c"])), "two tokens"
    ),
    "no merges": tokenizer_case(
        change_tokenizer_model(lambda m: m.pop("merges")), "merges is not a list"
    ),
    "a list for added_tokens": tokenizer_case(
        edit_json(TOKENIZER, lambda t: t.update(added_tokens=["x"])), "added_tokens is not"
    ),
    "half a character": tokenizer_case(
        edit_json(TOKENIZER, lambda t: t["added_tokens"][0].update(content="\ud800")),
        "not valid Uni",
    ),
    "an added id of 5000 digits": tokenizer_case(
        write_file(
            "tokenizer_config.json",
            json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
        ),
        "no whole number as its id",
        "tokenizer_config.json",
    ),
    "more entries than the embedding": tokenizer_case(
        edit_json(TOKENIZER, add_500_tokens), "only 4096 rows", "source"
    ),
    "300 MB": tokenizer_case(
        lambda s: (s / TOKENIZER).open("r+b").truncate(300 << 20), "too large"
    ),
}


def training_config(source: Path) -> Path:
    return next(p for p in source.rglob("*.json") if "model_layers" in p.read_text())


def change_training(**entries: Any) -> Damage:
    def damage(source: Path) -> None:
        path = training_config(source)
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return damage


TRAINING: dict[str, Case] = {
    "a TPU that does not exist": Case(
        "jaxformer", change_training(tpu_version=[4]), "tpu_version is"
    ),
    "another number of layers": Case(
        "jaxformer", change_training(model_layers=7), r"the configuration says \[7", "0.npz"
    ),
    "no configuration": Case(
        "jaxformer", lambda s: training_config(s).unlink(), "no Jaxformer training"
    ),
}

INVALID_VALUES: dict[str, Case] = {
    **{f"weights: {name}": with_numbers for name, with_numbers in TENSORS.items()},
    **{f"config says: {name}": with_numbers for name, with_numbers in CONFIGS.items()},
    **{f"tokenizer: {name}": with_numbers for name, with_numbers in TOKENIZERS.items()},
    **{f"training: {name}": with_numbers for name, with_numbers in TRAINING.items()},
}
