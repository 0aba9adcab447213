"""Turn off what libraries do unasked: telemetry, requests to the network, files in the home.

onnxruntime and onnxruntime-genai for Linux write an id and a data base of events into the user's
cache folder when they are imported, and send the events to a host of Microsoft's. The Hub's client
and transformers send their versions with every request, and ask the Hub about files that are here.
All of it is turned off before a library is imported, in this process and in every process of a
runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cgconvert.io.system.names import empty_home

__all__ = ["forbid_telemetry", "forbid_telemetry_events", "private_environment"]

NO_TELEMETRY: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime and onnxruntime-genai, from 1.24 and 0.12 on
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Variables that turn telemetry off, each read by its library when that is imported."""

OFFLINE: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
"""Variables with which Hugging Face's libraries open files of this machine alone."""

HOMES = (
    "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME",
    "HF_HUB_CACHE", "HF_MODULES_CACHE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "USERPROFILE", "APPDATA", "LOCALAPPDATA",
)  # fmt: skip
"""Variables that name folders in which libraries keep what they want to find again."""

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that no runtime needs to know."""


def forbid_telemetry() -> None:
    """Turn telemetry off in this process; called before a library is imported."""
    os.environ.update(NO_TELEMETRY)


def forbid_telemetry_events(library: Any) -> None:
    """Turn telemetry off in a library that has been imported, where it has a function for that."""
    disable = getattr(library, "disable_telemetry_events", None)
    if disable is not None:
        disable()


def private_environment() -> dict[str, str]:
    """Return the environment of a process of a runtime: no telemetry, no network, no home.

    A user's name is in it, since torch asks the system's data base of users for it otherwise.
    """
    variables = {name: value for name, value in os.environ.items() if name not in SECRETS}
    variables.setdefault("USER", "user")
    return {**variables, **NO_TELEMETRY, **OFFLINE, **dict.fromkeys(HOMES, empty_home())}
