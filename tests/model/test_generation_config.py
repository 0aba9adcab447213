"""Settings of generation: read as transformers reads the same files; nonsense is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig as TransformersConfig

from cgconvert import embedded
from cgconvert.errors import InputError
from cgconvert.model.generation_config import GenerationConfig, read_generation_config
from cgconvert.model.tokenizer import AddedToken, Tokenizer

END = 3967
TOKENIZER = Tokenizer.load(embedded.path())


def read(
    folder: Path,
    generation: dict[str, Any] | None,
    config: dict[str, Any] | None = None,
    tokenizer: Tokenizer = TOKENIZER,
) -> GenerationConfig:
    """What generation_config.json and config.json of these entries give."""
    if generation is not None:
        text = json.dumps(generation).replace("Infinity", "1e999")  # which is valid JSON
        (folder / "generation_config.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return read_generation_config(folder, config or {}, folder / "config.json", tokenizer)


SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.2, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "temperature 0": {"do_sample": False, "temperature": 0.0},
    "cutoffs": {"typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 0, "top_h": 0.4},
    "penalties": {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    "beams": {"num_beams": 4, "length_penalty": -0.5, "early_stopping": "never"},
    "lengths": {"max_length": 512, "max_new_tokens": 64, "min_new_tokens": 2, "max_time": 1.5},
    "ids": {
        "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [3], "begin_suppress_tokens": [],
        "forced_bos_token_id": 4, "forced_eos_token_id": [END],
    },
    "biases": {
        "sequence_bias": [[[5, 6], -2.5]], "exponential_decay_length_penalty": [15, 1.6],
        "renormalize_logits": True,
    },
    "texts": {"stop_strings": ["\n\n", "def "]},
    "one text": {"stop_strings": "<|user|>"},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    assert read(tmp_path, {"eos_token_id": END, **settings}).sampling == settings
    theirs = TransformersConfig.from_pretrained(tmp_path)
    assert {key: getattr(theirs, key) for key in settings} == settings


@pytest.mark.parametrize("name", SETTINGS)
def test_without_the_file_the_top_level_of_config_counts(name: str, tmp_path: Path) -> None:
    task = {"text-generation": {"do_sample": True, "temperature": 0.7}}
    config = {"eos_token_id": END, **SETTINGS[name], "task_specific_params": task}
    loaded = read(tmp_path, None, config)
    expected = {key: value for key, value in SETTINGS[name].items() if value is not False}
    assert (loaded.sampling, loaded.notes) == (expected, ())
    theirs = TransformersConfig.from_pretrained(
        tmp_path, config_file_name="config.json", _from_model_config=True
    )
    assert {key: getattr(theirs, key) for key in SETTINGS[name]} == SETTINGS[name]
    assert theirs.temperature == loaded.sampling.get("temperature")


@pytest.mark.parametrize("generation", [False, True])
def test_the_defaults_that_old_configurations_spell_out_say_nothing(
    generation: bool, tmp_path: Path
) -> None:
    config = {"max_length": 20, "do_sample": False, "top_k": 50, "temperature": 1.0, "top_p": 0.5}
    loaded = read(tmp_path, config) if generation else read(tmp_path, None, config)
    assert loaded.sampling == (config if generation else {"top_p": 0.5})


def test_the_file_hides_the_settings_of_config(tmp_path: Path) -> None:
    loaded = read(tmp_path, {"top_k": 3, "top_p": None}, {"top_k": 9, "temperature": 0.5})
    assert loaded.sampling == {"top_k": 3}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", "0.2", "temperature is '0.2', not a number of 0 or more"),
        ("temperature", -1, "temperature is -1, not"),
        ("temperature", True, "temperature is True, not"),
        ("temperature", 1e999, "temperature is inf, not"),
        ("top_p", 1.5, "not a number from 0 to 1"),
        ("top_k", 2.5, "not a whole number"),
        ("top_k", 1 << 40, "not a whole number"),
        ("do_sample", 1, "not true or false"),
        ("repetition_penalty", 0, "not a number above 0"),
        ("max_new_tokens", 0, "of 1 or more"),
        ("bad_words_ids", [5], "not a list of lists of ids"),
        ("bad_words_ids", [[]], "not a list of lists of ids"),
        ("suppress_tokens", [-1], "not a list of ids"),
        ("stop_strings", [""], "not a text or a list of texts"),
        ("sequence_bias", {"5": 1.0}, "not a list of pairs"),
        ("exponential_decay_length_penalty", [1], "not a pair"),
        ("num_return_sequences", 2, "needs as many num_beams"),
        ("eos_token_id", "2", "eos_token_id is '2', not an id or a list of ids"),
        ("eos_token_id", [END, True], "not an id or a list of ids"),
        ("eos_token_id", [], "not an id or a list of ids"),
        ("eos_token_id", 2.0, "not an id or a list of ids"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    for generation, config, name in (
        ({key: value}, None, "generation_config.json"),
        (None, {key: value}, "config.json"),
    ):
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        with pytest.raises(InputError) as caught:
            read(tmp_path, generation, config)
        assert message in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_forced_token_may_not_be_suppressed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="forced_eos_token_id is in suppress_tokens too"):
        read(tmp_path, {"forced_eos_token_id": 7, "suppress_tokens": [7, 8]})


def test_what_is_no_setting_is_named(tmp_path: Path) -> None:
    quiet = {"use_cache": True, "prompt": None, "output_scores": False}
    assert read(tmp_path, quiet).notes == ()
    (note,) = read(tmp_path, {**quiet, "chat_format": "raw"}).notes
    assert (
        note == "generation_config.json: 'chat_format' is left out: not a known setting of sampling"
    )
    (note,) = read(tmp_path, {**quiet, **{f"key{n}": n + 1 for n in range(9)}}).notes
    assert "'key0', 'key1', 'key2', 6 more are left out" in note


@pytest.mark.parametrize(
    ("entries", "ids", "notes"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, (), 0),
        ({"bos_token_id": 1, "eos_token_id": 2, "_from_model_config": True}, (), 0),
        ({"eos_token_id": 2}, (), 1),
        ({"eos_token_id": [END, 5]}, (END, 5), 0),
        ({"eos_token_id": [5, END, 5]}, (5, END), 0),
        ({"bos_token_id": 1, "eos_token_id": [2, 5]}, (5,), 1),
        ({"eos_token_id": [2, 5]}, (2, 5), 0),
        ({"eos_token_id": -1}, (), 0),
        ({"eos_token_id": None}, (), 0),
        ({}, (), 0),
    ],
)
def test_ids_at_which_generation_stops(
    entries: dict[str, Any], ids: tuple[int, ...], notes: int, tmp_path: Path
) -> None:
    for generation, config in ((entries, None), (None, entries)):
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        loaded = read(tmp_path, generation, config)
        assert (loaded.eos_token_ids, len(loaded.notes)) == (ids, notes)


def test_2_is_kept_where_it_is_a_special_token(tmp_path: Path) -> None:
    """The eos token of a small vocabulary, or another special token of it."""
    vocabulary = dict(TOKENIZER.vocabulary)
    third = next(token for token, index in vocabulary.items() if index == 2)
    del vocabulary[third]
    vocabulary[third] = TOKENIZER.size
    small = Tokenizer.from_parts(
        vocabulary, TOKENIZER.merges, [*TOKENIZER.added, AddedToken(2, "</s>", True)], "</s>"
    )
    entries = {"bos_token_id": 1, "eos_token_id": 2}
    assert read(tmp_path, entries, tokenizer=small).eos_token_ids == (2,)
