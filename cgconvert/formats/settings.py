"""What an artefact's files say beside its weights: ids, generation settings, its tokenizer.

No logits show these. A wrong id stops a text too late, a penalty changes what is generated, a
white-space token marked special is lost in decoding; and each library reads other files, so what
one runtime makes of a text says nothing of the next one's. Files that are not there are no
mistake, where others hold the same.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from cgconvert.formats.gguf.header import read_header
from cgconvert.formats.gguf.writer import PRE_TOKENIZER, SUPPRESSED
from cgconvert.formats.huggingface.config_reader import read_json
from cgconvert.formats.onnx.genai import genai_config
from cgconvert.formats.onnx.reader import find_graph, folder_of
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.verify.verdict import Check, at_most

__all__ = ["check_settings"]

NAMED = 3
"""How many differences a check's detail names."""

ABSENT = "absent"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

HARMLESS = frozenset((*IDS, "_from_model_config", "transformers_version", "use_cache"))
"""What a generation_config.json may hold without changing what greedy decoding gives."""

ADDING = ("add_bos_token", "add_eos_token")

GGUF = "tokenizer.ggml."
GGUF_IDS = ("bos", "eos", "eot", "unknown", "padding")


def check_settings(artefact: Path, format: str, source: Checkpoint) -> list[Check]:  # noqa: A002
    """settings and tokenizer.files: how many entries are not as the source's tokenizer has them.

    Raises InputError where a file cannot be read at all.
    """
    settings, tokens = _FORMATS[format](artefact, source)
    return [_check("settings", settings), _check("tokenizer.files", tokens)]


def _check(name: str, found: Sequence[str]) -> Check:
    more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    return at_most(name, float(len(found)), 0, "; ".join([*found[:NAMED], *more]))


def _huggingface(folder: Path, source: Checkpoint) -> tuple[list[str], list[str]]:
    return _generation(folder, source.tokenizer), list(_tokenizer_files(folder, source))


def _onnx(path: Path, source: Checkpoint) -> tuple[list[str], list[str]]:
    graph = find_graph(path)
    folder = folder_of(graph)
    settings, tokens = _huggingface(folder, source)
    if (folder / "genai_config.json").is_file():
        settings += _genai(folder / "genai_config.json", graph, source)
    return settings, tokens


