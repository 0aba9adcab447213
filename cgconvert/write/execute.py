"""Execute a plan: write its files, hash them and the source, and make the output appear at once.

Worker processes read, encode and write chunks of rows. The source and the written files are hashed
on threads at the same time.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cgconvert.errors import InputError, OutputError, UsageError
from cgconvert.io.file_names import can_exist, is_possible, path_from_here
from cgconvert.io.parallel import WorkerPool
from cgconvert.io.progress import Amount, Progress, SilentProgress, expect_steps, format_bytes
from cgconvert.io.signals import uninterrupted
from cgconvert.io.staging import Staging
from cgconvert.io.system.files import FileIdentity, file_identity
from cgconvert.model.decoder import Checkpoint
from cgconvert.write.hashing import StreamingHash, hash_checkpoint
from cgconvert.write.journal import START, Journal, plan_key, source_identity
from cgconvert.write.known_hashes import remember_sha256
from cgconvert.write.leftovers import disk_bytes, progress_of, steps_folder
from cgconvert.write.manifest import (
    Manifest,
    expected_files,
    find_manifest,
    library_versions,
    manifest_path,
)
from cgconvert.write.ownership import Replacement
from cgconvert.write.plan import LazyPlan, Plan, free_bytes, worker_count
from cgconvert.write.writer import ChunkWriter, PlanWriter

__all__ = ["check_plan", "execute"]

OWN_STEPS = 2
"""Steps of progress of every execution: writing and hashing."""

SMALL_BYTES = 64 << 20
"""An artefact of fewer bytes is written by a thread: starting and ending processes takes longer."""


def check_plan(plan: LazyPlan, *, staging_folder: Path | None = None) -> None:
    """Refuse a plan that is bound to fail, before a byte is written.

    Args:
        plan: The plan.
        staging_folder: Holds what an interrupted run has already written of the output, if one has.

    Raises:
        UsageError: No file can have the name of the output, or the output is the input or in it.
        OutputError: The disk has too little space.
    """
    if not is_possible(plan.output):
        raise UsageError(f"{plan.output}: no file can have such a name; choose another `output`")
    if not can_exist(plan.output):
        raise OutputError(f"{plan.output}: File name too long; choose another `output`")
    output, checkpoint = plan.output.resolve(), plan.source
    location = checkpoint.origin.get("given")
    paths = [checkpoint.path, *checkpoint.files, *([Path(str(location))] if location else [])]
    for path in paths:
        if not path.exists():  # the location may be a model's name or a Hub id
            continue
        source = path.resolve()
        if _holds(source, output):
            raise UsageError(
                f"{plan.output}: the output is the input or inside it; choose another `output`"
            )
        if _holds(output, source):
            raise UsageError(
                f"{plan.output}: the input is inside the output; choose another `output`"
            )
    free = free_bytes(plan.output)
    staged_bytes = disk_bytes(staging_folder) if staging_folder else 0
    if plan.nbytes > free + staged_bytes:
        raise OutputError(
            f"{plan.output}: {format_bytes(plan.nbytes)} are needed, {format_bytes(free)} are "
            "free; free some or choose another `output`"
        )


def execute(
    plan: LazyPlan,
    *,
    force: bool = False,
    keep: bool = True,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write an artefact and its manifest. The output appears complete or not at all.

    Args:
        plan: What to write. A plan that is not resolved is computed first.
        force: Replace an earlier artefact of cgconvert's. Anything else is never replaced.
        keep: Continue what an interrupted run of the same plan has written. If this run is
            interrupted, or the disk fails, keep what it has written for the next.
        allow_nonfinite: Let plain types store NaN, infinities and values that overflow the type.
            If false they are refused; quantized types always refuse them.
        progress: Receives the number of bytes written and hashed.

    Returns:
        The manifest, as written.

    Raises:
        InputError: A value cannot be stored, or the source differs from its own manifest.
        OutputError: Writing failed.
        UsageError: The output exists and may not be replaced, or another run is writing it.
    """
    progress = progress or SilentProgress()
    stop = threading.Event()
    identity = source_identity(plan.source)
    guard = Replacement(force=force, is_folder=plan.is_folder)
    staging = Staging(plan.output, guard, (lambda f: progress_of(f) != "") if keep else None)
    check_plan(plan, staging_folder=staging.folder)
    try:
        with ExitStack() as stack:
            with uninterrupted():
                stack.enter_context(staging)
            was_computed = not plan.resolved
            expect_steps(progress, plan.steps + OWN_STEPS)
            plan = plan.resolve(steps_folder(staging.steps, plan), progress)
            expect_steps(progress, OWN_STEPS)
            write_chunk = ChunkWriter(plan, staging.content, allow_nonfinite)
            with uninterrupted():
                pool = stack.enter_context(_worker_pool(write_chunk, plan, was_computed))
            background = stack.enter_context(ThreadPoolExecutor(2))
            try:
                key = plan_key(plan, nonfinite=allow_nonfinite)
                journal = _open_journal(staging, key, plan)
                # Meanwhile, because the source has to be read from the disk now anyway.
                source_hashes = background.submit(_hash_source, plan.source, journal, stop)
                progress.step(f"writing {plan.output}", Amount(plan.nbytes, "bytes"))
                with PlanWriter(write_chunk, pool, journal, background, progress) as writer:
                    for file_index in range(len(plan.files)):
                        writer.write(file_index)
                    manifest = _make_manifest(plan, writer.hashes, source_hashes, progress)
            finally:
                stop.set()
            pool.close()
            target = staging.content if plan.is_folder else staging.content / plan.output.name
            manifest_path(target).write_bytes(manifest.to_json())
            written = {
                name: file_identity(target / name if plan.is_folder else target)
                for name in manifest.files
            }
            if plan.is_folder:
                staging.commit_folder()
            else:
                staging.commit_files()
    except OSError as error:
        message = f"{plan.output}: cannot be written: {error.strerror or error}"
        raise OutputError("; ".join((message, *_kept(staging)))) from error
    except BaseException as error:
        for line in _kept(staging):
            error.add_note(line)
        raise
    finally:
        progress.finish()
    _remember_hashes(plan, manifest, written, identity)
    return manifest


