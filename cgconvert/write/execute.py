"""Carry a plan out: read rows, encode them, write them, hash what was written, commit.

Chunks are worked on by as many processes as there are cores; the source and every file written
are hashed on threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.progress import Progress, Silent
from cgconvert.io.staging import Staging
from cgconvert.io.uninterrupted import uninterrupted
from cgconvert.model.checkpoint import Checkpoint
from cgconvert.write.crew import WorkerPool
from cgconvert.write.follow import StreamingHash
from cgconvert.write.journal import START, Journal, key_of
from cgconvert.write.manifest import (
    Manifest,
    digest_of,
    expected,
    find_manifest,
    libraries,
    manifest_path,
)
from cgconvert.write.plan import LazyPlan, Plan, free_space
from cgconvert.write.writer import Job, Writer

__all__ = ["check", "execute"]


def check(plan: LazyPlan, *, staged: int = 0) -> None:
    """Stop what cannot end well before a byte is written.

    Raises UsageError where the output is the input or inside it, OutputError for want of space;
    `staged` bytes are there from an interrupted run.
    """
    output, checkpoint = plan.output.resolve(), plan.source
    given = checkpoint.origin.get("given")
    for path in (checkpoint.path, *checkpoint.files, *([Path(str(given))] if given else [])):
        if not path.exists():  # a name of the family, a Hub id
            continue
        source = path.resolve()
        if output == source or (source.is_dir() and output.is_relative_to(source)):
            raise UsageError(
                f"{plan.output}: the output is the input or inside it; choose another -o"
            )
        if source.is_relative_to(output):
            raise UsageError(f"{plan.output}: the input is inside the output; choose another -o")
    free = free_space(plan.output)
    if plan.nbytes > free + staged:
        raise OutputError(
            f"{plan.output}: {plan.nbytes:,} bytes are needed, {free:,} are free; "
            "free some or choose another -o"
        )


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the artefact and its manifest; the target appears complete or not at all.

    A plan that is not resolved is computed first, beside the target.

    `resume` takes over what an interrupted run of the same plan has written. Unless
    `allow_nonfinite`, NaN, infinities and numbers too large for the type are refused; in quantized
    types always. Raises InputError for numbers that cannot be stored and for a source that is not
    what its manifest says, OutputError where writing fails.
    """
    progress = progress or Silent()
    stop = threading.Event()
    staging = Staging(plan.output, force=force, resume=resume)
    check(plan, staged=max(0, _size(staging.content)))
    try:
        with ExitStack() as stack:
            with uninterrupted():
                stack.enter_context(staging)
            # Computing a plan encodes its matrices: threads are enough to copy those.
            forked = plan.resolved
            plan = plan.resolve(staging.steps, progress)
            job = Job(plan, staging.content, allow_nonfinite)
            with uninterrupted():
                crew = stack.enter_context(WorkerPool(job, plan, forked))
            beside = stack.enter_context(ThreadPoolExecutor(2))
            try:
                journal = _journal(staging, key_of(plan, nonfinite=allow_nonfinite), plan)
                # The source is hashed while the disk is busy anyway.
                source = beside.submit(_digest, plan.source, journal, stop)
                progress.step(f"writing {plan.output}", plan.nbytes)
                with Writer(job, crew, journal, beside, progress) as writer:
                    for number, file in enumerate(plan.files):
                        writer.write(number, file)
                    manifest = _manifest(plan, writer.hashes, source, progress)
            finally:
                stop.set()
            crew.close()  # from here on all is done but the renames
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


def _journal(staging: Staging, key: str, plan: Plan) -> Journal:
    """The journal of the interrupted run where it and its files are there, else a new one."""
    journal = Journal(staging.journal, key)
    begun = plan.files[: journal.place[0] + (journal.place[1:] != (0, 0))]
    sizes = [_size(staging.content / file.path) for file in begun]
    if journal.place == START or sizes != [file.size for file in begun]:
        staging.clear()
        staging.content.mkdir()
        journal.begin()
    return journal


def _digest(checkpoint: Checkpoint, journal: Journal, stop: threading.Event) -> dict[str, Any]:
    digest = digest_of(checkpoint.files, stop.is_set)
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
    """Where the source is an artefact, its files have to be what its manifest says."""
    manifest = find_manifest(checkpoint.path)
    if manifest is None:
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    known = expected(checkpoint.path, manifest)
    for path, now in zip(checkpoint.files, digest["files"], strict=True):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
        if name in known and known[name].get("sha256") != now["sha256"]:
            raise InputError(
                f"{path}: is not as it was written: its SHA-256 differs from that in "
                f"{manifest_path(checkpoint.path)}; remove that file if the change is meant"
            )
