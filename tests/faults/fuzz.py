"""Runs parsers and commands on random input: a right result or an error of one line, in time.

    python -m tests.faults.fuzz --seconds 600

gives every target its time, in turn. A target is a parser (parser_targets.py), or a kind of input
of whole commands (command_targets.py). Input that breaks one is kept in tests/faults/corpus/, that
of a parser shortened. `test_fuzz.py` drives the same targets with hypothesis and runs the corpus.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from tests.faults.command_folder import CommandFolder
from tests.faults.command_targets import COMMAND_TARGETS
from tests.faults.mutated_bytes import Choose
from tests.faults.parser_targets import PARSERS, ParserFolder
from tests.faults.server import Server

__all__ = ["CORPUS"]

TARGETS = (*PARSERS, *COMMAND_TARGETS)

CORPUS = Path(__file__).parent / "corpus"

Make = Callable[[Choose], bytes]
Check = Callable[[bytes], None]


def shortened(check: Check, raw: bytes, kind: type[BaseException]) -> bytes:
    """Remove bytes while the same error still occurs, for a minute at most."""
    until, step = time.monotonic() + 60, len(raw) // 2
    while step and time.monotonic() < until:
        place = 0
        while place < len(raw) and time.monotonic() < until:
            shorter = raw[:place] + raw[place + step :]
            try:
                check(shorter)
            except BaseException as error:
                if isinstance(error, kind):
                    raw = shorter
                    continue
            place += step
        step //= 2
    return raw


def fuzz(name: str, make: Make, check: Check, seconds: float, seed: int, *, shorten: bool) -> int:
    """Try inputs for some seconds; keep the first of each kind that fails. Return their number."""
    chance, until, count = random.Random(f"{seed} {name}"), time.monotonic() + seconds, 0
    kinds: Counter[str] = Counter()
    while time.monotonic() < until:
        raw = make(chance.randint)
        count += 1
        try:
            check(raw)
        except Exception as error:
            label = re.sub(r"\d+|'[^']*'", "", f"{type(error).__name__}: {error}")[:80]
            kinds[label] += 1
            if kinds[label] > 1:
                continue
            if shorten:
                raw = shortened(check, raw, type(error))
            kept = CORPUS / name / hashlib.sha256(raw).hexdigest()[:12]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(raw)
            click.echo(f"{name}: {error}: {kept}")
    click.echo(f"{name}: {count} inputs, {len(kinds)} kinds of failure")
    return len(kinds)


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="For each target.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="Only these.")
@click.option("--seed", default=0, show_default=True)
def main(seconds: float, targets: tuple[str, ...], seed: int) -> None:
    """Exit with 1 if something broke; the inputs are then in tests/faults/corpus."""
    broken, chosen = 0, targets or TARGETS
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CGCONVERT_CACHE"] = f"{folder}/cache"
        parsers = ParserFolder(Path(folder) / "parsers")
        for name in filter(PARSERS.__contains__, chosen):
            make, check = partial(parsers.make, name), partial(parsers.check, name)
            broken += fuzz(name, make, check, seconds, seed, shorten=True)
        server = Server()
        commands = CommandFolder(Path(folder) / "commands", server)
        for name in filter(COMMAND_TARGETS.__contains__, chosen):
            target = COMMAND_TARGETS[name]
            make, check = (
                partial(target.make, target.valid(commands)),
                partial(target.check, commands),
            )
            broken += fuzz(name, make, check, seconds, seed, shorten=False)
        server.close()
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
