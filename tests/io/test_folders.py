"""Folders that are made on the way to an output, and staging folders that others could write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cgconvert.errors import UsageError
from cgconvert.io.commit import Nothing
from cgconvert.io.staging import Staging, is_locked
from cgconvert.io.system.files import sync
from cgconvert.io.system.open_folder import MadeFolder, OpenFolder
from cgconvert.io.system.owners import others_can_write


def test_missing_folders_are_made_and_removed(tmp_path: Path) -> None:
    made: list[MadeFolder] = []
    (tmp_path / "link").symlink_to(tmp_path)
    folder = OpenFolder.at(tmp_path / "link" / "a" / "b", made)
    assert folder.is_at(tmp_path / "a" / "b")
    assert [part.name for part in made] == ["a", "b"]
    OpenFolder.at(tmp_path / "a" / "b", made).close()
    assert len(made) == 2
    for part in reversed(made):
        part.remove()
    folder.close()
    assert os.listdir(tmp_path) == ["link"]


def test_no_folder_is_made_where_a_dead_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(FileExistsError):
            OpenFolder.at(path, [])
    assert os.listdir(tmp_path) == ["link"]


def test_folders_are_removed_where_they_were_made(tmp_path: Path) -> None:
    """Whatever lies at their path by then."""
    made: list[MadeFolder] = []
    OpenFolder.at(tmp_path / "a" / "b", made).close()
    (tmp_path / "elsewhere" / "b").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "a").symlink_to("elsewhere")
    for part in reversed(made):
        part.remove()
    assert (tmp_path / "elsewhere" / "b").is_dir()
    assert os.listdir(tmp_path / "moved") == []


def test_a_folder_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "pipe")


def test_folders_on_the_way_may_become_pipes_during_a_run(tmp_path: Path) -> None:
    with Staging(tmp_path / "a" / "b" / "file", Nothing()) as staging:
        (staging.content / "file").write_bytes(b"x")
        (tmp_path / "a").rename(tmp_path / "moved")
        os.mkfifo(tmp_path / "a")
        staging.commit_files()
    assert os.listdir(tmp_path / "moved" / "b") == ["file"]


def test_to_ask_whether_a_lock_is_held_makes_none(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_appears_in_a_folder_before_it_is_closed_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, close = Staging(tmp_path / "file", Nothing()), OpenFolder.close_to_others
    staging.folder.mkdir(mode=0o777)

    def planting(folder: OpenFolder) -> None:
        (staging.folder / "content").symlink_to(tmp_path)
        close(folder)

    monkeypatch.setattr(OpenFolder, "close_to_others", planting)
    with pytest.raises(UsageError, match="holds something else"), staging:
        pass
    assert os.listdir(staging.folder) == ["content"]


def test_a_group_of_others_can_write(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for mode, is_open in ((0o755, False), (0o757, True), (0o777, True)):
        folder.chmod(mode)
        assert others_can_write(folder, folder.stat()) == is_open
