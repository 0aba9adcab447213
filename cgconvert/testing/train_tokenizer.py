"""Train a tokenizer laid out as CodeGen's: byte-level BPE, `<|endoftext|>`, white-space runs.

The merges come first, then end-of-text, then one token for each run of white space, then rows of
the embedding without a token, as the published models have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

__all__ = ["base_size", "encode", "token_bytes", "train_tokenizer", "write_json", "write_tokenizer"]

END = "<|endoftext|>"
WHITE_SPACE = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
"""CodeGen's own runs: the longest first, spaces before tabs."""


def base_size(vocab_size: int) -> int:
    """Return the number of base tokens, END included, for a vocabulary of `vocab_size` rows.

    It is a multiple of 64 that leaves at least 64 rows without a token, as CodeGen has 905.
    Raises ValueError where no room is left for merges.
    """
    size = (vocab_size - len(WHITE_SPACE) - 64) // 64 * 64
    if size <= 257:
        raise ValueError(f"a vocabulary of {vocab_size} rows leaves no room for merges")
    return size


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer laid out as CodeGen's, with fewer ids than `vocab_size`.

    Raises ValueError where `vocab_size` is too small or the text too poor in pairs to fill it.
    """
    size = base_size(vocab_size)
    learner = Tokenizer(models.BPE())
    # The added tokens take the runs of white space before BPE sees them, so merges of such runs
    # would be rows that are never used: BPE learns from the text without them.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" {2,}|\t{2,}"), behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    learner.train_from_iterator(
        documents,
        BpeTrainer(
            vocab_size=size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"]
    if len(vocab) != size - 1:
        raise ValueError(f"the text gives {len(vocab)} tokens, {size - 1} are needed")
    vocab[END] = size - 1
    merges = [tuple(m) for m in model["merges"]]
    result = Tokenizer(
        models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    result.post_processor = processors.ByteLevel(trim_offsets=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(END, normalized=True, special=True)])
    result.add_tokens([AddedToken(t, normalized=True, special=False) for t in WHITE_SPACE])
    return result


def write_tokenizer(tokenizer: Tokenizer, folder: Path, n_positions: int) -> None:
    """Write the six files of a CodeGen tokenizer into `folder`, which must exist."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ends = {"bos_token": END, "eos_token": END, "unk_token": END}
    write_json(folder / "special_tokens_map.json", ends)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CodeGenTokenizer",
            "model_max_length": n_positions,
            **ends,
            "add_prefix_space": False,
        },
    )
    added = {token: tokenizer.token_to_id(token) for token in WHITE_SPACE}
    write_json(folder / "added_tokens.json", added)


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Return the UTF-8 bytes that each id stands for: int64 [vocab_size], 0 for END and padding."""
    sizes = np.zeros(vocab_size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        # In the byte-level alphabet every character is one byte.
        sizes[number] = 0 if token == END else len(token)
    return sizes


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Return the ids of END, document, END, document, …, END: uint16 [tokens]."""
    end = tokenizer.token_to_id(END)
    pieces = [np.array([end], dtype=np.uint16)]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        pieces.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(pieces)


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON with a newline at the end."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
