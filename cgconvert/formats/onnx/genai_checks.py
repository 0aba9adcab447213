"""Checks of the files that onnxruntime-genai reads: genai_config.json and the chat template.

The functions that begin with `admit` run before genai may load the files, which may come from
anywhere. The others compare the files with the source.

What the search should be is worked out here a second time, apart from the writer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.comparison import as_mapping, entry_differences
from cgconvert.formats.huggingface.checks import config_differences
from cgconvert.formats.onnx import reader
from cgconvert.formats.onnx.genai import genai_config, search_settings, template_fault
from cgconvert.io.strict_json import read_json, read_text
from cgconvert.model.chat_templates import CHAT_TEMPLATE
from cgconvert.model.decoder import Checkpoint, Geometry

__all__ = [
    "admit_genai_config",
    "admit_genai_entries",
    "admit_genai_template",
    "genai_setting_differences",
    "genai_size_differences",
]

NO_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

MAX_NUMBER = 1 << 22
MAX_STOP_IDS = 1 << 10
"""The most ids at which generation may stop."""

NEUTRAL: Mapping[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "past_present_share_buffer": True,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
}
"""Settings that change nothing of a greedy search. An absent one counts as this."""


def genai_size_differences(model: Mapping[str, Any], geometry: Geometry) -> list[str]:
    """Compare the sizes in the section "model" of genai_config.json with the geometry."""
    g = geometry
    return [
        *config_differences(model, {"context_length": g.n_positions, "vocab_size": g.vocab_size}),
        *config_differences(
            as_mapping(model.get("decoder")),
            {
                "head_size": g.head_dim,
                "hidden_size": g.n_embd,
                "num_attention_heads": g.n_head,
                "num_hidden_layers": g.n_layer,
                "num_key_value_heads": g.n_head,
            },
        ),
    ]


def genai_setting_differences(path: Path, graph: Path, source: Checkpoint) -> list[str]:
    """Compare ids, names of inputs and outputs, and the search with what the source says.

    A search setting that cgconvert does not write is a difference.
    """
    config = read_json(path)
    model, search = as_mapping(config.get("model")), as_mapping(config.get("search"))
    decoder = as_mapping(model.get("decoder"))
    options = as_mapping(decoder.get("session_options"))
    target = "cuda" if options.get("provider_options") else "cpu"
    name = graph.relative_to(path.parent).as_posix()
    written = genai_config(source.geometry, NO_IDS, {}, name, target)["model"]["decoder"]
    tokenizer, stop_ids = source.tokenizer, list(source.eos_token_ids)
    stored = model.get("eos_token_id")
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    expected = {**NEUTRAL, **_expected_search(source, target)}
    # A search without top_k samples from all tokens, one without max_length goes to the context.
    defaults = {**NEUTRAL, "top_k": 0, "max_length": source.geometry.n_positions}
    if not search.get("do_sample"):
        defaults["top_k"] = expected["top_k"]
    expected_eos = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    parts = (
        (model, {"type": "decoder", **ids, "eos_token_id": expected_eos}),
        (decoder, {"filename": name}),
        (as_mapping(decoder.get("inputs")), written["inputs"]),
        (as_mapping(decoder.get("outputs")), written["outputs"]),
        ({**defaults, **search}, expected),
    )
    if stored == stop_ids and len(stop_ids) == 1:  # a list of one is that one
        parts[0][1]["eos_token_id"] = stored
    texts = [
        text for actual, entries in parts for text in entry_differences(path.name, actual, entries)
    ]
    extra = search.keys() - expected.keys()
    return texts + [f"{path.name}: search has {key}" for key in sorted(extra)]


def _expected_search(source: Checkpoint, target: str) -> dict[str, Any]:
    """Return the settings that say what the source's do, as far as genai has them."""
    sampling, g = source.generation.sampling, source.geometry
    same = ("repetition_penalty", "temperature", "top_p")
    expected = {name: sampling[name] for name in same if name in sampling}
    expected["do_sample"] = sampling.get("do_sample", False)
    expected["top_k"] = 50 if expected["do_sample"] else 1  # transformers samples from 50
    for name, limit in (("top_k", g.vocab_size), ("min_length", g.n_positions)):
        if name in sampling:
            expected[name] = min(sampling[name], limit)
    expected["max_length"] = g.n_positions
    if sampling.get("max_length") not in (None, 20):  # transformers 4's default is no choice
        expected["max_length"] = min(sampling["max_length"], g.n_positions)
    if not expected["do_sample"] and sampling.get("num_beams", 1) > 1:
        expected["num_beams"] = sampling["num_beams"]
        expected["length_penalty"] = sampling.get("length_penalty", 1.0)
        expected["early_stopping"] = sampling.get("early_stopping") is True
        returned = sampling.get("num_return_sequences", 1)
        expected["num_return_sequences"] = min(returned, sampling["num_beams"])
    if target == "cpu" and sampling.get("no_repeat_ngram_size"):
        expected["no_repeat_ngram_size"] = min(sampling["no_repeat_ngram_size"], g.n_positions)
    return expected


