"""A Landlock domain for each worker: code in it cannot reach the agent, pid 1, a preloader or another worker.

Theory of operation. All processes of a sandbox have the same uid, so file permissions do not keep one from another.
A process in a Landlock domain may open another's memory, maps, environment and descriptors only if the other one is in
the same domain or in one nested below. From ABI 6 on the same rule holds for signals. Each process that the agent forks
enters a domain of its own before it runs code of a package or of a function. Its children are in this domain too, so it
may signal and examine them. The agent is in none and reaches all of them. A preloader's workers are nested in its own
domain. A domain needs `no_new_privs` only, which bubblewrap has set.

The agent is besides not dumpable: the kernel then gives most of its files in `/proc` to root. That holds without
Landlock too, but for the agent alone: a worker is dumpable, because programs read `/proc/self` and debug their children.

This module has no imports of Atoll's: the self-test runs its text in a sandbox of its own (see `node.selftest`).
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NamedTuple

SCOPE_SIGNAL = 2  # <linux/landlock.h>, as all below
ACCESS_FS_REFER = 1 << 13
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_RESTRICT_SELF_LOG_SAME_EXEC_OFF = 1
_PR_SET_DUMPABLE = 4  # <linux/prctl.h>

SCOPES_ABI, LOGS_ABI, REFER_ABI = 6, 7, 2


class Ruleset(NamedTuple):
    """A domain's rules, as `struct landlock_ruleset_attr` and the flags of `landlock_restrict_self` take them.

    Args:
        handled_access_fs: rights on files that are denied but where a rule grants them; `/` grants them all here.
        scoped: kinds of reach that end at the domain's border.
        flags: of `landlock_restrict_self`.
    """

    handled_access_fs: int
    scoped: int
    flags: int


def ruleset(abi: int) -> Ruleset | None:
    """Return the rules for an ABI of Landlock, those that deny a program nothing on its own files.

    From ABI 6 on a ruleset may handle no right at all, and files cost nothing more. Before, it must handle one:
    renaming between directories, which any ruleset denies unless it is granted. ABI 1 cannot grant that right, and
    programs that move files would break: there is no domain then.
    """
    if abi >= SCOPES_ABI:  # a program that lists all processes would fill the machine's audit log with denials
        return Ruleset(0, SCOPE_SIGNAL, _RESTRICT_SELF_LOG_SAME_EXEC_OFF if abi >= LOGS_ABI else 0)
    return Ruleset(ACCESS_FS_REFER, 0, 0) if abi >= REFER_ABI else None


class Landlock:
    """The kernel's Landlock, prepared once and before any fork: what a forked process does then costs 40 us.

    The attribute `abi` is the kernel's version of it, 0 where there is none.
    """

    def __init__(self) -> None:
        import ctypes  # the agent has imported it already, for the C library's buffers

        library = ctypes.CDLL(None, use_errno=True)
        self._prctl = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong)(("prctl", library))
        three = (ctypes.c_long, ctypes.c_int, ctypes.c_uint)
        self._restrict = ctypes.CFUNCTYPE(ctypes.c_long, *three, use_errno=True)(("syscall", library))
        self._errno = ctypes.get_errno
        self._descriptor = -1
        library.syscall.restype = ctypes.c_long
        self._library = library
        try:
            self.abi = self._call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
        except OSError:  # an old kernel, one that has it switched off, or a filter around this machine's programs
            self.abi = 0
        self._rules = ruleset(self.abi)
        if self._rules is not None:
            self._descriptor = self._make(self._rules)

    def _call(self, number: int, *arguments: Any) -> int:
        """Make a system call; integers are passed as wide as registers are."""
        import ctypes

        wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in (number, *arguments))
        result = int(self._library.syscall(*wide))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def _make(self, rules: Ruleset) -> int:
        """Return the descriptor of a ruleset, which any number of processes can enter, each a domain of its own."""
        words = [rules.handled_access_fs] + ([0, rules.scoped] if rules.scoped else [])
        attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
        descriptor = self._call(_CREATE_RULESET, attributes, len(attributes), 0)
        if rules.handled_access_fs:
            root = os.open("/", os.O_PATH | os.O_CLOEXEC)
            try:
                rule = rules.handled_access_fs.to_bytes(8, sys.byteorder) + root.to_bytes(4, sys.byteorder)
                self._call(_ADD_RULE, descriptor, _RULE_PATH_BENEATH, rule, 0)
            finally:
                os.close(root)
        return descriptor

    def enter(self) -> bool:
        """Put this process, which has one thread, into a new domain for good; return whether there can be one.

        Raises:
            OSError: the kernel has Landlock and refuses.
        """
        if self._rules is None:
            return False
        if self._restrict(_RESTRICT_SELF, self._descriptor, self._rules.flags):
            number = self._errno()
            if number == errno.E2BIG:  # the operator has put this machine's programs into 16 domains already
                return False
            raise OSError(number, f"Landlock refuses a domain: {os.strerror(number)}")
        return True

    def set_dumpable(self, dumpable: bool) -> None:
        """Open this process's files in `/proc` to other processes of its user, or close most of them."""
        self._prctl(_PR_SET_DUMPABLE, int(dumpable))

    def close(self) -> None:
        """Close the ruleset, in a process that forks no worker."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
