"""Landlock and seccomp for the calling process, through ctypes: no wheel has to be installed.

Both are best effort: an old kernel or another architecture leaves one or both out, and the other
limits stand. https://docs.kernel.org/userspace-api/landlock.html, seccomp(2)
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same on every architecture
_LANDLOCK_VERSION_QUERY = 1
# What each version of Landlock's interface can forbid: (from version, file rights).
_FILE_RIGHTS = ((5, 0xFFFF), (3, 0x7FFF), (2, 0x3FFF), (1, 0x1FFF))
_NETWORK_RIGHTS = 0b11  # TCP: bind, connect
_SCOPES = 0b11  # abstract Unix sockets, signals to others

_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x10000

# (audit architecture, seccomp, clone, clone3, and what is refused: new programs and processes,
# sockets, other processes' memory, name spaces, mounts, keys, io_uring, bpf, perf, userfaultfd)
_SYSCALLS = {
    "x86_64": (0xC000003E, 317, 56, 435, (
        59, 322, 57, 58, 41, 42, 49, 53, 62, 424, 101, 310, 311, 272, 308, 165, 248, 249, 250,
        425, 321, 298, 323)),
    "aarch64": (0xC00000B7, 277, 220, 435, (
        221, 281, 198, 199, 200, 203, 129, 424, 117, 270, 271, 97, 268, 40, 217, 218, 219,
        425, 280, 241, 282)),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise _os_error()


def gain_nothing() -> None:
    """No program started from here has more rights than we have; both ways below need it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def close_files() -> bool:
    """From here on no file can be opened, made or removed, no TCP used, no stranger signalled.

    What is open stays open. False where the kernel has no Landlock (before 5.13, or switched off).
    """
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_QUERY)
    if version < 1:
        return False
    rights = next(rights for since, rights in _FILE_RIGHTS if version >= since)
    words = [rights]
    if version >= 4:
        words.append(_NETWORK_RIGHTS)
    if version >= 6:
        words.append(_SCOPES)
    attributes = struct.pack(f"={len(words)}Q", *words)
    rules = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def close_system_calls() -> bool:
    """From here on no program, process or socket can be made; threads can.

    False on an architecture we have no numbers for, or a kernel without seccomp filters.
    """
    known = _SYSCALLS.get(platform.machine())
    if known is None:
        return False
    architecture, seccomp, clone, clone3, refused = known
    rules = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    rules.append((_LOAD, 0, 0, _NR))
    rules += [(0x35, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # x32: the same calls renumbered
    for number in refused:
        rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    # Its flags are out of a filter's sight; the C library then falls back to clone.
    rules += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    rules += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    rules += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    rules.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = struct.pack("@HP", len(rules), ctypes.addressof(code))
    flags = ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC)
    return bool(_libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, program) == 0)


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
