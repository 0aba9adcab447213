"""Carry a plan out: read rows, encode them, write them, hash what was written, commit.

Chunks of rows are worked on by as many processes as there are cores; the source and every file
written are hashed on threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.parallel import WorkerPool
from cgconvert.io.progress import Progress, Silent
from cgconvert.io.signals import uninterrupted
from cgconvert.io.staging import Staging
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.hashing import StreamingHash, source_digest
from cgconvert.write.journal import START, Journal, key_of
from cgconvert.write.manifest import Manifest, expected, find_manifest, libraries, manifest_path
from cgconvert.write.plan import LazyPlan, Plan, cores, free_space
from cgconvert.write.writer import Job, Writer

__all__ = ["check", "execute"]

SMALL_BYTES = 64 << 20
"""An artefact of fewer bytes is written in less time than processes take to begin and end."""


def check(plan: LazyPlan, *, staged: int = 0) -> None:
    """Refuse a plan that cannot end well, before a byte is written.

    Args:
        plan: The plan.
        staged: Bytes that an interrupted run has already written.

    Raises:
        UsageError: The output is the input, or one lies inside the other.
        OutputError: The disk has too little space.
    """
    output, checkpoint = plan.output.resolve(), plan.source
    location = checkpoint.origin.get("given")
    paths = [checkpoint.path, *checkpoint.files, *([Path(str(location))] if location else [])]
    for path in paths:
        if not path.exists():  # a name of the family, a Hub id
            continue
        source = path.resolve()
        if output == source or (source.is_dir() and output.is_relative_to(source)):
            raise UsageError(
                f"{plan.output}: the output is the input or inside it; choose another `output`"
            )
        if source.is_relative_to(output):
            raise UsageError(
                f"{plan.output}: the input is inside the output; choose another `output`"
            )
    free = free_space(plan.output)
    if plan.nbytes > free + staged:
        raise OutputError(
            f"{plan.output}: {plan.nbytes:,} bytes are needed, {free:,} are free; "
            "free some or choose another `output`"
        )


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write an artefact and its manifest. The target appears complete or not at all.

    Args:
        plan: What to write. Where it is not resolved, it is computed first, beside the target.
        force: Replace an existing target.
        resume: Continue what an interrupted run of the same plan has written, and keep what this
            run has written if it is interrupted too.
        allow_nonfinite: Store NaN, infinities and numbers that overflow the type. They are refused
            otherwise, and always in quantized types.
        progress: Told of bytes written and hashed.

    Returns:
        The manifest, as written.

    Raises:
        InputError: A number cannot be stored, or the source is not what its manifest says.
        OutputError: Writing failed.
        UsageError: The target exists, or is being written by another run.
    """
    progress = progress or Silent()
    stop = threading.Event()
    staging = Staging(plan.output, force=force, resume=resume)
    check(plan, staged=max(0, _size(staging.content)))
    try:
        with ExitStack() as stack:
            with uninterrupted():
                stack.enter_context(staging)
            encoded = not plan.resolved
            plan = plan.resolve(staging.steps, progress)
            job = Job(plan, staging.content, allow_nonfinite)
            with uninterrupted():
                pool = stack.enter_context(_worker_pool(job, plan, encoded))
            background = stack.enter_context(ThreadPoolExecutor(2))
            try:
                journal = _journal(staging, key_of(plan, nonfinite=allow_nonfinite), plan)
                # The source is hashed while the disk is busy anyway.
                digest = background.submit(_digest, plan.source, journal, stop)
                progress.step(f"writing {plan.output}", plan.nbytes)
                with Writer(job, pool, journal, background, progress) as writer:
                    for index, file in enumerate(plan.files):
                        writer.write(index, file)
                    manifest = _manifest(plan, writer.hashes, digest, progress)
            finally:
                stop.set()
            pool.close()
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


def _worker_pool(job: Job, plan: Plan, encoded: bool) -> WorkerPool:
    """Processes, or threads where little is written or matrices are `encoded` already.

    Copying what is encoded keeps no core busy; and computing it has started threads here.
    """
    if cores() == 1 or plan.nbytes < SMALL_BYTES:
        return WorkerPool(job, 1, forked=False)
    return WorkerPool(job, cores(), forked=not encoded)


def _journal(staging: Staging, key: str, plan: Plan) -> Journal:
    """Open the journal of the interrupted run, or begin a new one where files of it are missing."""
    journal = Journal(staging.journal, key)
    begun = plan.files[: journal.place[0] + (journal.place[1:] != (0, 0))]
    sizes = [_size(staging.content / file.path) for file in begun]
    if journal.place == START or sizes != [file.size for file in begun]:
        staging.clear()
        staging.content.mkdir()
        journal.begin()
    return journal


def _digest(checkpoint: Checkpoint, journal: Journal, stop: threading.Event) -> dict[str, Any]:
    digest = source_digest(checkpoint, stop.is_set)
    if not stop.is_set():
        journal.hashed(str(digest["sha256"]), checkpoint.path)
    return digest


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; -1 where there is neither."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else -1


def _manifest(
    plan: Plan,
    hashes: Mapping[str, StreamingHash],
    source: Future[dict[str, Any]],
    progress: Progress,
) -> Manifest:
    progress.step("hashing", plan.nbytes)
    checkpoint, digest = plan.source, source.result()
    _check_source(checkpoint, digest)
    files = {}
    for file in plan.files:
        files[file.path] = {"bytes": file.size, "sha256": hashes[file.path].hexdigest(file.size)}
        progress.advance(file.size)
    return Manifest(
        name=checkpoint.name,
        format=plan.format,
        type=plan.type,
        source={"layout": checkpoint.layout, "origin": dict(checkpoint.origin), **digest},
        options=dict(plan.options),
        files=files,
        libraries=libraries(),
    )


def _check_source(checkpoint: Checkpoint, digest: Mapping[str, Any]) -> None:
    """Raise InputError where the source is an artefact that differs from its own manifest."""
    manifest = find_manifest(checkpoint.path)
    if manifest is None:
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    known = expected(checkpoint.path, manifest)
    for path, entry in zip(checkpoint.files, digest["files"], strict=True):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
        if name in known and known[name].get("sha256") != entry["sha256"]:
            raise InputError(
                f"{path}: is not as it was written: its SHA-256 differs from that in "
                f"{manifest_path(checkpoint.path)}; remove that file if the change is meant"
            )
