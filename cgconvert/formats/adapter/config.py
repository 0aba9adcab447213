"""Read peft's adapter_config.json: what an adapter changes, how strongly, and on which base model.

A setting that changes the merged weights and is not understood here is refused by its name. Fields
and their meaning: peft/tuners/lora/config.py, LoraConfig; the scaling: peft/tuners/lora/layer.py,
LoraLayer.update_layer.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, first_few
from cgconvert.io.strict_json import read_json

__all__ = ["CONFIG_NAME", "MERGE_ELSEWHERE", "AdapterConfig", "read_config"]

CONFIG_NAME = "adapter_config.json"

MERGE_ELSEWHERE = "merge it with peft's merge_and_unload and convert the result"

UNMERGEABLE = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "activated LoRA, which has no merged form",
    "arrow_config": "Arrow routing, which has no merged form",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on single parameters",
    "trainable_token_indices": "separately trained tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "velora_config": "VeLoRA",
}
"""Settings that make of an adapter something else than scaling * (B @ A), and what it then is."""

CHANGED_BASES = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of init_lora_weights with which peft changes the base's weights when training begins. The
adapter fits only these changed weights, unless peft has converted it when it was saved; then the
value is true."""

KNOWN = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
        "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
        "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip
"""All other settings. Many of them only say how the adapter was trained, or which modules got
tensors, which the tensors say too. peft sets fan_in_fan_out to false for layers that store weights
as torch.nn.Linear does, as all of these models' layers do."""

PLAIN_PATTERN = re.compile(r"[\w.^$\\-]*")
"""A pattern without repeats and groups: the name of a module, mostly."""
MAX_PATTERNS, MAX_INTRICATE_PATTERNS, MAX_PATTERN = 4096, 8, 200
MAX_CHOICES = 3
"""The most repeats and groups in one pattern. Patterns come from the file, and each repeat or group
may multiply the time of a match by the length of a name."""


