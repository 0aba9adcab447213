"""Small fine-tunes: a checkpoint with tokens, chat templates and settings of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cgconvert import embedded
from cgconvert.model.decoder import Geometry
from cgconvert.testing import synthetic

__all__ = ["CHAT", "FIRST_ID", "GEOMETRY", "fine_tune"]

GEOMETRY = Geometry(
    n_layer=1, n_embd=64, n_head=4, rotary_dim=16, n_positions=128, vocab_size=4096, mp_num=4
)

FIRST_ID = 4006
"""The id of a fine-tune's first own token: the embedded tokenizer has those below."""

CHAT = "{% for m in messages %}<|{{ m.role }}|>: {{ m.content }}\n{% endfor %}<|assistant|>:"


def fine_tune(
    folder: Path,
    *,
    tokens: Iterable[str] = (),
    roles: Mapping[str, str] | None = None,
    extra_special: Iterable[str] = (),
    templates: Mapping[str, str] | None = None,
    generation: Mapping[str, Any] | None = None,
    likely: int | None = None,
    geometry: Geometry = GEOMETRY,
) -> Path:
    """Write a random model with the embedded tokenizer and more.

    Args:
        folder: The new folder.
        tokens: Tokens after those of the embedded tokenizer; all are special.
        roles: Tokens by key, such as eos_token.
        extra_special: Special tokens that the tokenizer's configuration lists.
        templates: Chat templates by name; they are written as transformers 5 does.
        generation: Entries of generation_config.json beside the ids of the embedded model.
        likely: The id that the head's bias makes the most likely one everywhere.
        geometry: The sizes of the model.

    Returns:
        The folder.
    """
    state = dict(synthetic.RandomState(geometry, seed=5, sharpness=4))
    if likely is not None:
        state["lm_head.bias"][likely] = 1000.0
    synthetic.write("safetensors", state, geometry, folder.parent, folder.name, embedded.path())
    own = {token: index for index, token in enumerate(tokens, FIRST_ID)}
    _change(
        folder / "tokenizer.json",
        lambda entries: entries["added_tokens"].extend(
            {"id": index, "content": token, **FLAGS} for token, index in own.items()
        ),
    )
    _change(folder / "added_tokens.json", lambda entries: entries.update(own))
    listed = {"additional_special_tokens": list(extra_special)} if extra_special else {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        _change(folder / name, lambda entries: entries.update({**(roles or {}), **listed}))
    for name, template in (templates or {}).items():
        place = "chat_template.jinja"
        if name != "default":
            place = f"additional_chat_templates/{name}.jinja"
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(template)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(dict(generation)))
    return folder


FLAGS = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
}  # fmt: skip


def _change(path: Path, change: Any) -> None:
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))
