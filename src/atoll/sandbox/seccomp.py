"""The system calls that no sandboxed process may make.

A deny list, so that NumPy, TensorFlow, PyTorch, threads and multiprocessing meet nothing unusual. Its sources are
Flatpak's list (`setup_seccomp` in `common/flatpak-run.c`, 1.14) and the calls that Docker's default profile omits
(`profiles/seccomp/default.json` of moby, 24.0); each group has its reason beside it. Calls that need a capability are
denied too, although no process here has one: the filter is a second line of defence.

The filter is compiled by libseccomp 2.5 or newer (`python -m atoll.sandbox.seccomp`, which needs `pyseccomp`) and
shipped as BPF, one file for each architecture, so that libseccomp is not needed where Atoll runs. Calls of a foreign
ABI (i386 and x32 on x86_64, 32-bit ARM on aarch64) kill the process: their numbers would bypass the filter.
"""

from __future__ import annotations

import errno
import functools
import struct
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import SandboxUnavailable

ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Condition:
    """A comparison of one argument: equal to `value` under `mask`, or not equal to it when `negated`."""

    argument: int
    value: int
    mask: int = (1 << 64) - 1
    negated: bool = False


@dataclass(frozen=True)
class Rule:
    """One denied call: fails with `error` when the conditions hold; always, when there is none."""

    call: str
    error: int = errno.EPERM
    condition: Condition | None = None
    second: Condition | None = None


def _denied(*calls: str, error: int = errno.EPERM) -> tuple[Rule, ...]:
    return tuple(Rule(call, error) for call in calls)