def _holds(outer: Path, inner: Path) -> bool:
    """Whether two paths are one file or folder, or the inner one lies in the outer one.

    They may be spelt in different ways: by a second mount or link, or in letters of another case.
    """
    status = outer.stat() if outer.exists() else None
    for path in (inner, *inner.parents):
        with contextlib.suppress(OSError):  # it does not exist yet, or lies in a file
            if path == outer or (status and os.path.samestat(path.stat(), status)):
                return True
    return False


def _kept(staging: Staging) -> list[str]:
    """Say how much of the work stays, where, and what to do with it: a line, or none."""
    if not staging.is_kept:
        return []
    folder, output = map(path_from_here, (staging.folder, staging.output))
    size = format_bytes(disk_bytes(staging.folder))
    return [
        f"kept {progress_of(staging.folder)} ({size} in {folder}): run the same again to go on, "
        f"or drop it with `cgconvert clean {shlex.quote(str(output))} --delete`"
    ]


def _remember_hashes(
    plan: Plan,
    manifest: Manifest,
    written: Mapping[str, FileIdentity],
    identity: list[list[str | int]],
) -> None:
    """Remember the hashes of the files that were written, and of the source's, if unchanged since.

    Others may have put another file in the place of one that was written.
    """
    hashed = []
    for name, entry in manifest.files.items():
        path = plan.output / name if plan.is_folder else plan.output
        with contextlib.suppress(OSError):
            # The commit renames a file, which changes this one time, but not those in a folder.
            changed = {} if plan.is_folder else {"changed": written[name].changed}
            if file_identity(path)._replace(**changed) == written[name]:
                hashed.append((path, entry["sha256"]))
    if source_identity(plan.source) == identity:
        entries = manifest.source["files"]
        hashed += [
            (path, entry["sha256"]) for path, entry in zip(plan.source.files, entries, strict=True)
        ]
    with contextlib.suppress(OSError):  # a file is gone already: its hash is of no use
        for path, sha256 in hashed:
            remember_sha256(path, str(sha256))


def _worker_pool(write_chunk: ChunkWriter, plan: Plan, was_computed: bool) -> WorkerPool:
    """Make the pool: worker processes, or threads if there is little to encode.

    After a plan `was_computed`, its matrices are encoded already and only have to be copied, for
    which threads are enough. Besides, computing has started threads in this process, and a process
    with threads should not fork.
    """
    if worker_count() == 1 or plan.nbytes < SMALL_BYTES:
        return WorkerPool(write_chunk, 1, forked=False)
    return WorkerPool(write_chunk, worker_count(), forked=not was_computed)


def _open_journal(staging: Staging, key: str, plan: Plan) -> Journal:
    """Open the journal of the interrupted run.

    A new journal is begun, and the staged files are removed, if there is no journal with this key
    or if files that it says are begun are missing or have another size.
    """
    journal = Journal(staging.journal, key)
    file_index, *within_file = journal.position
    begun = plan.files[: file_index + (within_file != [0, 0])]
    sizes = [_size(staging.content / file.path) for file in begun]
    if journal.position == START or sizes != [file.size for file in begun]:
        staging.clear()
        staging.content.mkdir()
        journal.begin(plan.nbytes)
    return journal


def _hash_source(checkpoint: Checkpoint, journal: Journal, stop: threading.Event) -> dict[str, Any]:
    """Hash the source and record its hash, unless `stop` was set: then the hash is incomplete."""
    hashes = hash_checkpoint(checkpoint, stop.is_set)
    if not stop.is_set():
        journal.record_source(str(hashes["sha256"]), checkpoint.path)
    return hashes


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; -1 if `path` does not exist."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else -1


def _make_manifest(
    plan: Plan,
    hashes: Mapping[str, StreamingHash],
    source_hashes: Future[dict[str, Any]],
    progress: Progress,
) -> Manifest:
    """Wait for all hashes, check the source against its own manifest, and make the output's."""
    progress.step("hashing", Amount(plan.nbytes, "bytes"))
    checkpoint, source = plan.source, source_hashes.result()
    _check_source(checkpoint, source)
    files = {}
    for file in plan.files:
        files[file.path] = {"bytes": file.size, "sha256": hashes[file.path].hexdigest(file.size)}
        progress.advance(file.size)
    return Manifest(
        name=checkpoint.name,
        format=plan.format,
        type=plan.type,
        source={"layout": checkpoint.layout, "origin": dict(checkpoint.origin), **source},
        options=dict(plan.options),
        files=files,
        libraries=library_versions(),
        notes=[*checkpoint.notes, *plan.notes],
    )


def _check_source(checkpoint: Checkpoint, hashes: Mapping[str, Any]) -> None:
    """Raise InputError if the source has a manifest and differs from it."""
    manifest = find_manifest(checkpoint.path)
    if manifest is None:
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    entries = expected_files(checkpoint.path, manifest)
    for path, file_hash in zip(checkpoint.files, hashes["files"], strict=True):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
        if name in entries and entries[name].get("sha256") != file_hash["sha256"]:
            raise InputError(
                f"{path}: is not as it was written: its SHA-256 differs from that in "
                f"{manifest_path(checkpoint.path)}; remove that file if the change is meant"
            )
