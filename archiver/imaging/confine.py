"""What a helper takes away from itself before it looks at the first hostile byte."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal

from archiver.imaging import sandbox

MEMORY = 1024**3  # address space: what 100 million pixels of a plain JPEG or PNG need and more
OPEN_FILES = 32
NICE = 5
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def confine() -> list[str]:
    """Gives up whatever decoding does not need, and says which of the optional walls stand.

    Everything must be imported by now: afterwards no file can be opened.
    """
    os.nice(NICE)
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    walls = {"user": _become_nobody()}
    sandbox.gain_nothing()
    sandbox.prctl(_PR_SET_DUMPABLE, 0)
    sandbox.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it
    walls["landlock"] = sandbox.close_files()
    walls["seccomp"] = sandbox.close_system_calls()
    return [name for name, stands in walls.items() if stands]


def allow_seconds(seconds: float) -> None:
    """So much more processor time from now on; the kernel ends us when it is used up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _become_nobody() -> bool:
    """Root becomes the user nobody, where a container's rules let it; others stay who they are."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(KeyError, PermissionError):
        entry = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        return True
    return False
