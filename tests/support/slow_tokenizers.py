"""Fine-tunes with GPT-2's slow tokenizer, in the files that transformers 4 saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.fine_tunes import fine_tune

__all__ = ["gpt2_fine_tune"]

END = "<|endoftext|>"


def gpt2_fine_tune(folder: Path, pad: str | None = None) -> Path:
    """Write a fine-tune with GPT-2's slow tokenizer: no runs of white space, and one pad token."""
    fine_tune(folder)
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    roles = {"bos_token": END, "eos_token": END, "unk_token": END}
    size = len(_read(folder / "vocab.json"))
    if pad is not None:
        roles["pad_token"] = pad
        _write(folder / "added_tokens.json", {pad: size})
    _write(folder / "special_tokens_map.json", roles)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    _write(folder / "tokenizer_config.json", roles | settings)
    config = _read(folder / "config.json")
    _write(folder / "config.json", config | {"tokenizer_class": "GPT2Tokenizer"})
    return folder


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
