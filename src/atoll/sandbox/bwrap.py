"""A policy as bubblewrap's arguments: the only module that knows its options.

Theory of operation. Bubblewrap gives the command new mount, pid, ipc, uts and cgroup namespaces, builds a root of
its own in a tmpfs, and runs twice: outside as the parent that reports the end, inside as pid 1 that reaps. Both
end with their parent (`--die-with-parent`), and with pid 1 the kernel ends every process of the namespace.
Bubblewrap arms this signal late, and code in a sandbox may disarm it: the orphan killer ends sandboxes that lose their
launcher (`orphan_killer`).

A plain user gets a user namespace in which the user has the same ids as outside, so that files belong to the
user. Root gets none: mounts are made with root's own capabilities, all but four are dropped, and `setpriv`
uses these to become the identity and to drop them for good. That change of ids clears the command's parent-death
signal, which is why pid 1 stays bubblewrap's reaper (`--as-pid-1` would let a sandbox outlive its parent).

All options travel in a memory file (`--args`), because a process's arguments can be read by every user of the
machine, and those of pid 1 by the sandbox. Mounts are sorted by target, so that a bind below `/tmp` comes after
`/tmp`; parents are made first, since those that bubblewrap makes itself have mode 0700.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from atoll.sandbox.policy import Policy, beneath

NETWORK: Mapping[str, tuple[str, ...]] = {"host": (), "outbound": (), "none": ("--unshare-net",)}
"""Options for each network policy. By default bubblewrap shares the network of its parent; for `outbound` it is started
in an existing one (see `sandbox.network`). A network of its own has the loopback device only."""

NEEDED_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_DAC_READ_SEARCH")
"""Capabilities that `setpriv` needs, and drops, to become the identity. The last one lets bubblewrap enter a working
directory with mode 0700 of the identity."""


def arguments(
    policy: Policy,
    *,
    bwrap: str,
    setpriv: str,
    as_root: bool,
    args_fd: int,
) -> list[str]:
    """Return the command line; all but the command itself is read from the descriptor `args_fd` (see `options`).

    Args:
        bwrap: path of bubblewrap on the host.
        setpriv: path of setpriv inside the sandbox; used as root only.
        as_root: whether bubblewrap itself runs as root, without a user namespace.
    """
    line = [bwrap, "--args", str(args_fd), "--"]
    if as_root:
        line += [setpriv, "--reuid", str(policy.identity.uid), "--regid", str(policy.identity.gid)]
        line += ["--clear-groups", "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"]
        line += ["--ambient-caps", "-all", "--"]
    return [*line, *policy.command]


def options(
    policy: Policy,
    *,
    as_root: bool,
    seccomp_fd: int,
    status_fd: int,
    orphan_pipe_fd: int,
    gate_fd: int | None = None,
    file_fds: Mapping[str, int],
    own_ipc: bool = True,
) -> list[str]:
    """Return the options that `arguments` leaves to the descriptor.

    Args:
        seccomp_fd: holds the compiled filter; not read for a policy that `nests`.
        status_fd: where bubblewrap reports; a report of the exit status means that the command was started.
        orphan_pipe_fd: is held by pid 1 as long as it lives, and closed for the command.
        gate_fd: is read, when all mounts are made, before the command is started; None for no wait.
        file_fds: a descriptor for each synthetic file, by target.
        own_ipc: False for a bubblewrap that is started in the IPC namespace of its sandbox.

    Raises:
        KeyError: the network policy is not known, or a file has no descriptor.
    """
    line = ["--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", *NETWORK[policy.network]]
    if own_ipc:
        line += ["--unshare-ipc"]
    if as_root:
        line += ["--cap-drop", "ALL"]
        for capability in NEEDED_CAPABILITIES:
            line += ["--cap-add", capability]
    else:
        line += ["--unshare-user", "--uid", str(policy.identity.uid), "--gid", str(policy.identity.gid)]
        # One that was started as root of a namespace keeps that one's capabilities if it is not told.
        line += ["--cap-drop", "ALL"]
        if not policy.nests:
            line += ["--disable-userns"]
    line += ["--die-with-parent", "--new-session", "--hostname", policy.hostname, "--clearenv"]
    for name, value in policy.environment:
        line += ["--setenv", name, value]
    if not policy.nests:
        line += ["--seccomp", str(seccomp_fd)]
    line += ["--json-status-fd", str(status_fd)]
    line += ["--sync-fd", str(orphan_pipe_fd)]
    if gate_fd is not None:
        line += ["--block-fd", str(gate_fd)]
    line += _tree(policy, file_fds)
    return [*line, "--chdir", policy.workdir]


def _tree(policy: Policy, file_fds: Mapping[str, int]) -> list[str]:
    """Return the options that build the root, parents before children, and then remount parts read-only."""
    steps: dict[str, list[str]] = {
        each.path: ["--perms", f"{each.mode:04o}", "--dir", each.path] for each in policy.directories
    }
    steps["/proc"] = ["--proc", "/proc"]
    steps["/dev"] = ["--dev", "/dev"]
    if policy.sysfs:
        steps["/sys"] = ["--ro-bind", "/sys", "/sys"]
    for link in policy.links:
        steps[link.path] = ["--symlink", link.target, link.path]
    for bind in policy.system:
        steps[bind.target] = ["--ro-bind-try", bind.source, bind.target]
    for mount in policy.tmpfs:
        steps[mount.target] = _sized(mount.target, mount.size_bytes, mount.mode)
    for file in policy.files:
        steps[file.target] = ["--perms", f"{file.mode:04o}", "--file", str(file_fds[file.target]), file.target]
    for device in policy.devices:
        steps[device] = ["--dev-bind", device, device]
    if policy.tun:
        steps["/dev/net/tun"] = ["--dev-bind", policy.tun, "/dev/net/tun"]
    for bind in policy.binds:
        steps[bind.target] = ["--bind" if bind.writable else "--ro-bind", bind.source, bind.target]
    shown = [bind.target for bind in (*policy.system, *policy.binds)] + ["/sys", *policy.devices]
    for target in list(steps):
        parent = posixpath.dirname(target)
        while parent != "/" and parent not in steps and not any(beneath(parent, path) for path in shown):
            steps[parent] = ["--perms", "0755", "--dir", parent]
            parent = posixpath.dirname(parent)
    ordered = [argument for path in sorted(steps, key=lambda path: path.split("/")) for argument in steps[path]]
    # The tmpfs of `/` and that of `/dev` have no size limit: a command could fill the machine's memory. It could also
    # change the synthetic files, which are copied there, since a mount for each would cost more.
    return [*ordered, "--remount-ro", "/dev", "--remount-ro", "/"]


def _sized(target: str, size_bytes: int, mode: int) -> list[str]:
    return ["--perms", f"{mode:04o}", "--size", str(size_bytes), "--tmpfs", target]
