"""Compare a Hugging Face folder with the source: tensors, configuration, ids and tokenizer.

On purpose this module repeats the constants of transformers (groups, rotary base), and
`expected_tensors` goes through the names itself: a check that shared the writer's code would share
its mistakes.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError
from cgconvert.formats.comparison import (
    SettingsDifferences,
    StoredArtefact,
    as_mapping,
    entry_differences,
    expected_tensors,
    pair_tensors,
    value_differences,
)
from cgconvert.formats.huggingface import reader
from cgconvert.formats.huggingface.config import codegen_config, gptj_config, phi_config
from cgconvert.io.reading import read_bytes
from cgconvert.io.strict_json import read_json
from cgconvert.model.chat_templates import parse_chat_templates, read_chat_templates
from cgconvert.model.decoder import Checkpoint, Decoder
from cgconvert.model.tensor import LazyTensor
from cgconvert.model.tensor_names import CODEGEN, GPTJ, PHI
from cgconvert.model.tokenizer import Tokenizer
from cgconvert.model.tokenizer_files import TOKENIZER_FILES

__all__ = [
    "IDS",
    "config_differences",
    "decoder",
    "generation_differences",
    "settings",
    "stored_artefact",
    "tokenizer_differences",
]

GROUPS = 4
"""transformers' mp_num for CodeGen (modeling_codegen.py: CodeGenAttention.forward)."""

ROTARY_BASE = 10000.0
"""transformers' rotary base for CodeGen and GPT-J (create_sinusoidal_positions), Phi's default."""

NO_EFFECT_ON_LOGITS = frozenset(
    ("architectures", "use_cache", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout",
     "initializer_range")
)  # fmt: skip
"""Entries of a config.json that do not change the logits."""

DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "rope_theta": ROTARY_BASE,
    "rope_type": "default",
    "rope_scaling": None,
}
"""Values that transformers uses for entries that a config.json does not have."""

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Entries that must be the tokenizer's ids, where they are present."""

HARMLESS = frozenset((*IDS, "_from_model_config", "transformers_version", "use_cache"))
"""Entries of a generation_config.json that are not settings of sampling."""

TOKEN_ADDING = ("add_bos_token", "add_eos_token")
EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")


def decoder(folder: Path) -> Decoder:
    """Read the model in a folder as transformers does: a CodeGen always has `GROUPS` groups.

    So a model_type that cgconvert does not know is no hindrance. Raises InputError if the folder is
    not a complete model.
    """
    path = folder / "config.json"
    config = read_json(path)
    files = reader.find_weights(folder)[1]
    groups = GROUPS if "qkv" in reader.model_type(config).names.layer else None
    return reader.decoder(folder, files, config, path, groups)


def stored_artefact(folder: Path, source: Decoder) -> StoredArtefact:
    """Pair a folder's tensors with the source's, and compare its config.json with the geometry."""
    config = read_json(folder / "config.json")
    tensors = reader.read_weights(reader.find_weights(folder)[1])
    g = source.geometry
    names = reader.model_type(config).names
    of_types = _type_differences(config, tensors)
    if names is PHI:
        # transformers 5 prefers rope_parameters and others read the top level, so both are
        # compared; an entry that only one of the two places has counts for both.
        rope = as_mapping(config.get("rope_parameters"))
        expected = phi_config(g, {}) | {"rope_scaling": None}
        expected_rope = expected.pop("rope_parameters")
        differences = of_types + config_differences({**rope, **config}, expected)
        differences += [
            f"rope_parameters: {difference}"
            for difference in config_differences({**config, **rope}, expected_rope)
        ]
        return pair_tensors(tensors, dict(expected_tensors(source, PHI)), PHI, g, differences)
    expected = gptj_config(g, {}) if names is GPTJ else codegen_config(g, {})
    differences = of_types + config_differences(config, expected)
    if g.rotary_base != ROTARY_BASE:
        differences.append(f"rotary base is {ROTARY_BASE:g}, not {g.rotary_base:g}")
    groups = GROUPS if names is CODEGEN else 0
    return pair_tensors(
        tensors, dict(expected_tensors(source, names, groups)), names, g, differences
    )