Pattern = tuple[re.Pattern[str], float]
"""A pattern of the ends of modules' names, and the number that it gives them."""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that its merge depends on.

    Attributes:
        path: The file.
        base: The model that the adapter was trained on, as peft was called with it; "" if the file
            does not say.
        revision: The base's revision on the Hub; None for the default branch.
        rank: The rank of modules that no pattern of `rank_patterns` matches.
        alpha: The numerator of the scaling, likewise.
        is_rank_stabilized: Whether the scaling is alpha / sqrt(rank) instead of alpha / rank.
        rank_patterns: The rank of some modules; the first pattern that matches holds.
        alpha_patterns: The alpha of some modules, likewise.
        target_names: Names of modules, or ends of them, that must have low-rank factors; empty if
            a pattern or other settings choose the modules, as layers_to_transform does.
    """

    path: Path
    base: str
    revision: str | None
    rank: int
    alpha: float
    is_rank_stabilized: bool
    rank_patterns: tuple[Pattern, ...]
    alpha_patterns: tuple[Pattern, ...]
    target_names: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank that the settings give a module."""
        return int(_by_pattern(self.rank_patterns, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """The number that a module's product of low-rank factors is multiplied with."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_patterns, module, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether one of `target_names` is the module's name or the end of it, after a dot."""
        return any(module == name or module.endswith(f".{name}") for name in self.target_names)


def read_config(folder: Path) -> AdapterConfig:
    """Read the adapter_config.json in a folder.

    Raises InputError if it is broken, or if the adapter is not a LoRA that can be merged.
    """
    path = folder / CONFIG_NAME
    if not os.path.lexists(path):
        raise InputError(
            f"{folder}: is not an adapter: give the folder in which peft saved one, with "
            f"{CONFIG_NAME} and adapter_model.safetensors"
        )
    fields = read_json(path)
    peft_type = fields.get("peft_type")
    if peft_type != "LORA":
        kind = f"of the type {peft_type!r:.60}" if peft_type else "of no peft_type"
        raise InputError(f"{path}: the adapter is {kind}; only LORA is merged; {MERGE_ELSEWHERE}")
    _refuse_unmergeable(path, fields)
    return AdapterConfig(
        path=path,
        base=_text(path, fields, "base_model_name_or_path"),
        revision=_text(path, fields, "revision") or None,
        rank=int(_number(path, "r", fields.get("r", 8), whole=True)),
        alpha=_number(path, "lora_alpha", fields.get("lora_alpha", 8)),
        is_rank_stabilized=bool(fields.get("use_rslora")),
        rank_patterns=_patterns(path, fields, "rank_pattern", whole=True),
        alpha_patterns=_patterns(path, fields, "alpha_pattern"),
        target_names=_target_names(path, fields),
    )


def _refuse_unmergeable(path: Path, fields: Mapping[str, Any]) -> None:
    """Raise InputError for every setting that the merge does not follow."""
    kinds = [f"{kind} ({name})" for name, kind in UNMERGEABLE.items() if _is_set(fields.get(name))]
    if kinds:
        raise InputError(f"{path}: uses {_joined(kinds)}, not merged here; {MERGE_ELSEWHERE}")
    initial = str(fields.get("init_lora_weights", True)).lower()
    if initial.startswith(CHANGED_BASES):
        raise InputError(
            f"{path}: init_lora_weights {initial!r:.60} has changed the base's weights, and the "
            f"adapter fits only those; {MERGE_ELSEWHERE}, or save the adapter with peft's "
            "path_initial_model_for_weight_conversion"
        )
    if _is_set(fields.get("ensure_weight_tying")):
        raise InputError(
            f"{path}: ties embedding and head (ensure_weight_tying), not merged here; "
            f"{MERGE_ELSEWHERE}"
        )
    unknown = sorted(
        f"{name!r:.60}"
        for name, value in fields.items()
        if name not in KNOWN and name not in UNMERGEABLE and _is_set(value)
    )
    if unknown:
        raise InputError(
            f"{path}: sets {_joined(unknown)}, whose effect is not known here; {MERGE_ELSEWHERE}"
        )


def _target_names(path: Path, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in target_modules, without those in modules_to_save.

    Empty if target_modules is a pattern, or if another setting exempts modules from it.
    """
    names = fields.get("target_modules")
    narrowing = ("layers_to_transform", "layers_pattern", "exclude_modules")
    if not isinstance(names, list) or any(_is_set(fields.get(name)) for name in narrowing):
        return ()
    saved = fields.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in (*names, *saved)):
        raise InputError(f"{path}: target_modules or modules_to_save is no list of names")
    return tuple(name for name in names if name not in saved)


def _joined(names: list[str]) -> str:
    return first_few(names, 5, separator=", ", conjunction=" and ")


def _is_set(value: Any) -> bool:
    """Whether a setting is in use: null, false and empty values say that it is not."""
    return value is not None and value is not False and value not in ("", [], {})


def _text(path: Path, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
        raise InputError(f"{path}: {name} is not a name or a path")
    return value


def _number(path: Path, name: str, value: Any, *, whole: bool = False) -> float:
    """Check a rank, which is whole and positive, or an alpha. Raises InputError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and abs(value) <= 1 << 20 and (not whole or (value >= 1 and value == int(value))):
        return float(value)
    kind = "a whole number from 1 on" if whole else "a number"
    raise InputError(f"{path}: {name} is {value!r:.60}, not {kind}")


def _patterns(
    path: Path, fields: Mapping[str, Any], name: str, *, whole: bool = False
) -> tuple[Pattern, ...]:
    """Check and compile rank_pattern or alpha_pattern, in the file's order. Raises InputError.

    A pattern has to match the end of a module's name, from a dot on (peft/utils/other.py,
    get_pattern_key).
    """
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{path}: {name} is not an object of names and numbers")
    intricate = [pattern for pattern in patterns if not PLAIN_PATTERN.fullmatch(pattern)]
    if len(patterns) > MAX_PATTERNS or len(intricate) > MAX_INTRICATE_PATTERNS:
        raise InputError(f"{path}: {name} has too many patterns; {MERGE_ELSEWHERE}")
    compiled = []
    for pattern, value in patterns.items():
        if len(pattern) > MAX_PATTERN or sum(map(pattern.count, "*+?{(")) > MAX_CHOICES:
            raise InputError(
                f"{path}: {name} has the pattern {pattern!r:.60}, which is too intricate to be "
                f"matched safely; write the modules' names, or {MERGE_ELSEWHERE}"
            )
        try:
            expression = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError) as error:
            raise InputError(
                f"{path}: {name} has the pattern {pattern!r:.60}, which is no regular expression"
            ) from error
        number = _number(path, f"{name} of {pattern!r:.60}", value, whole=whole)
        compiled.append((expression, number))
    return tuple(compiled)


def _by_pattern(patterns: tuple[Pattern, ...], module: str, default: float) -> float:
    """The number of the first pattern that matches a module's name."""
    return next((number for pattern, number in patterns if pattern.match(module)), default)
