"""The policy of a sandbox, as a value: an allow-list, and nothing else.

`confine` adds to the caller's wishes the base that every sandbox gets. It is pure: the machine's part comes in as a
`Machine`, and bubblewrap's arguments follow from the `Policy` alone (`bwrap.arguments`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.model.mounts import Bind, Identity
from atoll.sandbox.machine import HOSTS, Machine, Symlink, SyntheticFile

HOME = "/home/user"

VAR = (Symlink("/var/tmp", "/tmp"), Symlink("/var/run", "/run"), Symlink("/var/lock", "/run/lock"))
"""Places that programs know by older names."""

APP = Symlink("/app", f"{HOME}/.app")
"""The place of files beside functions of the published clients (`web.app_files`): it leads to nothing until they are there."""

RUN_BYTES = 64 << 20
"""Size of `/run`, for sockets, locks and numbers of processes."""

OWN_ADDRESS = b"127.0.1.1"
"""The address that a sandbox's own name has, as on Debian: on loopback, and not that of `localhost`."""

PRIVATE = ("/proc", "/dev", "/sys", "/etc", "/run")
"""Below these nothing of the host may be shown by a caller's bind."""

LOADER_VARIABLES = ("LD_", "GLIBC_", "GCONV_PATH", "LOCPATH", "NLSPATH", "MALLOC_")
"""Variables that make a program load code. As root, the program that drops uid 0 is started with the sandbox's
variables, so that they must not reach it; a worker's own variables are set later, in the worker."""


@dataclass(frozen=True)
class Tmpfs:
    """A directory in memory, of a bounded size."""

    target: str
    size_bytes: int
    mode: int = 0o1777


@dataclass(frozen=True)
class Directory:
    """An empty directory on one of the file systems in memory."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True)
class Policy:
    """Everything that decides the view and the rights of a confined command.

    Args:
        command: the program, by its path inside, and its arguments.
        identity: user and group of the command.
        system: the machine's own directories and files, read-only; one that has gone is left out.
        binds: the caller's own; a missing one makes the launch fail.
        files, tmpfs, directories, links: exist inside only.
        environment: the whole environment, as pairs.
        network: `host` shares the launcher's network, abstract Unix sockets included; `none` gives a network of its own,
            with the loopback device only.
        devices: device nodes of the host, at the same paths.
        sysfs: whether `/sys` is shown, read-only.
        workdir: the directory in which the command starts.
        hostname: the name in the sandbox's own UTS namespace.
    """

    command: tuple[str, ...]
    identity: Identity
    system: tuple[Bind, ...] = ()
    binds: tuple[Bind, ...] = ()
    files: tuple[SyntheticFile, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    directories: tuple[Directory, ...] = ()
    links: tuple[Symlink, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    network: str = "host"
    devices: tuple[str, ...] = ()
    sysfs: bool = False
    workdir: str = "/"
    hostname: str = "atoll"
    tun: str = ""
    """The host's path of the device that the command finds as `/dev/net/tun`; empty for none."""
    nests: bool = False
    """True lets the command make namespaces, without a filter: for Atoll's own programs, never for functions."""
    ipc_group: str = ""
    """Names the sandboxes whose System V shared memory is this one's too, where they can share it; empty for none."""
    prepare: tuple[str, ...] = ()
    """A program and its arguments that mounts what a bind shows, and becomes bubblewrap."""
    own_pids: bool = False
    """True gives its processes numbers that no other live sandbox counts from: for those that share files."""


