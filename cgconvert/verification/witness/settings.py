"""Settings of sampling: what the source's files say, and what the artefact's clients will read.

transformers hands the entries of generation_config.json through as they are, so they are read from
the file itself, apart from cgconvert's reader of it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert.formats.gguf.header import read_header
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint

__all__ = ["read_artefact_settings", "read_settings", "settings_differences"]

DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
}
"""The settings that are compared, with what transformers takes where no file says otherwise
(generation/configuration_utils.py: GenerationConfig)."""

GENAI = ("do_sample", "temperature", "top_p", "repetition_penalty")
"""Settings that genai_config.json has under the same names and with the same meaning."""

GGUF: Mapping[str, str] = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Settings that llama.cpp reads from a file (common/common.cpp: common_init_sampler_from_model)."""

GENERATION_CONFIG, GENAI_CONFIG = "generation_config.json", "genai_config.json"
TOLERANCE = 1e-6
"""The relative error of a float32, in which a GGUF stores a setting."""


def read_settings(source: Checkpoint) -> dict[str, Any]:
    """Read those settings of the source that are compared, by their names in DEFAULTS.

    They stand in generation_config.json or, if the source has no such file, in config.json.
    """
    paths = [path for path in source.files if path.name == GENERATION_CONFIG]
    return _settings(read_json(paths[0]) if paths else source.config)


def read_artefact_settings(artefact: Path) -> dict[str, dict[str, Any]]:
    """Read the settings of an artefact from each place where a client looks for them.

    The result has them by place, which is the name of a JSON file, or "general.sampling" in a GGUF,
    and then by their names in transformers. Raises InputError if a file is broken.
    """
    if artefact.is_file():
        metadata = read_header(artefact).metadata
        return {"general.sampling": {n: metadata[k] for n, k in GGUF.items() if k in metadata}}
    files = [artefact / name for name in (GENERATION_CONFIG, GENAI_CONFIG)]
    places = {path.name: read_json(path) for path in files if path.is_file()}
    if GENAI_CONFIG in places:
        search = places[GENAI_CONFIG].get("search")
        places[GENAI_CONFIG] = search if isinstance(search, dict) else {}
    return {place: _settings(entries) for place, entries in places.items()}


def settings_differences(
    source: Mapping[str, Any], artefact: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Compare the settings of a source with those of each place of an artefact."""
    differences = []
    for place, entries in artefact.items():
        names = list(DEFAULTS)
        if place == GENAI_CONFIG:
            names = list(GENAI)
        elif place != GENERATION_CONFIG:
            # A file that samples greedily says so by a temperature of 0.
            names = [name for name in GGUF if name in source and source.get("do_sample", True)]
        for name in names:
            expected = source.get(name, DEFAULTS[name])
            actual = entries.get(name, DEFAULTS[name])
            if not _is_equal(actual, expected):
                differences.append(
                    f"{place}: {name} is {reprlib.repr(actual)}, "
                    f"in the source {reprlib.repr(expected)}"
                )
    return differences


def _settings(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of DEFAULTS that have a value."""
    return {name: entries[name] for name in DEFAULTS if entries.get(name) is not None}


def _is_equal(actual: object, expected: object) -> bool:
    """Whether two settings are the same, numbers within the error of a float32."""
    if not (isinstance(actual, int | float) and isinstance(expected, int | float)):
        return actual == expected
    try:
        return math.isclose(actual, expected, rel_tol=TOLERANCE)
    except OverflowError:  # a whole number beyond every float
        return actual == expected
