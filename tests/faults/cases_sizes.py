"""Files that are small to write and would cost gigabytes or minutes to read."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from tests.faults.matrix import ARTEFACT_COMMANDS, SOURCE_COMMANDS, Case, Damage
from tests.sources.test_gzip_stream import BROKEN as GZIPS

__all__ = ["SIZES"]

LARGEST = (1 << 31) - 1
GENAI_COMMANDS = (*ARTEFACT_COMMANDS, "genai")

OVER_BUDGET_OR_TOKEN = "to read before the work begins|an added token has no .{,60}$"
OVER_BUDGET = "refused: it has .* to read before the work begins"


def hole(size: int, name: str = "") -> Damage:
    """Make a file of this size that takes no space on the disk."""

    def damage(path: Path) -> None:
        file = path / name if name else path
        file.unlink(missing_ok=True)
        file.touch()
        os.truncate(file, size)

    return damage


def lengthen(name: str) -> Damage:
    """Make a file 8 TiB long."""
    return lambda path: os.truncate(path / name if name else path, 8 << 40)


def lengthen_data(path: Path) -> None:
    (data,) = (file for file in path.rglob("*") if file.name.endswith((".data", "_data")))
    os.truncate(data, 8 << 40)


def set_entry(name: str, **entries: Any) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / name).read_text()) if (path / name).exists() else {}
        (path / name).write_text(json.dumps({**content, **entries}))

    return damage


def all_json(make: Callable[[], Any]) -> Damage:
    """Add the same large entry to every JSON file of a model."""

    def damage(path: Path) -> None:
        value = make()
        for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"):
            set_entry(name, zzz=value)(path)

    return damage


def change_tokenizer(change: Callable[[dict[str, Any], int], object]) -> Damage:
    """Change a tokenizer.json; the function also gets the first id that is free."""

    def damage(path: Path) -> None:
        file = path / "tokenizer.json"
        content = json.loads(file.read_text())
        ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
        change(content, max(ids) + 1)
        file.write_text(json.dumps(content))

    return damage


def add_tokens(content: dict[str, Any], first: int) -> None:
    content["added_tokens"] += [
        {"id": first + i, "content": f"<|{i}|>", "special": True} for i in range(300_000)
    ]


def add_vocabulary(content: dict[str, Any], first: int) -> None:
    content["model"]["vocab"].update({f"token{i}": first + i for i in range(700_000)})


def repeat_merges(content: dict[str, Any], _: int) -> None:
    merges = content["model"]["merges"]
    content["model"]["merges"] = (merges * (600_000 // len(merges)))[:600_000]


def long_merges(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    hole(2 << 30, "merges.txt")(path)


def merges_of_lines(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    (path / "merges.txt").write_text("\n" * (40 << 20))


def shards(count: int, tensors: int) -> Damage:
    """Replace the weights by so many shards with so many tensors each."""

    def damage(path: Path) -> None:
        (path / "model.safetensors").unlink()
        weight_map: dict[str, str] = {}
        for shard in range(count):
            names = [f"{shard}.{i}" for i in range(tensors)]
            header = {
                name: {"dtype": "F16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
                for i, name in enumerate(names)
            }
            raw = json.dumps(header).encode()
            file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
            (path / file).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(2 * tensors))
            weight_map |= dict.fromkeys(names, file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def safetensors_header(path: Path) -> None:
    raw = b'{"a":' + b" " * (100 << 20) + b"1}"
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def zip_directory(path: Path) -> None:
    """Write a directory of 270,000 entries that all name one member."""
    entry = zipfile.ZipInfo("a/data.pkl")
    with zipfile.ZipFile(path / "pytorch_model.bin", "w") as archive:
        archive.writestr(entry, b"")
        archive.filelist *= 270_000


def graph(change: Callable[[onnx.ModelProto], object]) -> Damage:
    def damage(path: Path) -> None:
        (file,) = path.rglob("*.onnx")
        model = onnx.ModelProto.FromString(file.read_bytes())
        change(model)
        file.write_bytes(model.SerializeToString())

    return damage


def add_attributes(model: onnx.ModelProto) -> None:
    for _ in range(500_000):
        model.graph.node[0].attribute.add()


def nest(model: onnx.ModelProto) -> None:
    """Put graphs into each other, each with many nodes."""
    inner = model.graph
    for _ in range(20):
        attribute = inner.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
        inner = attribute.g
        for _ in range(20_000):
            inner.node.add()


def gguf(entries: int, raw: bytes, tensors: int = 0) -> Damage:
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + raw
    return lambda path: path.write_bytes(header + bytes(64))


def gguf_array(kind: int, count: int, item: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, count) + item * count


def tarball(name: str) -> Damage:
    make, _ = GZIPS[name]
    return lambda path: path.write_bytes(make())


RECIPES: dict[str, tuple[Damage, str]] = {
    "2 GiB": (hole(2 << 30), "too large for a recipe"),
    "aliases of aliases": (
        lambda path: path.write_text(
            "a0: &a0 [x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 30))
            + "source: *a29\nsteps: *a29\n"
        ),
        "recipe.yaml:",
    ),
    "brackets": (lambda path: path.write_text("[" * 60_000), "recipe.yaml"),
    "a matrix of 2^4000": (
        lambda path: path.write_text(
            "source: source\nsteps:\n  - matrix: {"
            + ", ".join(f"a{i}: [1, 2]" for i in range(4000))
            + "}\n    to-gguf: {}\n"
        ),
        "recipe.yaml",
    ),
    "6,000 steps": (
        lambda path: path.write_text(f"source: source\nsteps: [{', '.join(['to-gguf'] * 6000)}]\n"),
        "more than 512 steps",
    ),
    "a matrix of 256 and 256 steps": (
        lambda path: path.write_text(
            f"source: source\nmatrix: {{mp-num: [{', '.join(map(str, range(1, 257)))}]}}\n"
            f"steps: [{', '.join(['to-gguf'] * 256)}]\n"
        ),
        "more than 512 steps",
    ),
    "60,000 spaces in a reference": (
        lambda path: path.write_text(
            f'source: source\nsteps:\n  - to-gguf: {{type: "${{{{{" " * 60_000}"}}\n'
        ),
        "recipe.yaml",
    ),
    "5,000 references that do not end": (
        lambda path: path.write_text(
            f'source: "{"${{ matrix." * 5000}"\nmatrix: {{a: [1]}}\nsteps: [to-gguf]\n'
        ),
        "recipe.yaml",
    ),
}

GRAPHS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "500,000 attributes": add_attributes,
    "graphs in graphs": nest,
    "1,500,000 names": lambda model: model.graph.node[0].input.extend([""] * 1_500_000),
    "900,000 functions": lambda model: [model.functions.add() for _ in range(900_000)],
    "2,000,000 dimensions": lambda model: model.graph.initializer[0].dims.extend([1] * 2_000_000),
}

SIZES: dict[str, Case] = {
    "sizes: merges.txt of 2 GiB": Case(
        "safetensors",
        long_merges,
        "2.15 GB, too large",
    ),
    "sizes: 40 million empty merges": Case("safetensors", merges_of_lines, OVER_BUDGET),
    "sizes: objects in every JSON": Case(
        "safetensors", all_json(lambda: [{}] * 2_200_000), OVER_BUDGET
    ),
    "sizes: keys in every JSON": Case(
        "safetensors", all_json(lambda: {f"k{i}": i for i in range(500_000)}), OVER_BUDGET_OR_TOKEN
    ),
    "sizes: texts in every JSON": Case(
        "safetensors", all_json(lambda: "x" * (47 << 20)), OVER_BUDGET_OR_TOKEN
    ),
    "sizes: 300,000 added tokens": Case(
        "safetensors", change_tokenizer(add_tokens), OVER_BUDGET
    ),
    "sizes: 700,000 tokens": Case(
        "safetensors", change_tokenizer(add_vocabulary), "more than 524,288"
    ),
    "sizes: 600,000 merges": Case(
        "safetensors", change_tokenizer(repeat_merges), "a merge is given twice"
    ),
    "sizes: 300,000 added tokens beside": Case(
        "safetensors",
        set_entry("added_tokens.json", **{f"<|{i}|>": 5000 + i for i in range(300_000)}),
        OVER_BUDGET,
    ),
    "sizes: 100 shards of 3000 tensors": Case("safetensors", shards(100, 3000), "too large"),
    "sizes: 1000 shards of one tensor": Case("safetensors", shards(1000, 1), "has no transformer"),
    "sizes: a header of 100 MB": Case("safetensors", safetensors_header, "would be longer"),
    "sizes: a zip directory of 270,000 entries": Case("torch", zip_directory, OVER_BUDGET),
    **{
        f"sizes: {file} of 8 TiB": Case(kind, damage, message, commands=commands, code=code)
        for file, kind, damage, message, commands, code in (
            ("safetensors", "safetensors", lengthen("model.safetensors"), "trailing bytes",
             SOURCE_COMMANDS, 3),
            ("torch", "torch", lengthen("pytorch_model.bin"), "zip archive", SOURCE_COMMANDS, 3),
            ("GGUF", "gguf", lengthen(""), "follow the last tensor", ARTEFACT_COMMANDS, 3),
            # Only what a manifest names, with the size that it names, is hashed.
            ("ONNX data", "onnx", lengthen_data, "a hole", ("verify",), 3),
            ("a file beside", "hf", hole(8 << 40, "extra"), "", ("verify",), 0),
            ("a file beside a graph", "onnx", hole(8 << 40, "x"), "", ("verify",), 0),
        )
    },
    **{
        f"sizes: a graph with {name}": Case(
            "onnx", graph(change), "more nodes and tensors|GB|MB", commands=GENAI_COMMANDS
        )
        for name, change in GRAPHS.items()
    },
    **{
        f"sizes: a GGUF with {name}": Case("gguf", damage, message, commands=ARTEFACT_COMMANDS)
        for name, damage, message in (
            ("3,000,000 strings", gguf(1, gguf_array(8, 3_000_000, bytes(8))), "strings, more"),
            ("900,000 strings", gguf(1, gguf_array(8, 900_000, bytes(8))), "."),
            ("30,000,000 numbers", gguf(1, gguf_array(0, 30_000_000, b"a")), "."),
            ("60,000 entries", gguf(60_000, b"".join(
                struct.pack("<Q", 5) + b"%05d" % i + struct.pack("<IB", 0, 1)
                for i in range(60_000))), "."),
            ("4,000,000,000 tensors", gguf(0, b"", 4_000_000_000), "more than"),
        )
    },
    **{
        f"sizes: gzip with {name}": Case(
            "tarball", tarball(name), "not a readable .tar.gz", "source.tar.gz"
        )
        for name in ("a name of 20 MB", "5 million empty members", "blocks without data")
    },
    "sizes: an artefact with its n_positions": Case(
        "hf", set_entry("config.json", n_positions=LARGEST, n_ctx=LARGEST), ".",
        commands=("generate",),
    ),
    "sizes: a graph with another n_positions": Case(
        "onnx", set_entry("config.json", n_positions=LARGEST), "must be from 1", "source",
        ("inspect", "generate"),
    ),
    **{
        f"sizes: a recipe with {name}": Case("recipe", damage, message, "recipe.yaml", ("run",))
        for name, (damage, message) in RECIPES.items()
    },
}  # fmt: skip
