"""Well-formed files that say something impossible: tensors, numbers, configurations, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.cases_safetensors import edited, written
from tests.faults.matrix import CONVERTING, SOURCE, Case, Damage

__all__ = ["MEANING"]

FILE = "model.safetensors"
PLAIN = ("to-gguf", "to-hf", "to-phi", "to-onnx-fp16")
NAME = "transformer.h.0.mlp.fc_in.weight"
BIAS = "transformer.h.0.mlp.fc_in.bias"

State = dict[str, torch.Tensor]


def state(change: Callable[[State], object]) -> Damage:
    def damage(source: Path) -> None:
        tensors = load_file(source / FILE)
        change(tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, source / FILE)

    return damage


def one(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return state(lambda tensors: tensors.update({name: change(tensors[name])}))


def value(number: float, count: int = 3, name: str = NAME) -> Damage:
    """Some numbers of a tensor, far apart, become this one."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[:: tensor.numel() // count][:count] = number
        return tensor

    return one(name, change)


def weights(damage: Damage, says: str, commands: tuple[str, ...] = SOURCE) -> Case:
    return Case("safetensors", damage, says, "source", commands)


def config(**entries: Any) -> Damage:
    return edited("config.json", lambda table: table.update(entries))


def says_of(says: str, **entries: Any) -> Case:
    return Case("safetensors", config(**entries), says, "config.json")


TENSORS: dict[str, Case] = {
    "a tensor is missing": weights(state(lambda t: t.pop(NAME)), f"{NAME} is missing"),
    "a tensor too many": weights(
        state(lambda t: t.update(adapter=t[BIAS].clone())), "adapter is not a CodeGen tensor"
    ),
    "a thousand tensors too many": weights(
        state(lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(1000)})), "995 more"
    ),
    "a tensor of another shape": weights(
        one(NAME, lambda t: t[:-1]), r"is \[255, 64\], the config says \[256, 64\]"
    ),
    "a matrix the other way round": weights(one(NAME, lambda t: t.T), r"is \[64, 256\]"),
    "whole numbers": weights(one(NAME, lambda t: t.int()), "int32, not a floating type"),
    "NaN": weights(value(float("nan")), f"{NAME}: 3 values are NaN or infinite", CONVERTING),
    "one NaN at the end": weights(
        one("lm_head.bias", lambda t: torch.cat([t[:-1], t.new_full((1,), float("nan"))])),
        "tensor lm_head.bias: 1 values are NaN or infinite", CONVERTING,
    ),
    "infinity": weights(value(float("-inf"), 5), f"{NAME}: 5 values are NaN or inf", CONVERTING),
    "NaN in q, k and v": weights(
        value(float("nan"), 7, "transformer.h.0.attn.qkv_proj.weight"),
        r"tensor transformer\.h\.0\.attn\.qkv_proj\.weight: \d+ values are NaN", CONVERTING,
    ),
    "70000 in float16": weights(value(70000.0), f"{NAME}: 3 values overflow F16", PLAIN),
    "a scale beyond float16": weights(
        value(1e30, 2), f"{NAME}: 2 rows cannot be Q", ("quantize", "quantize-onnx")
    ),
}  # fmt: skip

CONFIGS: dict[str, Case] = {
    "n_head does not divide": says_of("64 is not a multiple of n_head 3", n_head=3),
    "n_head and mp_num": says_of("n_head 2 does not divide into 4 groups", n_head=2),
    "n_head of 2^40": says_of("n_head is 1099511627776", n_head=1 << 40),
    "n_head as text": says_of("n_head is '4'", n_head="4"),
    "n_head as a list": says_of("n_head is", n_head=[4]),
    "rotary_dim is odd": says_of("rotary_dim 15 must be even", rotary_dim=15),
    "rotary_dim beyond the head": says_of("rotary_dim 32 must be", rotary_dim=32),
    "a million layers": says_of("n_layer is 1000000", n_layer=1_000_000),
    "1000 layers": Case(
        "safetensors", config(n_layer=1000), "1000 layers do not fit", "source"
    ),
    "two layers": Case("safetensors", config(n_layer=2), "h.1.ln_1.weight is missing", "source"),
    "another vocabulary": Case("safetensors", config(vocab_size=4200), r"says \[4200", "source"),
    "a vocabulary of 2^31": says_of("vocab_size is", vocab_size=(1 << 31) - 1),
    "a context of 2^30": says_of("n_positions is", n_positions=1 << 30),
    "another width": Case("safetensors", config(n_embd=128), r"\[4096, 64\], the conf", "source"),
    "an epsilon of 0": says_of("layer_norm_epsilon is 0", layer_norm_epsilon=0),
    "an epsilon of 1e999": Case(
        "safetensors",
        lambda s: written("config.json", (s / "config.json").read_text().replace(
            "1e-05", "1e999"))(s),
        "layer_norm_epsilon is inf", "config.json",
    ),
    "another activation": says_of("activation_function is 'gelu'", activation_function="gelu"),
    "tied embeddings": says_of("tie_word_embeddings is True", tie_word_embeddings=True),
    "another model": says_of("model_type 'llama'", model_type="llama"),
    "a list for the model": says_of("model_type", model_type=["codegen"]),
    "code of its own": says_of("brings its own modelling code", auto_map={"AutoModel": "x.Y"}),
    "no rotary_dim": says_of("rotary_dim is missing", rotary_dim=None),
}  # fmt: skip