def _generation(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """config.json need not say an id; generation_config.json has to say where to stop."""
    end = tokenizer.end_of_text
    config = read_json(folder / "config.json")
    found = _unlike("config.json", config, {key: end for key in IDS if key in config})
    path = folder / "generation_config.json"
    if not path.is_file():
        return [*found, f"{path.name} is missing"]
    told = read_json(path)
    found += _unlike(path.name, told, {"eos_token_id": end} | {k: end for k in IDS if k in told})
    return found + [
        f"{path.name}: {key} is {reprlib.repr(value)}, and greedy decoding has none"
        for key, value in told.items()
        if key not in HARMLESS
    ]


def _genai(path: Path, graph: Path, source: Checkpoint) -> list[str]:
    """Sizes are compared with the weights' geometry; here what is fed, fetched and searched."""
    end = source.tokenizer.end_of_text
    wanted = genai_config(source.geometry, end, graph.relative_to(path.parent).as_posix())
    told = read_json(path)
    model, search = _inner(told, "model"), _inner(told, "search")
    decoder, right = _inner(model, "decoder"), wanted["model"]["decoder"]
    parts = (
        (model, {key: wanted["model"][key] for key in ("type", *IDS)}),
        (decoder, {"filename": right["filename"]}),
        (_inner(decoder, "inputs"), right["inputs"]),
        (_inner(decoder, "outputs"), right["outputs"]),
        ({**wanted["search"], **search}, wanted["search"]),
    )
    found = [text for said, needed in parts for text in _unlike(path.name, said, needed)]
    extra = search.keys() - wanted["search"].keys()
    return found + [f"{path.name}: search has {key}" for key in sorted(extra)]


def _tokenizer_files(folder: Path, source: Checkpoint) -> Iterator[str]:
    wanted = source.tokenizer.files(source.geometry.n_positions)
    there = {name for name in wanted if (folder / name).is_file()}
    if not (there >= {"vocab.json", "merges.txt"} or "tokenizer.json" in there):
        yield "there is neither tokenizer.json nor vocab.json and merges.txt"
    for name in sorted(there - {"merges.txt"}):
        told, right = read_json(folder / name), json.loads(wanted[name])
        if name == "tokenizer.json":
            told, right = _flat(told), _flat(right)
        elif name == "tokenizer_config.json":  # a library adds keys of its own when it saves one
            right = {k: v for k, v in right.items() if k not in ("tokenizer_class", "padding_side")}
            told = {**dict.fromkeys(ADDING, False), **told}
            right |= dict.fromkeys(ADDING, False)
        yield from _unlike(name, told, right)
        if name in ("vocab.json", "added_tokens.json"):
            extra = len(told.keys() - right.keys())
            yield from [f"{name} has {extra} tokens more"] if extra else []
    if "merges.txt" in there:
        told_merges = _lines((folder / "merges.txt").read_text(encoding="utf-8", errors="replace"))
        if told_merges != _lines(wanted["merges.txt"].decode()):
            yield "merges.txt has other merges, or in another order"


def _flat(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json with its model's entries beside the others; a merge is one string."""
    model = _inner(tokenizer, "model")
    merges = model.get("merges")
    if isinstance(merges, list):
        merges = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    rest = {key: value for key, value in tokenizer.items() if key not in ("model", "version")}
    return {**rest, **model, "merges": merges}


def _lines(merges: str) -> list[str]:
    return [line for line in merges.split("\n") if line and not line.startswith("#version")]


def _gguf(path: Path, source: Checkpoint) -> tuple[list[str], list[str]]:
    metadata, tokenizer = read_header(path).metadata, source.tokenizer
    rows = source.geometry.vocab_size
    ids = {f"{GGUF}{role}_token_id": tokenizer.end_of_text for role in GGUF_IDS}
    told = {key: metadata[key] for key in ids if key in metadata}
    settings = _unlike("", told, {key: ids[key] for key in {*told, f"{GGUF}eos_token_id"}})
    adding = {f"{GGUF}{key}": False for key in ADDING}
    settings += _unlike("", {**adding, **metadata}, adding)
    real = sum(token < tokenizer.size for token in _numbers(metadata, SUPPRESSED))
    settings += [f"{SUPPRESSED} has {real} ids that are tokens"] if real else []
    settings += [  # llama.cpp takes its samplers' defaults from these
        f"{key} is there, and greedy decoding has none"
        for key in metadata
        if key.startswith("general.sampling.")
    ]
    tokens, types = _gguf_tokens(tokenizer, rows)
    merges = [f"{left} {right}" for left, right in tokenizer.merges]
    files = _unlike("", metadata, {f"{GGUF}model": "gpt2", f"{GGUF}pre": PRE_TOKENIZER})
    said = {key: metadata.get(f"{GGUF}{key}", ABSENT) for key in ("tokens", "merges")}
    kinds = _numbers(metadata, f"{GGUF}token_type")
    files += _unlike("", said, {"tokens": tokens, "merges": merges})
    files += _unlike("", {"token_type": kinds}, {"token_type": types})
    return settings, files


def _numbers(metadata: Mapping[str, Any], key: str) -> list[int]:
    value = metadata.get(key)
    return value.tolist() if isinstance(value, np.ndarray) else []


def _gguf_tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Every row's token and its type; a row no token has is unused."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in tokenizer.vocabulary.items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    for added in tokenizer.added:
        kind = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        tokens[added.id], types[added.id] = added.content, int(kind)
    return tokens, types


def _unlike(where: str, told: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A phrase for each entry that is not as wanted; of a list, where it first differs."""
    found = []
    for key, value in wanted.items():
        said = told.get(key, ABSENT)
        if isinstance(said, dict) and isinstance(value, str):
            said = said.get("content", said)  # a token may be said with its flags
        if said == value and isinstance(said, bool) == isinstance(value, bool):
            continue
        name = f"{where}: {key}" if where else key
        if isinstance(said, list) and isinstance(value, list):
            pairs = enumerate(zip(said, value, strict=False))
            place = next((i for i, (a, b) in pairs if a != b), min(len(said), len(value)))
            counts = f"{len(said)} entries for {len(value)}"
            found.append(f"{name} has {counts}, entry {place} is the first that differs")
        else:
            found.append(f"{name} is {reprlib.repr(said)}, not {reprlib.repr(value)}")
    return found


def _inner(outer: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = outer.get(key)
    return inner if isinstance(inner, dict) else {}


_FORMATS: Mapping[str, Callable[[Path, Checkpoint], tuple[list[str], list[str]]]] = {
    "huggingface": _huggingface,
    "onnx": _onnx,
    "gguf": _gguf,
}
