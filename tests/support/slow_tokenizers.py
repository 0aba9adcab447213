"""Fine-tunes with GPT-2's slow tokenizer, in the files that transformers 4 saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.fine_tunes import fine_tune

__all__ = ["FIRST_ID", "gpt2_fine_tune"]

END = "<|endoftext|>"
FIRST_ID = 3968
"""The id of the first token that is added."""


def gpt2_fine_tune(
    folder: Path,
    pad: str | None = None,
    eos: str | None = None,
    extra_special: Sequence[str] = (),
    **others: Any,
) -> Path:
    """Write a fine-tune whose tokenizer has no runs of white space, as GPT-2's.

    Args:
        folder: The new folder.
        pad: A token that is added as pad_token.
        eos: A token that is added as eos_token.
        extra_special: Special tokens that are added.
        others: See `fine_tune`.
    """
    fine_tune(folder, **others)
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    size = len(_read(folder / "vocab.json"))
    added = [token for token in (pad, eos, *extra_special) if token]
    _write(folder / "added_tokens.json", {token: size + n for n, token in enumerate(added)})
    roles: dict[str, Any] = {"bos_token": END, "eos_token": eos or END, "unk_token": END}
    if pad is not None:
        roles["pad_token"] = pad
    if extra_special:
        roles["additional_special_tokens"] = list(extra_special)
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
