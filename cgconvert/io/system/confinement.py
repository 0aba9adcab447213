"""What a process of a runtime may no longer do: open sockets, dump its memory, outlive its server.

All of it is best effort: a system that refuses leaves the process as it is.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

__all__ = ["close_standard_streams", "end_with_forking_process", "forbid_dumps", "forbid_sockets"]

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2  # linux/seccomp.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 13  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EACCES
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32_NUMBERS = 0x40000000
"""From this number on, system calls of x86-64 are those of its second interface, x32."""

IO_URING_SETUP = 425
"""A queue of system calls, which can open sockets too, past the filter."""

SYSTEMS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""AUDIT_ARCH_* of linux/audit.h, and the number of the system call socket."""

AF_UNIX = 1
SIGKILL = 9


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_sockets(*, allow_unix: bool) -> bool:
    """Make every later call of socket() fail in this thread and in those that it starts.

    Pairs of connected sockets can still be made. Returns whether the system took the filter; only
    Linux on x86-64 and ARM has it.

    Args:
        allow_unix: Whether Unix sockets stay allowed, which stay on this machine; CUDA needs them.
    """
    system = SYSTEMS.get(platform.machine())
    if sys.platform != "linux" or system is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    architecture, socket_number = system
    refusing_last = [(RETURN, 0, 0, REFUSE)]
    calls = [(EQUAL, 0, 1, IO_URING_SETUP), *refusing_last, (EQUAL, 0, 1, socket_number)]
    if allow_unix:
        calls = [
            *calls[:-1], (EQUAL, 0, 3, socket_number), (LOAD, 0, 0, FIRST_ARGUMENT),
            (EQUAL, 1, 0, AF_UNIX),
        ]  # fmt: skip
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        *refusing_last,
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32_NUMBERS),
        *refusing_last,
        *calls,
        *refusing_last,
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(instructions), ctypes.addressof(memory))
    return _prctl(PR_SET_NO_NEW_PRIVS, 1) and _prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program)
    )


def forbid_dumps() -> None:
    """Have the system write no file with this process's memory if the process crashes.

    A limit of one byte also keeps Linux from starting a program that would write it (core(5)).
    """
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (ImportError, OSError, ValueError):
        return


def end_with_forking_process(process: int) -> None:
    """End this process when the process of this id, which has forked it, ends in whatever way."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != process:  # it has ended before
        os._exit(1)


def close_standard_streams() -> None:
    """Lead standard input, output and errors to nowhere, also those of C libraries."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def _prctl(option: int, *arguments: int) -> bool:
    """Call prctl(2); return whether it succeeded."""
    try:
        call = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return False
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return int(call(ctypes.c_int(option), *values)) == 0