# <linux/sched.h>
CLONE_FLAGS = {
    "CLONE_NEWTIME": 0x00000080,
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # <asm-generic/ioctls.h>
TIOCSETD = 0x5423  # as above
FAMILIES = {"AF_UNSPEC": 0, "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}  # <linux/socket.h>
"""The families of sockets that are let through."""
MOST_FAMILIES = 64
"""More than the kernel knows (46 in Linux 6.18); it refuses those beyond itself."""
FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR = 0x40086602, 0x40046602, 0x401C5820  # <linux/fs.h>
S_IFMT, S_IFCHR, S_IFBLK = 0o170000, 0o020000, 0o060000  # <linux/stat.h>
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # <linux/audit.h>
SECCOMP_RET_ERRNO = 0x00050000  # <linux/seccomp.h>
NEW_CALLS = {"file_setattr": 469}  # <asm-generic/unistd.h>
"""Calls that libseccomp does not know yet, by the number that they have on both architectures."""

RULES: tuple[Rule, ...] = (
    # Reaching into other processes.
    *_denied("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
    # Limits of another process, by which it can be killed; those of the caller itself (pid 0) may be set.
    Rule("prlimit64", condition=Condition(0, 0, negated=True), second=Condition(2, 0, negated=True)),
    # Attributes by which a file cannot be deleted, or counts for another project's quota; device files and whiteouts.
    *(
        Rule("ioctl", condition=Condition(1, request, 0xFFFFFFFF))
        for request in (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR)
    ),
    *_denied(*NEW_CALLS),
    *(
        Rule(call, condition=Condition(argument, kind, S_IFMT))
        for call, argument in (("mknod", 1), ("mknodat", 2))
        for kind in (S_IFCHR, S_IFBLK)
    ),
    # New namespaces, which would give capabilities over a wide part of the kernel. `clone` has its flags in a
    # register; those of `clone3` are behind a pointer that a filter cannot read: libcs take ENOSYS as "use clone".
    *(Rule("unshare", condition=Condition(0, flag, flag)) for flag in CLONE_FLAGS.values()),
    *(
        Rule("clone", condition=Condition(0, flag, flag))
        for name, flag in CLONE_FLAGS.items()
        if name != "CLONE_NEWTIME"  # in `clone` this bit is a part of the exit signal's number
    ),
    *_denied("clone3", error=errno.ENOSYS),
    *_denied("setns"),
    # Mounts, by the old interface and the new one.
    *_denied("mount", "umount", "umount2", "pivot_root", "chroot"),
    *_denied(
        *("fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr"), error=errno.ENOSYS
    ),
    # Keyrings are not namespaced.
    *_denied("keyctl", "add_key", "request_key"),
    # Interfaces into the kernel with a history of escalations; io_uring also goes round any filter.
    *_denied("bpf", "perf_event_open", "userfaultfd", "lookup_dcookie", "fanotify_init"),
    *_denied("io_uring_setup", "io_uring_enter", "io_uring_register", error=errno.ENOSYS),
    # Files by handle: leads out of a mount namespace.
    *_denied("open_by_handle_at"),
    # The machine itself: kernel images and modules, power, swap, clocks, accounting, ports, logs.
    *_denied("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *_denied("create_module", "query_module", "get_kernel_syms", "nfsservctl", "_sysctl", "uselib"),
    *_denied("reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup"),
    *_denied("settimeofday", "clock_settime", "stime", "sethostname", "setdomainname"),
    *_denied("iopl", "ioperm", "modify_ldt", "vm86", "vm86old"),
    # Other execution domains bring old bugs and turn off address randomisation.
    Rule("personality", condition=Condition(0, 0, negated=True)),
    # Input pushed into the terminal of whoever started the sandbox. The kernel looks at the lower 32 bits only.
    Rule("ioctl", condition=Condition(1, TIOCSTI, 0xFFFFFFFF)),
    Rule("ioctl", condition=Condition(1, TIOCLINUX, 0xFFFFFFFF)),
    # Another line discipline: a terminal of one's own is enough to load a driver, and some had holes (n_gsm, n_hdlc).
    Rule("ioctl", condition=Condition(1, TIOCSETD, 0xFFFFFFFF)),
    # Sockets of other families: to the hypervisor (AF_VSOCK), which is in no network namespace, and those whose protocols
    # the kernel loads when the first one is made (AF_ALG, AF_TIPC, AF_RDS, AF_CAN and others).
    *(
        Rule(call, errno.EAFNOSUPPORT, Condition(0, family, 0xFFFFFFFF))
        for call in ("socket", "socketpair")
        for family in range(MOST_FAMILIES)
        if family not in FAMILIES.values()
    ),
)


def filter_path(architecture: str) -> Path:
    """Return where the compiled filter of an architecture is shipped."""
    return Path(__file__).parent / "filters" / f"{architecture}.bpf"


@functools.cache
def program(architecture: str) -> bytes:
    """Return the compiled filter, as `struct sock_filter` records.

    Raises:
        SandboxUnavailable: there is none for this architecture.
    """
    if architecture not in ARCHITECTURES:
        raise SandboxUnavailable(
            f"no system call filter is shipped for `{architecture}`",
            hint=f"use a machine with one of {', '.join(ARCHITECTURES)}",
        )
    try:
        return filter_path(architecture).read_bytes()
    except OSError as error:
        raise SandboxUnavailable(
            f"the system call filter for `{architecture}` cannot be read: {error}", hint="reinstall `atoll`"
        ) from error


def compile_filter(architecture: str) -> bytes:
    """Return the BPF program of an architecture.

    Raises:
        ImportError: `pyseccomp` is not installed, or libseccomp is not.
    """
    import tempfile

    import pyseccomp

    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[architecture]
    built = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    built.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    if arch != pyseccomp.system_arch():
        built.add_arch(arch)
        built.remove_arch(pyseccomp.system_arch())
    for rule in RULES:
        if rule.call in NEW_CALLS:
            continue
        arguments = [
            pyseccomp.Arg(condition.argument, pyseccomp.NE, condition.value)
            if condition.negated
            else pyseccomp.Arg(condition.argument, pyseccomp.MASKED_EQ, condition.mask, condition.value)
            for condition in (rule.condition, rule.second)
            if condition is not None
        ]
        built.add_rule(pyseccomp.ERRNO(rule.error), rule.call, *arguments)
    with tempfile.TemporaryFile() as file:
        built.export_bpf(file)
        file.seek(0)
        return _deny_new_calls(architecture) + file.read()


def _deny_new_calls(architecture: str) -> bytes:
    """Return instructions to put before a program: they deny `NEW_CALLS` and leave all others to it."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
    code = [(load, 0, 0, 4), (jump_if_equal, 0, 2 * len(NEW_CALLS) + 1, AUDIT_ARCHITECTURES[architecture])]
    code += [(load, 0, 0, 0)]
    for rule in RULES:
        if rule.call in NEW_CALLS:
            code += [(jump_if_equal, 0, 1, NEW_CALLS[rule.call]), (give, 0, 0, SECCOMP_RET_ERRNO | rule.error)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def main() -> None:
    """Write all filters."""
    for architecture in ARCHITECTURES:
        path = filter_path(architecture)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(compile_filter(architecture))
        print(f"{path.name}: {path.stat().st_size // 8} instructions")


if __name__ == "__main__":
    main()
