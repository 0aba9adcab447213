"""Download checkpoints and GPT-2's tokenizer with the Hugging Face Hub's own client and cache."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from cgconvert.errors import CgconvertError, InputError, first_few
from cgconvert.io.telemetry import forbid_telemetry
from cgconvert.model.architectures import explain_config
from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.download import shown_download
from cgconvert.sources.hub_errors import explain_failure
from cgconvert.sources.no_model import explain_pipeline
from cgconvert.sources.snapshot import (
    description_names,
    has_tokenizer,
    missing_files,
    snapshot_of,
    weight_names,
)
from cgconvert.sources.weight_files import INDEX_SUFFIX, explain_no_weights, list_names, shard_names

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["GPT2", "GPT2_REVISION", "fetch_checkpoint", "fetch_gpt2_tokenizer"]

GPT2 = "openai-community/gpt2"
"""Repository of GPT-2. CodeGen's tokenizer is GPT-2's with tokens for runs of white space added."""

GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
"""The commit of the repository: the same tokenizer is downloaded every time."""


WAIT = 3.0
"""Seconds in which the Hub has to answer the first question, so that a command without a network
ends in five. An answer takes 0.1 to 1."""


def fetch_checkpoint(
    repository: str, revision: str | None, *, needs_tokenizer: bool = True
) -> tuple[Path, str]:
    """Return a repository's folder in the Hub's cache, and its commit.

    If the folder is not there or lacks weights, configuration or tokenizer, these are downloaded.
    If the repository has weights in both formats, only safetensors are.

    Args:
        repository: The Hub id, organisation/name.
        revision: Branch, tag or commit; None stands for the default branch.
        needs_tokenizer: Whether a tokenizer is needed too.

    Raises:
        InputError: The download failed, or the repository has no weights.
    """
    missing: list[str] = []
    try:
        folder = _cached_snapshot(repository, revision)
        missing = missing_files(folder, needs_tokenizer=needs_tokenizer) if folder else []
        if folder is None or missing:
            folder = _download(repository, revision)
    except CgconvertError:
        raise
    except Exception as error:  # the client's errors have no base class of their own
        absent = first_few(missing, 3, separator=", ")
        state = (
            f"its snapshot in the Hub cache lacks {absent}" if missing else "not in the Hub cache"
        )
        reason = explain_failure(error, repository, revision)
        raise InputError(f"{repository}: {state} and cannot be downloaded: {reason}") from error
    return folder, folder.name


def fetch_gpt2_tokenizer() -> Path:
    """Return the folder in the Hub's cache with GPT-2's tokenizer, downloaded if it is not there.

    Raises InputError if the download failed.
    """
    folder = _cached_snapshot(GPT2, GPT2_REVISION)
    if folder is not None and has_tokenizer(set(list_names(folder))):
        return folder
    try:
        _ask(GPT2, GPT2_REVISION)
        return _fetch(GPT2, GPT2_REVISION, TOKENIZER_FILES, {})
    except Exception as error:
        raise InputError(
            f"{GPT2} cannot be downloaded: {explain_failure(error, GPT2)}, with `tokenizer`"
        ) from error


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """Return a repository's folder in the Hub's cache, or None; nothing is downloaded.

    The client's own search takes a folder for incomplete unless it has all files of the repository.
    """
    forbid_telemetry()
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return snapshot_of(folder, revision)


def _download(repository: str, revision: str | None) -> Path:
    """Download configuration, tokenizer and the weights in one format; return their folder.

    Everything comes from the commit that the revision had at the beginning. Raises InputError if
    the repository has no weights, or those of another model.
    """
    model = _ask(repository, revision)
    names = [file.rfilename for file in model.siblings or ()]
    weights = weight_names(names)
    other = explain_pipeline(names) or explain_config(getattr(model, "config", None) or {})
    if other:  # before gigabytes are downloaded
        raise InputError(f"{repository}: {other}")
    if not weights:
        reason = explain_no_weights(names) or (
            f"has no weights for transformers; it has {first_few(names, 5, separator=', ')}"
        )
        raise InputError(f"{repository}: {reason}")
    # With the revision, not its commit: so the cache records which commit it is.
    sizes = {file.rfilename: file.size or 0 for file in model.siblings or ()}
    folder = _fetch(repository, revision, [*weights, *description_names(names)], sizes)
    if folder.name != model.sha:
        raise InputError(f"{repository}: changed while it was downloaded; try again")
    for index in (name for name in weights if name.endswith(INDEX_SUFFIX)):
        place = index.rpartition("/")[0]
        shards = [f"{place}/{shard}".lstrip("/") for shard in shard_names(folder / index)]
        if absent := sorted(set(shards) - set(names)):
            raise InputError(f"{repository}: {index} names {absent[0]}, which is not there")
        _fetch(repository, folder.name, shards, sizes)
    return folder


def _ask(repository: str, revision: str | None) -> ModelInfo:
    """Ask the Hub for a repository's commit and files.

    A name that is not resolved, a dead proxy or a network without a way out may block for minutes,
    and no timeout of the client holds for all of them. So the request runs in a thread, which is
    given up after `WAIT` seconds, or those of HF_HUB_ETAG_TIMEOUT.

    Raises TimeoutError, or what the client raises.
    """
    forbid_telemetry()
    from huggingface_hub import HfApi

    wait = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or WAIT)
    answer: Queue[ModelInfo | Exception] = Queue()

    def request() -> None:
        try:
            answer.put(
                HfApi().model_info(repository, revision=revision, timeout=wait, files_metadata=True)
            )
        except Exception as error:  # raised again below
            answer.put(error)

    Thread(target=request, daemon=True).start()
    try:
        model = answer.get(timeout=wait)
    except Empty:
        raise TimeoutError(f"no answer in {wait:g} s") from None
    if isinstance(model, Exception):
        raise model
    return model


def _fetch(
    repository: str, revision: str | None, names: Sequence[str], sizes: Mapping[str, int]
) -> Path:
    """Download files, whose sizes in bytes are known as far as the Hub tells them.

    Returns the folder of their commit.
    """
    forbid_telemetry()
    from huggingface_hub import snapshot_download

    exact = [glob.escape(name) for name in names]
    with shown_download(repository, sum(sizes.get(name, 0) for name in names)):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=exact))