def confine(
    command: Sequence[str],
    *,
    machine: Machine,
    identity: Identity,
    binds: Iterable[Bind] = (),
    files: Iterable[SyntheticFile] = (),
    environment: Iterable[tuple[str, str]] = (),
    network: str = "host",
    devices: Iterable[str] = (),
    sysfs: bool = False,
    tmp_bytes: int = 4 << 30,
    tmp: str = "",
    shm_bytes: int = 4 << 30,
    workdir: str = HOME,
    hostname: str = "atoll",
    own_pids: bool = False,
    ipc_group: str = "",
) -> Policy:
    """Return the policy of a command that sees the common base and the given parts.

    The base is: the machine's system libraries and public `/etc`, a `passwd` and `group` of three names, `hosts` with
    the sandbox's own name, `/proc` and `/dev` of its own, and `/tmp`, `/dev/shm`, `/run` and the home directory in memory.

    Args:
        binds: shown beside the base; one that the base shows already, read-only at the same path, is dropped.
        environment: added to, and stronger than, `HOME`, `PATH`, `USER`, `LOGNAME`, `LANG` and `TMPDIR`.
        tmp_bytes: size of `/tmp` and of the home directory, each.
        tmp: the host's directory that is `/tmp`; empty for one in memory.

    Raises:
        ValueError: an identity of root, a bind that would replace a part of the base, or a variable that would
            make the launcher load code.
    """
    if identity.uid <= 0 or identity.gid <= 0:
        raise ValueError("a sandbox's command never runs as root")
    pairs = {
        "HOME": HOME,
        "PATH": machine.search_path,
        "USER": identity.name,
        "LOGNAME": identity.name,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
    } | dict(environment)
    for name in pairs:
        if not name or "=" in name or name.startswith(LOADER_VARIABLES):
            raise ValueError(f"`{name}` cannot be set for a whole sandbox")
    tmpfs = (
        *(() if tmp else (Tmpfs("/tmp", tmp_bytes),)),
        Tmpfs("/dev/shm", shm_bytes),
        Tmpfs(HOME, tmp_bytes, 0o777),
        Tmpfs("/run", RUN_BYTES),
    )
    binds = tuple(binds)
    app = () if any(beneath(bind.target, APP.path) for bind in binds) else (APP,)
    links = (*machine.links, *VAR, *app)
    own_tmp = (Bind(tmp, "/tmp", writable=True),) if tmp else ()
    shown = tuple(_admitted((*own_tmp, *binds), machine.system, links, tmpfs))
    own = (*machine.files, *accounts(identity), *names(hostname, machine.hosts))
    return Policy(
        command=tuple(command),
        identity=identity,
        system=machine.system,
        binds=shown,
        files=(*own, *files),
        tmpfs=tmpfs,
        directories=(Directory("/run/lock", 0o1777), Directory("/run/user", 0o1777)),
        links=links,
        environment=tuple(sorted(pairs.items())),
        network=network,
        devices=tuple(devices),
        sysfs=sysfs,
        workdir=workdir,
        hostname=hostname,
        own_pids=own_pids,
        ipc_group=ipc_group,
    )


def _admitted(
    binds: Iterable[Bind], system: Iterable[Bind], symlinks: Iterable[Symlink], tmpfs: Iterable[Tmpfs]
) -> Iterable[Bind]:
    links = [link.path for link in symlinks]
    taken = {mount.target for mount in tmpfs} | {"/"}
    for bind in dict.fromkeys(binds):
        target = bind.target
        if not posixpath.isabs(target) or posixpath.normpath(target) != target or not posixpath.isabs(bind.source):
            raise ValueError(f"a bind needs absolute, normal paths: `{bind.source}` at `{target}`")
        covered = any(beneath(target, base.target) for base in system)
        if covered and bind.source == target and not bind.writable:
            continue
        if covered or target in taken or any(beneath(target, path) for path in (*PRIVATE, *links)):
            raise ValueError(f"`{target}` belongs to the sandbox itself and cannot be replaced")
        if any(beneath(path, target) for path in (*PRIVATE, *links, *(base.target for base in system))):
            raise ValueError(f"`{target}` would hide a part of the sandbox itself")
        taken.add(target)
        yield bind


def accounts(identity: Identity) -> tuple[SyntheticFile, SyntheticFile]:
    """Return the `passwd` and `group` that know root, the identity and nobody."""
    name, uid, gid = identity.name, identity.uid, identity.gid
    passwd = (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"{name}:x:{uid}:{gid}:{name}:{HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    group = f"root:x:0:\n{name}:x:{gid}:\nnogroup:x:65534:\n"
    return SyntheticFile("/etc/passwd", passwd.encode()), SyntheticFile("/etc/group", group.encode())


def names(hostname: str, hosts: bytes) -> tuple[SyntheticFile, SyntheticFile]:
    """Return the `hosts` and `hostname` of a sandbox with a name of its own.

    Args:
        hosts: the machine's; the sandbox's own line comes first, so that its address has no other name.
    """
    own = OWN_ADDRESS + b"\t" + hostname.encode() + b"\n"
    return SyntheticFile(HOSTS, own + hosts), SyntheticFile("/etc/hostname", hostname.encode() + b"\n")


def beneath(path: str, directory: str) -> bool:
    """Return whether `path` is `directory` or lies below it; both are normal and absolute."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
