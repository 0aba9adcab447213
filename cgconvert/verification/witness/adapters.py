"""A source's adapters, merged by peft itself: a witness apart from cgconvert's own merge.

peft sees links to the weights that were checked, and those settings of the configuration on which
the merge depends. The base that the configuration names is not opened: transformers has read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgconvert.formats.adapter.config import CONFIG_NAME
from cgconvert.formats.adapter.merge import WEIGHT_NAMES
from cgconvert.io.admitted import AdmittedFiles
from cgconvert.io.strict_json import read_json
from cgconvert.model.decoder import Checkpoint
from cgconvert.verification.witness.opening import NoWitnessError, witnessing

__all__ = ["adapter_weights", "link_adapters", "merge_adapters"]

SETTINGS = (
    "peft_type", "task_type", "r", "lora_alpha", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "use_rslora",
    "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern",
)  # fmt: skip


def adapter_weights(source: Checkpoint) -> list[Path]:
    """The weight files of a source's adapters, in the order in which these are merged."""
    return [path for path in source.files if path.name in WEIGHT_NAMES]


def link_adapters(source: Checkpoint, view: AdmittedFiles) -> list[Path]:
    """Make a private folder for each adapter below that of the source, and return them in order.

    Raises NoWitnessError if peft would match a pattern of the adapter's own against all modules,
    which may take endless.
    """
    links = []
    for number, weights in enumerate(adapter_weights(source)):
        settings = read_json(weights.with_name(CONFIG_NAME))
        targets, pattern = settings.get("target_modules"), settings.get("layers_pattern")
        excluded = settings.get("exclude_modules")
        is_listed = isinstance(targets, list) or targets == "all-linear"
        if not is_listed or pattern or isinstance(excluded, str):
            raise NoWitnessError("a pattern chooses the modules of its adapter")
        link = view.folder / f"adapter-{number}"
        kept = {name: value for name, value in settings.items() if name in SETTINGS}
        kept |= {"inference_mode": True, "base_model_name_or_path": ""}
        view.write_json(f"{link.name}/{CONFIG_NAME}", kept)
        view.link(f"{link.name}/{weights.name}", weights)
        links.append(link)
    return links


def merge_adapters(model: Any, folders: list[Path]) -> Any:
    """Merge adapters into a model of transformers, one after the other."""
    if not folders:
        return model
    try:
        from peft import PeftModel
    except ImportError as error:
        raise NoWitnessError("peft, which would merge its adapter, is not installed") from error
    with witnessing("adapter"):
        for folder in folders:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.eval()