def admit_genai_config(config_path: Path, graph: Path) -> None:
    """Check a genai_config.json before genai loads it: it has no entry that cgconvert never writes.

    The head size and the numbers of layers and heads are those of the graph, and texts are those
    that cgconvert writes. All other numbers need only be possible, and all other entries may be
    absent. Raises InputError.
    """
    decoder, sizes = admit_genai_entries(config_path, graph)
    for key in ("head_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"):
        if decoder.get(key) != sizes[key]:
            raise InputError(
                f"{config_path}: {key} is {decoder.get(key)!r}, the graph has {sizes[key]}"
            )


def admit_genai_template(folder: Path) -> None:
    """Check the default chat template before genai parses it, which it does with the tokenizer.

    `folder` is that of genai_config.json. The template may stand in tokenizer_config.json and in a
    file of its own; both are checked. Raises InputError if genai would not read one of them.
    """
    path = folder / "tokenizer_config.json"
    inline = read_json(path).get("chat_template") if path.is_file() else None
    if inline is not None and not isinstance(inline, str):
        raise InputError(f"{path}: chat_template is not one text, which onnxruntime-genai needs")
    templates = {path: inline} if inline is not None else {}
    if (folder / CHAT_TEMPLATE).is_file():
        templates[folder / CHAT_TEMPLATE] = read_text(folder / CHAT_TEMPLATE)
    for place, template in templates.items():
        fault = template_fault(template)
        if fault:
            raise InputError(
                f"{place}: onnxruntime-genai cannot read the chat template: it has {fault}"
            )


def admit_genai_entries(
    config_path: Path, graph: Path
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Check that a genai_config.json has no entry and no text that cgconvert never writes.

    Returns the section "decoder" as it is, and as cgconvert writes it for the graph. Raises
    InputError that names the entry.
    """
    config = read_json(config_path)
    model = dict(as_mapping(config.get("model")))
    stop_ids = model.get("eos_token_id")
    if isinstance(stop_ids, list):
        if not 0 < len(stop_ids) <= MAX_STOP_IDS:
            raise InputError(f"{config_path}: model.eos_token_id has {len(stop_ids)} ids")
        for stop_id in stop_ids:
            _check_within(stop_id, 0, config_path, "model.eos_token_id.")
        model["eos_token_id"] = 0
    decoder = as_mapping(model.get("decoder"))
    cuda = bool(as_mapping(decoder.get("session_options")).get("provider_options"))
    geometry = _cache_geometry(graph)
    search = {**NEUTRAL, **search_settings({}, geometry)}
    written = genai_config(
        geometry, NO_IDS, search, str(decoder.get("filename")), "cuda" if cuda else "cpu"
    )
    _check_within({**config, "model": model}, written, config_path, "")
    return decoder, written["model"]["decoder"]


def _cache_geometry(graph: Path) -> Geometry:
    """Read the numbers of layers and heads from the graph's cache; other sizes are arbitrary."""
    past = [v for v in reader.parse(graph).graph.input if v.name.startswith("past_key_values.")]
    shapes = {tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in past}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) != 4 or len(past) % 2:
        raise InputError(f"{graph}: not a decoder with a KV cache: its inputs are other ones")
    _, heads, _, size = shape
    try:
        return Geometry(len(past) // 2, heads * size, heads, 2, 1, 1, 0)
    except InputError as error:
        raise InputError(f"{graph}: {error}") from None


def _check_within(config: Any, written: Any, config_path: Path, key: str) -> None:
    """Check that each entry of a configuration is in `written` too, with the same type.

    Texts and lists must be equal, numbers only possible. `key` is the prefix of the entries' names.
    Raises InputError that names the entry.
    """
    if isinstance(written, Mapping) and isinstance(config, Mapping):
        for name, value in config.items():
            if name not in written:
                raise InputError(f"{config_path}: has {key}{name}, which cgconvert does not write")
            _check_within(value, written[name], config_path, f"{key}{name}.")
    elif type(config) is not type(written) or (
        isinstance(config, str | list) and config != written
    ):
        raise InputError(f"{config_path}: {key[:-1]} is {config!r}, not as cgconvert writes it")
    elif isinstance(config, int | float) and not _is_possible(config):
        raise InputError(f"{config_path}: {key[:-1]} is {config}, an impossible number")


def _is_possible(number: float) -> bool:
    """Whether a number can be a size, if it is whole, or a factor."""
    return 0 <= number <= MAX_NUMBER if isinstance(number, int) else math.isfinite(number)
