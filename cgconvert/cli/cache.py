"""`cgconvert cache`."""

from __future__ import annotations

import itertools
import time

import click

from cgconvert.api.caching import CacheItem, cached
from cgconvert.cli.text import age
from cgconvert.errors import VerificationError
from cgconvert.escaping import printable
from cgconvert.io.cache import KINDS, UNPACKED, cache_folder
from cgconvert.io.progress import format_bytes

__all__ = ["run"]


def run(action: str) -> None:
    """List, verify or clear the cache; raises VerificationError if an entry is void."""
    items = cached(check=action == "verify", delete=action == "clear")
    folder = printable(str(cache_folder()))
    own = [item for item in items if item.is_own]
    for item in items:
        if item.fault:
            state = "void" if item.is_own else "left alone"
            click.echo(f"{state}: {printable(str(item.path))}: {item.fault}")
    total = format_bytes(sum(item.nbytes for item in own))
    if action == "clear":
        click.echo(f"removed {_count(len(own), 'item')}, {total}, from {folder}")
        return
    if not own:
        click.echo(f"{folder} holds nothing of cgconvert's")
        return
    if action == "list":
        _print_list(own)
        click.echo(f"{total} in {folder}; `cgconvert cache clear` removes it")
        return
    void = sum(bool(item.fault) for item in own)
    click.echo(f"{_count(len(own) - void, 'item')} in {folder} as you wrote them")
    if void:
        raise VerificationError(
            f"{folder}: {_count(void, 'item')} void: not used, and made again when needed; "
            "`cgconvert cache clear` removes everything"
        )


def _print_list(items: list[CacheItem]) -> None:
    """Print a line for each kind, and for each unpacked tarball, with sizes and ages."""
    for kind, group in itertools.groupby(items, key=lambda item: item.kind):
        of_kind = list(group)
        title = KINDS.get(kind, "what a killed run has left")
        click.echo(f"{title}: {_count(len(of_kind), 'item')}, {_size_and_age(of_kind)}")
        if kind == UNPACKED:
            for item in of_kind:
                click.echo(f"  {printable(item.path.name)}  {_size_and_age([item])}")


def _size_and_age(items: list[CacheItem]) -> str:
    ages = [age(time.time() - item.modified) for item in items]  # the newest first
    ages_shown = ages[0] if ages[0] == ages[-1] else f"{ages[0]} to {ages[-1]}"
    return f"{format_bytes(sum(item.nbytes for item in items))}, {ages_shown} old"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
