"""Write the files of a tokenizer, as transformers and the tokenizers library read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cgconvert.model.chat_templates import CHAT_TEMPLATE, CHAT_TEMPLATE_FOLDER, DEFAULT

__all__ = ["AddedToken", "TokenizerData", "tokenizer_files", "tokenizer_json"]


@dataclass(frozen=True)
class AddedToken:
    """A token that is searched in the text before BPE.

    Attributes:
        id: Its id.
        content: Its text, spelled as in plain text.
        special: Whether decoders may leave it out, as a mark that is not text.
        lstrip: Whether it takes the white space before it.
        rstrip: Whether it takes the white space after it.
        single_word: Whether it matches only where no letters or digits touch it.
    """

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class TokenizerData(Protocol):
    """The parts of a tokenizer that its files contain; `Tokenizer` describes them."""

    @property
    def vocabulary(self) -> Mapping[str, int]: ...
    @property
    def merges(self) -> Sequence[tuple[str, str]]: ...
    @property
    def added(self) -> tuple[AddedToken, ...]: ...
    @property
    def eos_token_id(self) -> int: ...
    @property
    def roles(self) -> Mapping[str, str]: ...
    @property
    def extra_special_tokens(self) -> Sequence[str]: ...
    @property
    def extra_roles(self) -> Mapping[str, str]: ...
    @property
    def chat_templates(self) -> Mapping[str, str]: ...
    @property
    def tokenizer_class(self) -> str: ...


def tokenizer_files(tokenizer: TokenizerData, n_positions: int) -> dict[str, bytes]:
    """Return the contents of each file of a tokenizer, by its name.

    The model's context is `n_positions` tokens.
    """
    vocabulary = _model_vocabulary(tokenizer)
    roles = tokenizer.roles
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token.id): {"content": token.content, **_flags(token)} for token in tokenizer.added
        },
        **roles,
        **tokenizer.extra_roles,
        **_extra_special(tokenizer),
        **_inline_templates(tokenizer.chat_templates),
        # True, once the default, removes spaces before punctuation (transformers issue 21119).
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
        "padding_side": "left",
        "tokenizer_class": tokenizer.tokenizer_class,
    }
    outside_vocabulary = {
        token.content: token.id for token in tokenizer.added if token.content not in vocabulary
    }
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.merges)
    return {
        "tokenizer.json": _dump(tokenizer_json(tokenizer)),
        "tokenizer_config.json": _dump(config),
        "special_tokens_map.json": _dump(
            {**roles, **tokenizer.extra_roles, **_extra_special(tokenizer)}
        ),
        "vocab.json": _dump(vocabulary, indent=None),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        "added_tokens.json": _dump(outside_vocabulary),
        **_template_files(tokenizer.chat_templates),
    }


def _extra_special(tokenizer: TokenizerData) -> dict[str, list[str]]:
    """Return the entry that lists special tokens without a role; empty if there are none.

    It stands in tokenizer_config.json and special_tokens_map.json, under the name of
    transformers 4, which 5 reads too. Under 5's extra_special_tokens, 4 expects an object.
    """
    tokens = list(tokenizer.extra_special_tokens)
    return {"additional_special_tokens": tokens} if tokens else {}


def _inline_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry chat_template for readers that know no files of templates.

    They are transformers before 4.43, and other libraries.
    """
    if not templates:
        return {}
    if templates.keys() == {DEFAULT}:
        return {"chat_template": templates[DEFAULT]}
    entries = [{"name": name, "template": template} for name, template in templates.items()]
    return {"chat_template": entries}


def _template_files(templates: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of the templates, as transformers 5 saves them."""
    return {
        CHAT_TEMPLATE if name == DEFAULT else f"{CHAT_TEMPLATE_FOLDER}/{name}.jinja": text.encode()
        for name, text in templates.items()
    }


def tokenizer_json(tokenizer: TokenizerData) -> dict[str, Any]:
    """Return the contents of tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token.id, "content": token.content, **_flags(token)} for token in tokenizer.added
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"trim_offsets": True},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level | {"trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _model_vocabulary(tokenizer),
            # A merge as one string is understood by every version of every reader.
            "merges": [f"{left} {right}" for left, right in tokenizer.merges],
        },
    }


def _model_vocabulary(tokenizer: TokenizerData) -> dict[str, int]:
    """The vocabulary of vocab.json and tokenizer.json, by id.

    It has all ids up to that of <|endoftext|> (or of the eos token, if there is none), as GPT-2's
    has. The tokenizers library numbers added tokens after the vocabulary, so an added token with a
    lower id than some token of the vocabulary has to be in it as well.
    """
    ids = {token.content: token.id for token in tokenizer.added}
    end_id = ids.get("<|endoftext|>", tokenizer.eos_token_id)
    last_id = max(end_id, *tokenizer.vocabulary.values())
    inner = {token.content: token.id for token in tokenizer.added if token.id <= last_id}
    return dict(sorted((dict(tokenizer.vocabulary) | inner).items(), key=lambda entry: entry[1]))


def _flags(token: AddedToken) -> dict[str, bool]:
    """The flags of an added token in Hugging Face's files."""
    return {
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": False,
        "special": token.special,
    }


def _dump(value: Any, indent: int | None = 2) -> bytes:
    """JSON as Hugging Face's files have it: UTF-8, with a line end."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
