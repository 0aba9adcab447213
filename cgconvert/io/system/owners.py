"""Owners of files and folders, and the rights of other users to write in them.

The rules are those that ssh and sudo have for their files. Windows has other rights, which each
user's profile sets; there everything counts as the user's.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

try:
    import grp
    import pwd
except ImportError:  # Windows
    grp = pwd = None  # type: ignore[assignment]

__all__ = [
    "HAS_OWNERS",
    "MOST_LINKS",
    "is_open_to_others",
    "is_roots_or_users",
    "is_users",
    "others_can_write",
]

HAS_OWNERS = hasattr(os, "geteuid")
"""Whether the system tells to whom a file belongs."""

MOST_LINKS = 40
"""The most links on the way to a folder; Linux follows so many as well (path_resolution(7))."""


def is_users(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user who runs this."""
    return not HAS_OWNERS or status.st_uid == os.geteuid()


def is_roots_or_users(status: os.stat_result) -> bool:
    """Whether a file, folder or link belongs to root, who can do anything, or to the user."""
    return is_users(status) or status.st_uid == 0


def is_open_to_others(status: os.stat_result) -> bool:
    """Whether the mode of a file or folder lets others than its owner write, of whatever group.

    Windows, and disks that come from it, keep no modes: they show this of every file.
    """
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def others_can_write(path: Path, status: os.stat_result) -> bool:
    """Whether users other than its owner and root can write in a folder.

    Many systems give each user a group of his own, which may write in what he makes. The bits of
    the group stand for other users too where the folder has a list of rights (acl(5)).
    """
    if not HAS_OWNERS:
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    return _has_rights_list(path) or not _is_group_of_one(status.st_gid, status.st_uid)


def _has_rights_list(path: Path) -> bool:
    """Whether a folder grants rights to users or groups by name."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except (OSError, AttributeError):  # a disk or a system without them
        return False


@lru_cache
def _is_group_of_one(group: int, user: int) -> bool:
    """Whether a group is the main group of this user and has no other member.

    Only members by name are known; that no other user has it as main group is shown by its name,
    which is the user's.
    """
    try:
        name, entry = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}