def _type_differences(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Compare the type in which transformers 5 and vLLM load the weights with the stored ones."""
    types = {tensor.dtype.name for tensor in tensors.values()}
    return [
        f"{key} is {reprlib.repr(config[key])}, and no tensor is"
        for key in ("dtype", "torch_dtype")
        if config.get(key) is not None and config[key] not in types
    ]


def config_differences(config: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Compare the entries of a config.json that change the logits.

    Absent entries, and None for some, have the values that transformers gives them.
    """
    actual = dict(config)
    if "n_inner" in actual and actual["n_inner"] is None and "n_inner" in expected:
        actual["n_inner"] = 4 * expected["n_embd"]
    if "num_key_value_heads" in actual and actual["num_key_value_heads"] is None:
        actual["num_key_value_heads"] = expected.get("num_attention_heads")
    compared = {
        key: value
        for key, value in expected.items()
        if key not in NO_EFFECT_ON_LOGITS and (key != "n_ctx" or key in actual)
    }
    return value_differences(actual, compared, DEFAULTS)


def settings(folder: Path, source: Checkpoint) -> SettingsDifferences:
    """Compare generation settings and tokenizer files with the source's tokenizer."""
    return SettingsDifferences(
        generation_differences(folder, source),
        list(tokenizer_differences(folder, source)),
    )


def generation_differences(folder: Path, source: Checkpoint) -> list[str]:
    """Compare token ids and settings of sampling with the source's.

    config.json need not contain ids, generation_config.json must contain eos_token_id.
    """
    tokenizer = source.tokenizer
    ids = _with_sorted_eos(
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": list(source.eos_token_ids),
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    config = _with_sorted_eos(read_json(folder / "config.json"))
    differences = entry_differences(
        "config.json", config, {key: index for key, index in ids.items() if key in config}
    )
    path = folder / "generation_config.json"
    if not path.is_file():
        return [*differences, f"{path.name} is missing"]
    generation = _with_sorted_eos(read_json(path))
    expected = {key: ids[key] for key in IDS if key in generation or key == "eos_token_id"}
    differences += entry_differences(
        path.name, generation, {**expected, **source.generation.sampling}
    )
    return differences + [
        f"{path.name}: {key} is {reprlib.repr(value)}, and the source has none"
        for key, value in generation.items()
        if key not in HARMLESS and key not in source.generation.sampling
    ]


def _with_sorted_eos(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with its eos ids in order: one id, or a list of several."""
    entries = dict(config)
    ids = entries.get("eos_token_id")
    if isinstance(ids, list) and all(isinstance(index, int) for index in ids):
        ordered = sorted(set(ids))
        entries["eos_token_id"] = ordered[0] if len(ordered) == 1 else ordered
    return entries


def tokenizer_differences(folder: Path, source: Checkpoint) -> Iterator[str]:
    """Compare the tokenizer's files with those that cgconvert writes for the source's tokenizer.

    Libraries write the same tokenizer in different ways, so the meaning of the files is compared,
    not their bytes. Yields a phrase for each difference.
    """
    expected_files = source.tokenizer.files(source.geometry.n_positions)
    present = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not (present >= {"vocab.json", "merges.txt"} or "tokenizer.json" in present):
        yield "there is neither tokenizer.json nor vocab.json and merges.txt"
    for name in sorted(present - {"merges.txt"}):
        actual, expected = read_json(folder / name), json.loads(expected_files[name])
        if name == "tokenizer.json":
            actual, expected = _flatten(actual), _flatten(expected)
        elif name == "tokenizer_config.json":  # a library adds keys of its own when it saves one
            for key in ("tokenizer_class", "padding_side", "chat_template"):
                expected.pop(key, None)
            actual = {**dict.fromkeys(TOKEN_ADDING, False), **actual}
            expected |= dict.fromkeys(TOKEN_ADDING, False)
        yield from entry_differences(name, actual, expected)
        if name in ("vocab.json", "added_tokens.json"):
            extra = len(actual.keys() - expected.keys())
            yield from [f"{name} has {extra} tokens more"] if extra else []
    if "merges.txt" in present:
        merges = read_bytes(folder / "merges.txt").decode(errors="replace")
        if _merges(merges) != _merges(expected_files["merges.txt"].decode()):
            yield "merges.txt has other merges, or in another order"
    if "special_tokens_map.json" in present:
        path = folder / "special_tokens_map.json"
        yield from _further_special_tokens(path.name, read_json(path), source.tokenizer)
    yield from _role_differences(folder, source.tokenizer)
    yield from _chat_template_differences(folder, source.tokenizer)


def _further_special_tokens(
    name: str, entries: Mapping[str, Any], expected: Tokenizer
) -> Iterator[str]:
    """Name the special tokens in a file that the source has not, whether or not a reader asks it.

    transformers does not read special_tokens_map.json where tokenizer_config.json lists its tokens;
    other programs do.
    """
    roles = {**expected.roles, **expected.extra_roles}
    for key, value in entries.items():
        if key in EXTRA_TOKENS and isinstance(value, list):
            texts = [as_mapping(token).get("content", token) for token in value]
            extra = [text for text in texts if text not in expected.extra_special_tokens]
            extra = [text for text in extra if text not in roles.values()]
            yield from [f"{name}: {key} has {reprlib.repr(extra)} more"] if extra else []
        elif key not in roles and key.endswith("_token") and value:
            yield f"{name}: {key} is {reprlib.repr(value)}, and the source has none"


def _role_differences(folder: Path, expected: Tokenizer) -> Iterator[str]:
    """Compare the tokens that all files of a folder together name for each role."""
    try:
        tokenizer = Tokenizer.load(folder)
    except InputError as error:
        yield str(error)
        return
    roles = {**tokenizer.roles, **tokenizer.extra_roles}
    yield from entry_differences(
        "the tokenizer's files together", roles, {**expected.roles, **expected.extra_roles}
    )
    if set(tokenizer.extra_special_tokens) != set(expected.extra_special_tokens):
        yield (
            f"the extra special tokens are {reprlib.repr(tokenizer.extra_special_tokens)}, not "
            f"{reprlib.repr(expected.extra_special_tokens)}"
        )


def _chat_template_differences(folder: Path, expected: Tokenizer) -> Iterator[str]:
    """Compare the chat templates in files, and those in tokenizer_config.json for older readers."""
    path = folder / "tokenizer_config.json"
    inline = read_json(path).get("chat_template") if path.is_file() else None
    places = {"chat templates": read_chat_templates(folder, inline)}
    if inline is not None:
        places[f"{path.name}: chat_template"] = parse_chat_templates(inline, path)
    for place, templates in places.items():
        names = {*templates, *expected.chat_templates}
        if isinstance(inline, str) and templates is not places["chat templates"]:
            names = set(templates)  # one text is for readers of one template
        for name in sorted(names):
            if templates.get(name) == expected.chat_templates.get(name):
                continue
            state = "differs" if name in templates else "is missing"
            yield f"{place}: {name!r} {state if name in expected.chat_templates else 'is new'}"


def _flatten(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Move the entries under "model" of a tokenizer.json to the top level; join merges to text."""
    model = as_mapping(tokenizer.get("model"))
    merges = model.get("merges")
    if isinstance(merges, list):
        merges = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    other_entries = {
        key: value for key, value in tokenizer.items() if key not in ("model", "version")
    }
    return {**other_entries, **model, "merges": merges}


def _merges(text: str) -> list[str]:
    """Return the lines of a merges.txt without its version line."""
    return [line for line in text.split("\n") if line and not line.startswith("#version")]
