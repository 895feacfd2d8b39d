"""A kernel without Landlock, for one program and all that it starts: `old_kernel.py COMMAND...`.

A system call filter answers `landlock_create_ruleset` as a kernel does that has never heard of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
LANDLOCK_CREATE_RULESET = 444


def forget_landlock() -> None:
    """Filter this process for good."""
    code = [  # the call's number; equal: ENOSYS, else: allowed
        struct.pack("HBBI", 0x20, 0, 0, 0),
        struct.pack("HBBI", 0x15, 0, 1, LANDLOCK_CREATE_RULESET),
        struct.pack("HBBI", 0x06, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS),
        struct.pack("HBBI", 0x06, 0, 0, SECCOMP_RET_ALLOW),
    ]
    filters = ctypes.create_string_buffer(b"".join(code))
    program = struct.pack("HxxxxxxN", len(code), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    forget_landlock()
    os.execvp(sys.argv[1], sys.argv[1:])
