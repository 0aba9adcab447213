"""Call transformers on a private folder, silently, and with one kind of error."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cgconvert.errors import CgconvertError, in_words
from cgconvert.runtimes.transformers import quiet

__all__ = ["NoWitnessError", "private_folder", "witnessing"]


class NoWitnessError(Exception):
    """transformers cannot be a witness; the message says why, in a line."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder; what cgconvert cannot read for it is no witness."""
    with tempfile.TemporaryDirectory(prefix="cgconvert-") as name:
        try:
            yield Path(name)
        except CgconvertError as error:
            raise NoWitnessError(in_words(str(error))) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NoWitnessError(
                f"its files are not of the form they should be: {reason}"
            ) from error


@contextmanager
def witnessing(part: str) -> Iterator[None]:
    """Turn any exception of transformers into a NoWitnessError: it has no class of its own."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except NoWitnessError:
        raise
    except ImportError as error:
        raise NoWitnessError("transformers is not installed") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NoWitnessError(f"transformers cannot read its {part}: {reason}") from error
