"""Carry a plan out: read rows, encode them, write them, hash what was written, commit."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from cgconvert.checkpoint.checkpoint import Checkpoint
from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.manifest import Manifest, digest_of, file_sha256, libraries, manifest_path
from cgconvert.stream.commit import Staging
from cgconvert.stream.plan import FilePlan, Item, Plan
from cgconvert.stream.progress import Progress, Silent

__all__ = ["check", "execute", "free_space"]


def free_space(output: Path) -> int:
    """Bytes free on the disk that will hold `output`."""
    place = Path(os.path.abspath(output)).parent
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check(plan: Plan, checkpoint: Checkpoint) -> None:
    """Stop what cannot end well before a byte is written.

    Raises UsageError where the output is the input or inside it, OutputError for want of space.
    """
    output, source = plan.output.resolve(), checkpoint.path.resolve()
    folder = source if source.is_dir() else None
    if output == source or (folder is not None and output.is_relative_to(folder)):
        raise UsageError(f"{plan.output}: the output is the input or inside it; choose another -o")
    if source.is_relative_to(output):
        raise UsageError(f"{plan.output}: the input is inside the output; choose another -o")
    free = free_space(plan.output)
    if plan.nbytes > free:
        raise OutputError(
            f"{plan.output}: {plan.nbytes:,} bytes are needed, {free:,} are free; "
            "free some or choose another -o"
        )


def execute(
    plan: Plan, checkpoint: Checkpoint, *, force: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write the artefact and its manifest; the target appears complete or not at all.

    Raises InputError for numbers that cannot be stored, OutputError where writing fails.
    """
    check(plan, checkpoint)
    progress = progress or Silent()
    try:
        with Staging(plan.output, force=force) as staging, ThreadPoolExecutor(1) as pool:
            source = pool.submit(digest_of, checkpoint.files)  # while the disk is busy anyway
            progress.step(f"writing {plan.output}", plan.nbytes)
            for file in plan.files:
                _write_file(staging.content, file, progress)
            manifest = _manifest(plan, checkpoint, staging.content, source, progress)
            target = staging.content if plan.folder else staging.content / plan.output.name
            manifest_path(target).write_bytes(manifest.to_json())
            if plan.folder:
                staging.commit_folder()
            else:
                staging.commit_files()
    except OSError as error:
        raise OutputError(f"{plan.output}: cannot be written: {error.strerror or error}") from error
    finally:
        progress.finish()
    return manifest


def _write_file(root: Path, file: FilePlan, progress: Progress) -> None:
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if file.size:
            os.posix_fallocate(descriptor, 0, file.size)  # a full disk says so here
        _write(descriptor, memoryview(file.header), 0)
        progress.advance(len(file.header))
        for item in file.items:
            _write_item(descriptor, item, progress)
    finally:
        os.close(descriptor)


def _write_item(descriptor: int, item: Item, progress: Progress) -> None:
    rows = item.source.shape[0] if item.source.shape else 1
    broken = lost = 0
    for start in range(0, rows, item.chunk_rows):
        block = item.source.read(slice(start, min(rows, start + item.chunk_rows)))
        broken += _not_finite(block)
        if broken:
            continue  # to the tensor's end, for the count
        for piece, array in zip(item.pieces, _encode(item, block), strict=True):
            lost += _not_finite(array)
            data = _bytes(array)
            _write(descriptor, data, piece.offset + start * piece.row_bytes)
            progress.advance(len(data))
    if broken:
        raise InputError(f"tensor {item.name}: {broken} values are NaN or infinite in the source")
    if lost:
        raise InputError(
            f"tensor {item.name}: {lost} values overflow {item.encoding.name}; choose a wider type"
        )


def _encode(item: Item, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
    try:
        return item.encoding.encode(block)
    except InputError as error:
        raise InputError(f"tensor {item.name}: {error}") from error


def _not_finite(array: torch.Tensor) -> int:
    if not array.dtype.is_floating_point or not array.numel():
        return 0
    low, high = torch.aminmax(array)  # a NaN anywhere is both; far quicker than looking at each
    if torch.isfinite(low) and torch.isfinite(high):
        return 0
    return int(array.numel() - torch.isfinite(array).sum())


def _bytes(array: torch.Tensor) -> memoryview:
    return array.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done


def _manifest(
    plan: Plan,
    checkpoint: Checkpoint,
    content: Path,
    source: Future[dict[str, object]],
    progress: Progress,
) -> Manifest:
    progress.step("hashing", plan.nbytes)
    files = {}
    for file in plan.files:
        files[file.path] = {"bytes": file.size, "sha256": file_sha256(content / file.path)}
        progress.advance(file.size)
    return Manifest(
        name=checkpoint.name,
        format=plan.format,
        type=plan.type,
        source={"layout": checkpoint.layout, "origin": dict(checkpoint.origin), **source.result()},
        options=dict(plan.options),
        files=files,
        libraries=libraries(),
    )
