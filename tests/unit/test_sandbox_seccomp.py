"""The shipped filters, run by a small BPF machine: also for the architecture that this is not."""

from __future__ import annotations

import errno
import struct

import pytest

from atoll.errors import SandboxUnavailable
from atoll.sandbox import seccomp

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN = {"x86_64": 0x40000003, "aarch64": 0x40000028}  # i386, 32-bit ARM
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# <asm/unistd.h> of both; x86_64 first
NUMBERS = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "clone3": (435, 435),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "reboot": (169, 142),
    "file_setattr": (469, 469),
}
CLONE, UNSHARE, IOCTL, PERSONALITY, SOCKET = (56, 220), (272, 97), (16, 29), (135, 92), (41, 198)
PRLIMIT, MKNOD, MKNODAT = (302, 261), (133, None), (259, 33)
READ, WRITE, EXECVE, FUTEX = (0, 63), (1, 64), (59, 221), (202, 98)


def run(architecture: str, number: int, arguments: tuple[int, ...] = (), audit: int = 0) -> int:
    """Return what the filter says to a system call (classic BPF as in the kernel's `seccomp_check_filter`)."""
    padded = [*arguments, *([0] * (6 - len(arguments)))]
    data = struct.pack("<iIQ6Q", number, audit or AUDIT[architecture], 0, *padded)
    code = [
        struct.unpack_from("<HBBI", seccomp.program(architecture), at)
        for at in range(0, len(seccomp.program(architecture)), 8)
    ]
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            position += value
        elif operation in (0x15, 0x25, 0x35, 0x45):
            test = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }
            position += if_true if test[operation] else if_false
        elif operation == 0x06:
            return int(value)
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.fixture(params=[0, 1], ids=seccomp.ARCHITECTURES)
def which(request: pytest.FixtureRequest) -> int:
    """The index of an architecture."""
    return int(request.param)


def denied(name: str) -> int:
    return ERRNO | next(rule.error for rule in seccomp.RULES if rule.call == name)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_listed_call_is_refused(which: int, name: str) -> None:
    """Each of these calls gets the error of its rule, whatever its arguments."""
    for arguments in ((), (1, 2, 3), ((1 << 64) - 1,) * 6):
        assert run(seccomp.ARCHITECTURES[which], NUMBERS[name][which], arguments) == denied(name)


@pytest.mark.parametrize("number", [READ, WRITE, EXECVE, FUTEX])
def test_ordinary_calls_are_allowed(which: int, number: tuple[int, int]) -> None:
    """What is not on the list passes."""
    assert run(seccomp.ARCHITECTURES[which], number[which]) == ALLOW


@pytest.mark.parametrize("flag", seccomp.CLONE_FLAGS.values(), ids=list(seccomp.CLONE_FLAGS))
def test_new_namespaces_are_refused(which: int, flag: int) -> None:
    """`unshare` and `clone` are refused for each namespace's flag, alone or among others."""
    architecture = seccomp.ARCHITECTURES[which]
    for extra in (0, 0x11, 0x3D0F00):
        assert run(architecture, UNSHARE[which], (flag | extra,)) == ERRNO | errno.EPERM
        if flag != seccomp.CLONE_FLAGS["CLONE_NEWTIME"]:
            assert run(architecture, CLONE[which], (flag | extra,)) == ERRNO | errno.EPERM


def test_threads_and_forks_are_allowed(which: int) -> None:
    """The flags of `pthread_create`, `fork` and `vfork` pass; so does `unshare` of a process's own tables."""
    architecture = seccomp.ARCHITECTURES[which]
    for flags in (0x3D0F00, 0x1200011, 0x4111):
        assert run(architecture, CLONE[which], (flags,)) == ALLOW
    assert run(architecture, UNSHARE[which], (0x400,)) == ALLOW


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_terminal_input_cannot_be_faked(which: int, high: int) -> None:
    """`TIOCSTI`, `TIOCLINUX` and `TIOCSETD` are refused with any upper half, which the kernel ignores (CVE-2019-10063)."""
    architecture = seccomp.ARCHITECTURES[which]
    for request in (seccomp.TIOCSTI, seccomp.TIOCLINUX, seccomp.TIOCSETD):
        assert run(architecture, IOCTL[which], (0, high | request)) == ERRNO | errno.EPERM
    assert run(architecture, IOCTL[which], (0, 0x5401)) == ALLOW


