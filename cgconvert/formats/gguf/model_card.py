"""The model card of a folder of GGUF files: one README.md for all of them, as on the Hub.

It lies only in the folder that files go to where the user gives no output, and is no part of an
artefact: a file is verified, moved and read without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
from pathlib import Path

from cgconvert.errors import CgconvertError, InputError, UsageError
from cgconvert.escaping import printable
from cgconvert.formats.base import OUT
from cgconvert.formats.model_card import code_span, compose_card
from cgconvert.io.progress import format_bytes
from cgconvert.io.reading import read_bytes
from cgconvert.io.staging import Staging
from cgconvert.io.system.owners import is_users
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.manifest import find_manifest

__all__ = ["default_folder", "model_card", "update_card"]

CARD_NAME = "README.md"

MARK = "<!-- Written by cgconvert, sha256 of the lines above: {} -->\n"
"""The last line of a card. A card whose text was changed since is the user's, and stays."""

_MARKED = re.compile(re.escape(MARK.strip()).replace(r"\{\}", "([0-9a-f]{64})") + r"\n?\Z")

_USE = """\
With llama.cpp, then POST a prompt to `/completion`; this is a model for completion, not for chat:

```sh
llama-server -m {file} -c {context}
```

With Ollama:

```sh
cat > Modelfile <<'END'
FROM ./{file}
TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"
PARAMETER num_ctx {context}
END
ollama create {name} -f Modelfile
ollama run {name} "def hello_world():"
```

With LM Studio: `lms import {file}`

| file | type | size |
|---|---|---|
{table}"""


def default_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder that files of a model go to if the user gives no output."""
    return OUT / checkpoint.name / "gguf"


def model_card(checkpoint: Checkpoint, files: dict[str, tuple[str, int]]) -> str:
    """Create the card of a folder.

    Args:
        checkpoint: The source of the files.
        files: The type and the bytes of each file, by its name.
    """
    geometry = checkpoint.geometry
    rows = [
        f"| {code_span(n)} | {type_} | {format_bytes(size)} |\n"
        for n, (type_, size) in files.items()
    ]
    smallest = min(files, key=lambda name: files[name][1])
    use = _USE.format(
        file=shlex.quote(printable(smallest)),
        context=geometry.n_positions,
        name=re.sub(r"[^a-z0-9._-]+", "-", checkpoint.name.lower()),
        table="".join(rows),
    )
    types = list(dict.fromkeys(type_ for type_, _ in files.values()))
    card = compose_card(
        checkpoint.name,
        geometry,
        checkpoint.tokenizer,
        library="gguf",
        weights="llama.cpp runs the files as its architecture phi2.",
        stored_type=", ".join(types),
        use=use,
        known_as=checkpoint.known_as,
    )
    return card + "\n" + MARK.format(hashlib.sha256(card.encode()).hexdigest())


def update_card(checkpoint: Checkpoint, output: Path) -> None:
    """Write the card of a file's folder anew, if it is the default folder and the card is ours.

    A card that cannot be written is left out: the file is complete without.
    """
    folder = output.parent
    if folder != default_folder(checkpoint):
        return
    card = folder / CARD_NAME
    files = {}
    for path in sorted(folder.glob("*.gguf")):
        with contextlib.suppress(InputError, OSError):
            manifest = find_manifest(path)
            if manifest is not None and manifest.name == checkpoint.name:
                files[path.name] = manifest.type, path.stat().st_size
    if files:
        with contextlib.suppress(CgconvertError), Staging(card, EarlierCard()) as staging:
            text = model_card(checkpoint, files)
            (staging.content / card.name).write_text(text, encoding="utf-8")
            staging.commit_files()


class EarlierCard:
    """A guard that lets a card replace an earlier card of this user's, as it was written."""

    def check(self, output: Path) -> bool:
        """Whether an earlier card lies at `output`; raises UsageError if anything else does."""
        if not os.path.lexists(output):
            return False
        if not self.is_own(output):
            raise UsageError(f"{output}: is not as cgconvert wrote it")
        return True

    def is_own(self, path: Path) -> bool:
        """Whether a card is as it was written."""
        if path.is_symlink() or not path.is_file() or not is_users(path.lstat()):
            return False
        try:
            text = read_bytes(path).decode()
        except (InputError, UnicodeError):
            return False
        mark = _MARKED.search(text)
        if mark is None:
            return False
        return hashlib.sha256(text[: mark.start() - 1].encode()).hexdigest() == mark[1]
