"""Links out of a folder, and what messages say of files that are not of the expected kind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cgconvert import embedded
from tests.faults.server import Server

SECRET = "$6$5h4d0wSalt$5h4d0wH4sh"
SHADOW = f"root:{SECRET}:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n"
"""What a file that the user can read and a stranger cannot may hold."""

KINDS: dict[str, str] = {
    "shadow": SHADOW,
    "one word": SECRET,
    "quoted": f"'{SECRET}' x\n",
    "alias": f"*{SECRET}\n",
    "tag": f"!{SECRET}!x y\n",
    "mapping": f"password: {SECRET}\n{SECRET}: x\n",
    "list": f"- {SECRET}\n",
    "JSON": json.dumps({SECRET: SECRET}),
    "JSON list": json.dumps([SECRET]),
    "JSON cut": json.dumps({SECRET: SECRET})[:-1],
    "JSON twice": f'{{"{SECRET}": 1,\n "{SECRET}": 2}}',
    "JSON and more": f'{{"a": 1}} {SECRET}',
}

PLACES: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "recipe": lambda secret: ("run", str(secret)),
    "config": lambda secret: ("to-gguf", "source", "--dry-run", "--config", str(secret)),
    "tokenizer": lambda secret: ("to-gguf", "source", "--dry-run", "--tokenizer", str(secret)),
    "imatrix": lambda secret: (
        "quantize", "source", "--dry-run", "--type", "Q4_0", "--effort", "fast", "--imatrix",
        str(secret),
    ),
    "source": lambda secret: ("inspect", str(secret)),
    "artefact": lambda secret: ("verify", str(secret), "--reference", "source"),
}  # fmt: skip

NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    shutil.copytree(embedded.path(), tmp_path / "work" / "source")
    path = folder / "secret"
    path.write_text(SHADOW)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_quotes_nothing_of_a_file_of_another_kind(
    kind: str, server: Server, secret: Path
) -> None:
    secret.write_text(KINDS[kind])
    work = secret.parents[1] / "work"
    for place, arguments in PLACES.items():
        outcome = server.run(*arguments(secret), cwd=work)
        assert outcome.code in (2, 3), (place, outcome.err)
        assert outcome.err.count("\n") == 1, (place, outcome.err)
        assert SECRET not in outcome.out + outcome.err, place
    for name in NAMES[list(KINDS).index(kind) % 2 :: 2]:
        kept = work / "source" / name
        content = kept.read_bytes() if kept.exists() else None
        kept.write_text(KINDS[kind])
        outcome = server.run("to-gguf", "source", "--dry-run", cwd=work)
        assert SECRET not in outcome.out + outcome.err, name
        assert outcome.code in (0, 3), (name, outcome.err)
        kept.unlink() if content is None else kept.write_bytes(content)


@pytest.mark.parametrize("name", [*NAMES, "model.safetensors"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_link_out_of_the_folder_is_not_followed(
    name: str, is_absolute: bool, server: Server, secret: Path
) -> None:
    source = secret.parents[1] / "work" / "source"
    link = source / name
    link.unlink(missing_ok=True)
    link.symlink_to(secret if is_absolute else os.path.relpath(secret, source))
    outcome = server.run("to-gguf", "source", "-o", "x.gguf", cwd=source.parent)
    assert outcome.code == 3, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert f"source/{name}: is a link out of its folder" in outcome.err
    assert sorted(os.listdir(source.parent)) == ["source"]


def test_links_within_the_folder_and_a_named_link_are_followed(
    server: Server, secret: Path
) -> None:
    work = secret.parents[1] / "work"
    source = work / "source"
    (source / "config.json").rename(source / "real.json")
    (source / "config.json").symlink_to("real.json")
    source.rename(secret.parent / "real")
    source.symlink_to("../elsewhere/real")
    outcome = server.run("inspect", "source", cwd=work)
    assert outcome.code == 0, outcome.err
    (work / "file.safetensors").symlink_to("source/model.safetensors")
    shutil.copy(source / "real.json", work / "config.json")
    shutil.copytree(embedded.path(), work / "tokenizer")
    outcome = server.run("inspect", "file.safetensors", "--tokenizer", "tokenizer", cwd=work)
    assert outcome.code in (0, 3), outcome.err
    assert "is a link" not in outcome.err


def hub_layout(source: Path, folder: Path, repository: str = "models--me--mine") -> Path:
    """Lay the files of a source into the layout of the Hub's cache; return the snapshot."""
    snapshot, blobs = folder / repository / "snapshots" / ("0" * 40), folder / repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        blob = blobs / f"{number:040x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_links_of_the_hubs_cache_are_followed_and_no_others(server: Server, secret: Path) -> None:
    snapshot = hub_layout(embedded.path(), secret.parent)
    work = secret.parents[1] / "work"
    outcome = server.run("inspect", str(snapshot), cwd=work)
    assert outcome.code == 0, outcome.err
    config = snapshot / "config.json"
    blob = Path(os.path.realpath(config))
    other = hub_layout(embedded.path(), secret.parent, "models--you--yours") / "config.json"
    for target in (secret, other, blob.parent / ".." / ".." / "secret"):
        config.unlink()
        config.symlink_to(target)
        outcome = server.run("inspect", str(snapshot), cwd=work)
        assert (outcome.code, "out of its folder" in outcome.err) == (3, True), outcome.err
    config.unlink()
    config.symlink_to(f"../../blobs/{blob.name}")
    blob.unlink()
    blob.symlink_to(secret)  # a blob that is a link itself
    outcome = server.run("inspect", str(snapshot), cwd=work)
    assert (outcome.code, "out of its folder" in outcome.err) == (3, True), outcome.err
