"""Fine-tunes of the embedded model, as people's tools save them: its weights beside other texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.model.tokenizer import END_OF_TEXT

__all__ = ["EOM", "PAD", "SIZE", "TEMPLATE", "fine_tune", "flags"]

EMBEDDED = embedded.path()

SIZE = len(json.loads((EMBEDDED / "vocab.json").read_text("utf-8")))
"""The tokens of the embedded vocabulary, without runs of white space."""

PAD, EOM = "<pad>", "<eom>"

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>: {{ m.content }}\n{% endfor %}<|assistant|>:"


def fine_tune(
    folder: Path,
    *,
    added: tuple[str, ...] = (),
    tokenizer_config: Mapping[str, Any] | None = None,
    special_tokens_map: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    weights: bool = True,
) -> Path:
    """Write a fine-tune whose tokenizer is GPT-2's, in the files of a slow tokenizer.

    The tokens `added` get the ids from SIZE on. `config` changes entries of config.json. Files that
    are None are not written; `texts` are other files by path.
    """
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", *(["model.safetensors"] if weights else [])):
        shutil.copy(EMBEDDED / name, folder / name)
    own_config = json.loads((EMBEDDED / "config.json").read_text("utf-8"))
    contents = {
        "config.json": own_config | {"tokenizer_class": "GPT2Tokenizer"} | dict(config or {}),
        "added_tokens.json": {token: SIZE + n for n, token in enumerate(added)} or None,
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": special_tokens_map,
        "generation_config.json": generation_config,
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    for name, text in (texts or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def flags(content: str, **changed: bool) -> dict[str, Any]:
    """An added token as an object of tokenizer_config.json, with flags."""
    unset = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, **unset, "special": content != END_OF_TEXT, **changed}
