"""The limits of open descriptors: those of sandboxes are well below this process's own.

Theory of operation. The kernel counts the descriptors that wait in Unix sockets for each uid, and refuses to send more
when the count is above the limit of open descriptors of the process that sends. A plain user's sandboxes have the uid of
the daemon: a function that fills sockets up to its own hard limit must not stop the daemon, whose limit is higher.
"""

from __future__ import annotations

import contextlib
import resource

USUAL = 1024
"""What most machines give a program that asks for no more."""

MOST = 4096
"""The hard limit in a sandbox, of a process each; a program may raise its own limit to it."""

SHARE = 4
"""A sandbox has at most one of this many parts of this process's hard limit, as long as that leaves `USUAL`."""

MOST_OWN = 1 << 20
"""This process asks for no more; the kernel's own bound, unless it was changed."""

_inherited = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_own() -> None:
    """Raise this process's own limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(_finite(hard), MOST_OWN)
    if _finite(soft) < most:
        with contextlib.suppress(OSError, ValueError):  # the kernel's bound may be lower
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def for_sandboxes(inherited: tuple[int, int] = _inherited) -> tuple[int, int]:
    """Return the soft and the hard limit in sandboxes.

    Args:
        inherited: those that this process began with; sandboxes keep the soft one where their hard limit allows.
    """
    soft, hard = map(_finite, inherited)
    most = min(hard, max(USUAL, min(hard // SHARE, MOST)))
    return min(soft, most), most


def limit(pid: int) -> None:
    """Set the limits of a sandbox's pid 1, which its command inherits."""
    # A setuid bubblewrap's pid 1 is another user's; one that has just ended needs none.
    with contextlib.suppress(PermissionError, ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, for_sandboxes())


def _finite(limit: int) -> int:
    return MOST_OWN if limit == resource.RLIM_INFINITY else limit
