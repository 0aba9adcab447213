"""Download checkpoints and GPT-2's tokenizer with the Hugging Face Hub's own client and cache."""

from __future__ import annotations

import functools
from pathlib import Path

from cgconvert.errors import InputError
from cgconvert.model.tokenizer_files import TOKENIZER_FILES

__all__ = ["GPT2", "GPT2_REVISION", "fetch_checkpoint", "fetch_gpt2_tokenizer"]

GPT2 = "openai-community/gpt2"
"""Repository of GPT-2. CodeGen's tokenizer is GPT-2's with tokens for runs of white space added."""

GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
"""The commit of the repository: the same tokenizer is downloaded every time."""

CONFIG_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def fetch_checkpoint(repository: str, revision: str | None) -> tuple[Path, str]:
    """Return a repository's folder in the Hub's cache, and its commit.

    If the folder is not there or has no weights, configuration, tokenizer and weights are
    downloaded. If the repository has weights in both formats, only safetensors are.

    Args:
        repository: The Hub id, organisation/name.
        revision: Branch, tag or commit; None stands for the default branch.

    Raises:
        InputError: The download failed.
    """
    try:
        folder = _cached_snapshot(repository, revision)
        if folder is None or not _has_weights(folder):
            folder = _download(repository, revision)
    except Exception as error:  # the client's errors have no base class of their own
        raise InputError(
            f"{repository}: not in the Hub cache and cannot be downloaded: {_one_line(error)}"
        ) from error
    return folder, folder.name


def fetch_gpt2_tokenizer() -> Path:
    """Return the folder in the Hub's cache with GPT-2's tokenizer, downloaded if it is not there.

    Raises InputError if the download failed.
    """
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
            f"the checkpoint has no tokenizer and {GPT2} cannot be downloaded: {_one_line(error)}; "
            "give a folder with CodeGen's or GPT-2's tokenizer with `tokenizer`"
        ) from error


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """Return a repository's folder in the Hub's cache, or None; nothing is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except FileNotFoundError:  # the base class of the client's LocalEntryNotFoundError
        return None


def _has_weights(folder: Path) -> bool:
    """Whether the folder has any file of weights."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _download(repository: str, revision: str | None) -> Path:
    """Download configuration, tokenizer and the weights in one format; return their folder."""
    from huggingface_hub import HfApi, snapshot_download

    files = HfApi().list_repo_files(repository, revision=revision)
    weights = "*.safetensors*" if any(f.endswith(".safetensors") for f in files) else "*.bin*"
    patterns = [*CONFIG_FILES, weights]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _one_line(error: BaseException) -> str:
    """The start of an error's message, in one line."""
    return " ".join(str(error).split())[:240] or type(error).__name__