def test_limits_of_other_processes_cannot_be_set(which: int) -> None:
    """`prlimit` of another process may read its limits only; a process may set its own, as `setrlimit` does."""
    architecture = seccomp.ARCHITECTURES[which]
    for pid in (1, 2, 1 << 31, (1 << 32) - 1, 1 << 32):
        for new in (0x1000, 1 << 40):
            assert run(architecture, PRLIMIT[which], (pid, 7, new, 0)) == ERRNO | errno.EPERM
        assert run(architecture, PRLIMIT[which], (pid, 7, 0, 0x1000)) == ALLOW
    assert run(architecture, PRLIMIT[which], (0, 7, 0x1000, 0)) == ALLOW


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_file_attributes_cannot_be_set(which: int, high: int) -> None:
    """The requests that set attributes or projects of files are refused with any upper half; reading them is not."""
    architecture = seccomp.ARCHITECTURES[which]
    for request in (0x40086602, 0x40046602, 0x401C5820):
        assert run(architecture, IOCTL[which], (3, high | request)) == ERRNO | errno.EPERM
    for request in (0x80086601, 0x80046601, 0x801C581F):
        assert run(architecture, IOCTL[which], (3, high | request)) == ALLOW


@pytest.mark.parametrize(
    ("kind", "allowed"), [(0o2, False), (0o6, False), (0, True), (0o1, True), (0o10, True), (0o14, True)]
)
def test_device_files_cannot_be_made(which: int, kind: int, allowed: bool) -> None:
    """`mknod` makes regular files, fifos and sockets, and neither device files nor whiteouts, whatever the mode."""
    architecture = seccomp.ARCHITECTURES[which]
    for mode in (0, 0o644, 0o7777, 1 << 16, 1 << 32):
        want = ALLOW if allowed else ERRNO | errno.EPERM
        assert run(architecture, MKNODAT[which], (3, 0x1000, kind << 12 | mode, 0)) == want
        number = MKNOD[which]
        if number is not None:
            assert run(architecture, number, (0x1000, kind << 12 | mode, 0)) == want


def test_only_the_default_personality_is_allowed(which: int) -> None:
    """Switching off address randomisation, or another execution domain, is refused."""
    architecture = seccomp.ARCHITECTURES[which]
    assert run(architecture, PERSONALITY[which], (0,)) == ALLOW
    assert run(architecture, PERSONALITY[which], (0x0040000,)) == ERRNO | errno.EPERM


def test_sockets_are_of_the_usual_families(which: int) -> None:
    """Local, IPv4, IPv6 and netlink sockets pass; those of the hypervisor, of crypto and of rare protocols do not."""
    architecture = seccomp.ARCHITECTURES[which]
    for family in (9, 17, 21, 29, 30, 31, 38, 40, 44, 63):
        for upper_half in (0, 1 << 32):  # the kernel ignores it
            got = run(architecture, SOCKET[which], (upper_half | family,))
            assert got == ERRNO | errno.EAFNOSUPPORT, family
    for family in (0, 1, 2, 10, 16):
        assert run(architecture, SOCKET[which], (family,)) == ALLOW


def test_a_foreign_abi_is_killed(which: int) -> None:
    """Calls of another architecture's numbers end the process; x32 too."""
    architecture = seccomp.ARCHITECTURES[which]
    for number in (0, 20, 101, 165):
        assert run(architecture, number, audit=FOREIGN[architecture]) == KILL
        if architecture == "x86_64":
            assert run(architecture, 0x40000000 + number) == KILL


def test_another_architecture_is_refused() -> None:
    """Without a filter there is no sandbox."""
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        seccomp.program("riscv64")
