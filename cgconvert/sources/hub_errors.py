"""Explain why a download from the Hub failed, and where its files can be put instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from cgconvert.model import family

__all__ = ["explain_failure", "where_to_put"]

_NO_NAME = re.compile(
    r"name resolution|name or service not known|nodename nor servname|getaddrinfo|"
    r"no address associated|name does not resolve",
    re.IGNORECASE,
)
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")


def explain_failure(error: BaseException, repository: str, revision: str | None = None) -> str:
    """Say why a request to the Hub failed and what to do.

    The text follows "cannot be downloaded: ".

    Classes of errors are recognized by their names, because the client's versions use different
    HTTP libraries.

    Args:
        error: What the Hub's client raised, or TimeoutError if it did not answer in time.
        repository: The Hub id.
        revision: The branch, tag or commit that was asked for.
    """
    errors = list(_chain(error))
    classes = {kind.__name__ for link in errors for kind in type(link).__mro__}
    status = next(filter(None, map(_status, errors)), 0)
    if "OfflineModeIsEnabled" in classes:
        return f"HF_HUB_OFFLINE is set; {where_to_put(repository, revision)}"
    if "GatedRepoError" in classes:
        return (
            f"it is gated: accept its terms at {_endpoint()}/{repository}, then run "
            "'hf auth login' with a token of that account"
        )
    if "RevisionNotFoundError" in classes:
        return f"it has no branch, tag or commit {revision}; leave out `revision` for main"
    if "RepositoryNotFoundError" in classes or status == 404:
        name = repository.rpartition("/")[2]
        if repository == family.canonical_id(repository) and family.is_published_checkpoint(name):
            place = where_to_put(repository, revision)
            return f"{_endpoint()} does not have it; is that an incomplete mirror? {place}"
        asked = family.did_you_mean(name)
        asked = asked or "check the name; a private one needs 'hf auth login' first"
        return f"there is no such model on the Hub ({_endpoint()}); {asked}"
    if status in (401, 403) or "LocalTokenNotFoundError" in classes:
        return (
            f"the Hub refuses it ({status or 'no token'}); run 'hf auth login' with a token that "
            f"may read {repository}"
        )
    if "HFValidationError" in classes:
        return f"it is no file or folder here, and no Hub id: {_first_line(error)}"
    if status:
        place = where_to_put(repository, revision)
        return f"{_endpoint()} answers {status}; try again later, or {place}"
    return f"{_no_answer(errors, classes)}; {where_to_put(repository, revision)}"


def where_to_put(repository: str, revision: str | None = None) -> str:
    """Say how to bring files of the Hub here if this machine cannot download them.

    A name with a revision always means the Hub, so the folder of a revision is given by its path.
    """
    name = repository.rpartition("/")[2]
    if revision is not None:
        return (
            f"run 'hf download {repository} --revision {revision} --local-dir {name}' where there "
            "is a network and give the path of the folder, without `revision`"
        )
    command = f"run 'hf download {repository} --local-dir {name}' where there is a network"
    if family.is_published_checkpoint(name):
        return f"{command} and put the folder here as ./checkpoints/{name}"
    return f"{command} and give the path of the folder"


def _no_answer(errors: list[BaseException], classes: set[str]) -> str:
    """Say that there was no connection, and why, if it can be seen."""
    proxy = next(filter(None, (os.environ.get(name) or os.environ.get(name.upper())
                               for name in _PROXIES)), "")  # fmt: skip
    through = f" through the proxy {re.sub(r'//[^/@]*@', '//', proxy)}" if proxy else ""
    texts = " ".join(str(link) for link in errors)
    if isinstance(errors[0], TimeoutError) or any("Timeout" in name for name in classes):
        reason = "no answer in time; HF_HUB_ETAG_TIMEOUT=30 waits longer"
    elif _NO_NAME.search(texts):
        reason = "its name is not resolved: no network?"
    elif "refused" in texts.lower():
        reason = "connection refused"
    elif "certificate" in texts.lower():
        reason = "its certificate is not trusted here; SSL_CERT_FILE can name a trusted one"
    else:
        reason = _first_line(errors[-1])
    return f"{_endpoint()} cannot be reached{through} ({reason})"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _status(error: BaseException) -> int:
    """The HTTP status of an error, 0 if it has none."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _first_line(error: BaseException) -> str:
    """The start of an error's message, in one line."""
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
