"""Fine-tunes of the embedded model as people publish them, made from its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from cgconvert import embedded

__all__ = ["CHATML", "POSITIONS", "edit_weights", "fine_tune", "gpt2_fine_tune"]

POSITIONS = 96
"""How much of the model's context is used, to take less time."""

END = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>:{% endif %}"
)


def fine_tune(
    folder: Path,
    *,
    eos: str | None = None,
    added: tuple[str, ...] = (),
    template: str | None = None,
    template_file: bool = True,
    generation: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Path:
    """Write a fine-tune with CodeGen's own tokenizer, as transformers 5 saves it.

    Args:
        folder: Where it is written.
        eos: A token that is added and ends the model's texts.
        added: Special tokens that are added.
        template: The chat template.
        template_file: Whether the template has a file of its own, as transformers 5 writes it.
        generation: Entries of generation_config.json beside the ids.
        roles: Tokens of other roles, such as {"pad_token": "<pad>"}.
    """
    _copy_model(folder)
    data = _read(folder / "tokenizer.json")
    size = len(data["model"]["vocab"] | {t["content"]: t["id"] for t in data["added_tokens"]})
    tokens = [*([eos] if eos else []), *added]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] += [
        {"id": size + n, "content": token, **flags, "special": True}
        for n, token in enumerate(tokens)
    ]
    _write(folder / "tokenizer.json", data)
    config: dict[str, Any] = {
        "tokenizer_class": "CodeGenTokenizer",
        "bos_token": END,
        "eos_token": eos or END,
        "unk_token": END,
        "model_max_length": POSITIONS,
        **(roles or {}),
    }
    if added:
        config["additional_special_tokens"] = list(added)
    if template is not None and template_file:
        (folder / "chat_template.jinja").write_text(template)
    elif template is not None:
        config["chat_template"] = template
    _write(folder / "tokenizer_config.json", config)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()
    end = next(t["id"] for t in data["added_tokens"] if t["content"] == (eos or END))
    ids = {"bos_token_id": end, "eos_token_id": end}
    _write(folder / "generation_config.json", ids | dict(generation or {}))
    _write(folder / "config.json", _read(folder / "config.json") | ids)
    return folder


def gpt2_fine_tune(folder: Path, pad: str | None = None) -> Path:
    """Write a fine-tune with GPT-2's slow tokenizer: no runs of white space, and one pad token."""
    _copy_model(folder)
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink()
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


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a folder's model.safetensors in place."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def _copy_model(folder: Path) -> None:
    shutil.copytree(embedded.path(), folder)
    config = _read(folder / "config.json") | {"n_positions": POSITIONS, "n_ctx": POSITIONS}
    _write(folder / "config.json", config)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
