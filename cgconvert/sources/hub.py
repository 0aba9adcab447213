"""Checkpoints and tokenizers from the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

import functools
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.model.tokenizer_files import TOKENIZER_FILES

__all__ = ["GPT2", "GPT2_REVISION", "fetch_checkpoint", "fetch_tokenizer"]

GPT2 = "openai-community/gpt2"
"""CodeGen's tokenizer is this one with white-space tokens added."""

GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"

CONFIG = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def fetch_checkpoint(repository: str, revision: str | None) -> tuple[Path, str]:
    """Return a repository's folder in the Hub cache and its commit; download what is missing.

    Only weights, configuration and tokenizer are downloaded, and of weights in two formats only
    safetensors. Raises InputError where that fails.
    """
    try:
        folder = _cached(repository, revision)
        if folder is None or not _has_weights(folder):
            folder = _download(repository, revision)
    except Exception as error:  # the client's errors have no common base
        raise InputError(
            f"{repository}: not in the Hub cache and cannot be downloaded: {_reason(error)}"
        ) from error
    return folder, folder.name


def fetch_tokenizer() -> Path:
    """Return the folder with GPT-2's tokenizer. Raises InputError where it cannot be downloaded."""
    from huggingface_hub import snapshot_download

    snapshot = functools.partial(
        snapshot_download, GPT2, revision=GPT2_REVISION, allow_patterns=list(TOKENIZER_FILES)
    )
    try:
        try:
            folder = Path(snapshot(local_files_only=True))
            if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
                return folder
        except FileNotFoundError:
            pass
        return Path(snapshot())
    except Exception as error:
        raise InputError(
            f"the checkpoint has no tokenizer and {GPT2} cannot be downloaded: {_reason(error)}; "
            "give a folder with CodeGen's or GPT-2's tokenizer with `tokenizer`"
        ) from error


def _cached(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except FileNotFoundError:  # LocalEntryNotFoundError is one
        return None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    files = HfApi().list_repo_files(repository, revision=revision)
    kind = "*.safetensors*" if any(f.endswith(".safetensors") for f in files) else "*.bin*"
    patterns = [*CONFIG, kind]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