TOKENIZER = "tokenizer.json"


def tokens(damage: Damage, says: str, file: str = TOKENIZER) -> Case:
    return Case("torch", damage, says, file)


def model(change: Callable[[dict[str, Any]], object]) -> Damage:
    return edited(TOKENIZER, lambda table: change(table["model"]) and None)


def grown(table: dict[str, Any]) -> None:
    added = table["added_tokens"]
    first = max(token["id"] for token in added) + 1
    added += [{**added[0], "id": first + i, "content": f"<x{i}>"} for i in range(500)]


TOKENIZERS: dict[str, Case] = {
    "truncated": tokens(lambda s: (s / TOKENIZER).write_text("{"), "not valid JSON"),
    "another kind": tokens(model(lambda m: m.update(type="Unigram")), "model 'Unigram'"),
    "a normalizer": tokens(
        edited(TOKENIZER, lambda t: t.update(normalizer={"type": "Lowercase"})), "a normalizer"
    ),
    "a regular expression": tokens(
        edited(TOKENIZER, lambda t: t.update(pre_tokenizer={
            "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
            "invert": False})), "pre-tokenizer 'Split'",
    ),
    "an id twice": tokens(
        model(lambda m: m["vocab"].update({"!": 1})), "given twice|is missing", "source"
    ),
    "an id of 2^60": tokens(
        model(lambda m: m["vocab"].update({"!": 1 << 60})), "missing", "source"
    ),
    "a negative id": tokens(model(lambda m: m["vocab"].update({"!": -1})), "vocabulary is not"),
    "a merge of nothing": tokens(model(lambda m: m["merges"].append("q zzz")), "needs token",
                                 "source"),
    "a merge of three": tokens(model(lambda m: m["merges"].append(["a", "b", "c"])), "two tokens"),
    "no merges": tokens(model(lambda m: m.pop("merges")), "merges is not a list"),
    "a list for added_tokens": tokens(
        edited(TOKENIZER, lambda t: t.update(added_tokens=["x"])), "added_tokens is not"
    ),
    "half a character": tokens(
        edited(TOKENIZER, lambda t: t["added_tokens"][0].update(content="\ud800")), "not valid Uni"
    ),
    "an added id of 5000 digits": tokens(
        written("tokenizer_config.json", json.dumps(
            {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}})),
        "with id", "tokenizer_config.json",
    ),
    "more entries than the embedding": tokens(edited(TOKENIZER, grown), "only 4096 rows", "source"),
    "300 MB": tokens(lambda s: (s / TOKENIZER).open("r+b").truncate(300 << 20), "too large"),
}  # fmt: skip


def trained(source: Path) -> Path:
    return next(p for p in source.rglob("*.json") if "model_layers" in p.read_text())


def training(**entries: Any) -> Damage:
    def damage(source: Path) -> None:
        path = trained(source)
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return damage


TRAINING: dict[str, Case] = {
    "a TPU that does not exist": Case("jaxformer", training(tpu_version=[4]), "tpu_version is"),
    "another number of layers": Case(
        "jaxformer", training(model_layers=7), r"the configuration says \[7", "0.npz"
    ),
    "no configuration": Case("jaxformer", lambda s: trained(s).unlink(), "no Jaxformer training"),
}

MEANING: dict[str, Case] = {
    **{f"weights: {name}": value for name, value in TENSORS.items()},
    **{f"config says: {name}": value for name, value in CONFIGS.items()},
    **{f"tokenizer: {name}": value for name, value in TOKENIZERS.items()},
    **{f"training: {name}": value for name, value in TRAINING.items()},
}
