"""The self-test of this machine, for `atoll doctor`: each ability is tried for real.

A kernel switch that is on does not prove that the ability works, so none is read. The sandbox is tried whole: an
interpreter is confined like any function and reports its uid, capabilities and visible processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll import linux
from atoll.errors import AtollError
from atoll.model.findings import Finding
from atoll.node.promises import policy_for, try_promises
from atoll.node.shared import data as shared_data
from atoll.process import check
from atoll.sandbox import gpus, pid_ranges, programs
from atoll.sandbox.causes import explain
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.limits.limits import Limits
from atoll.sandbox.network.networks import Networks
from atoll.settings import Settings

LEAST_FREE_BYTES = 1 << 30
_HERE = -100  # AT_FDCWD: absolute paths need no directory

_PROBE = """
import ctypes, errno, json, os
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
libc = ctypes.CDLL(None, use_errno=True)
traced = libc.ptrace(0, 0, 0, 0)
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": [status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"],
    "denied": traced == -1 and ctypes.get_errno() == errno.EPERM,
    "pid": os.getpid(),
    "alone": sum(name.isdigit() for name in os.listdir("/proc")) == 2,
}))
"""


async def examine(settings: Settings) -> list[Finding]:
    """Try every ability of this machine; takes about a second, leaves nothing behind but `ATOLL_HOME`."""
    found = _state(settings.home)
    found += shared_data.findings(settings)
    found += _namespaces(settings)
    found += await _confinement(settings)
    found += await try_promises(settings)
    found.append(await _network(settings))
    found += _limits(settings)
    found.append(_gpus(settings))
    found.append(_fuse())
    return found


def _namespaces(settings: Settings) -> list[Finding]:
    loses = "no function can run"
    try:
        path = programs.find_bwrap(settings.sandbox.bwrap)
    except AtollError as error:
        return [Finding("bubblewrap", True, False, error.message, loses, error.hint)]
    version = ".".join(map(str, programs.bwrap_version(path) or ()))
    found = [Finding("bubblewrap", True, True, f"{version}, `{path}`")]
    as_root = os.geteuid() == 0
    spaces = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", *([] if as_root else ["--unshare-user"])]
    mounts = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name, options in (("namespaces", []), ("mounts", mounts)):
        try:
            done = check([path, *spaces, "--ro-bind", "/", "/", *options, "--", "/bin/sh", "-c", ":"], env={})
        except (OSError, subprocess.TimeoutExpired) as error:
            return [*found, Finding(name, True, False, str(error), loses, "see the message")]
        if done.status != 0:
            cause = explain(done.output, as_root=as_root, bwrap=path)
            return [*found, Finding(name, True, False, cause.message, loses, cause.hint)]
        kind = "made by root, without a user namespace" if as_root else "in a user namespace"
        found.append(Finding(name, True, True, kind if name == "namespaces" else "own `/proc`, `/dev` and `/tmp`"))
    return found


async def _confinement(settings: Settings) -> list[Finding]:
    """Confine this interpreter, and check its report from inside."""
    loses = "no function can run"
    as_root = os.geteuid() == 0
    launcher = Launcher(settings)
    try:
        identity = Identities(settings).builder()
        policy = replace(policy_for(launcher, identity, _PROBE), own_pids=True)
        done = await launcher.run(policy, timeout_seconds=30.0)
        seen: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    except AtollError as error:
        return [Finding("sandbox", True, False, error.message, loses, error.hint)]
    except (ValueError, IndexError, TimeoutError) as error:
        return [Finding("sandbox", True, False, f"the probe failed: {error}", loses, "report this with its text")]
    bare = all(int(one, 16) == 0 for one in seen["capabilities"]) and seen["no_new_privileges"] == "1"
    found = [
        _verdict("sandbox", seen["alone"], "a process in it sees itself and the reaper", loses),
        _verdict(
            "system call filter",
            seen["denied"],
            f"for {launcher.machine.architecture}: `ptrace` is refused inside",
            loses,
        ),
        _verdict("no privileges", bare, "no capability, and no way to gain one", loses),
    ]
    found.append(_process_ids(seen["pid"]))
    if as_root:
        apart = seen["uid"] == identity.uid != 0
        found.append(_verdict("separate users", apart, f"functions run as host uid {identity.uid} and up", loses))
    return found


def _process_ids(pid: int) -> Finding:
    """Return whether the first process of a sandbox has a number that others do not have."""
    name = "process ids apart"
    if pid >= pid_ranges.FIRST:
        return Finding(name, False, True, "each sandbox counts from a number of its own")
    loses = "LMDB, and other programs on `/data` that lock by process id, fail in two sandboxes at a time"
    fix = "needs a kernel with CONFIG_CHECKPOINT_RESTORE, a writable `/proc/sys`, and `nsenter` of `util-linux`"
    return Finding(name, False, False, "each sandbox counts from 2", loses, fix)


def _verdict(name: str, works: bool, detail: str, loses: str) -> Finding:
    if works:
        return Finding(name, True, True, detail)
    return Finding(name, True, False, f"not so: {detail}", loses, "report this with `atoll doctor --json`")


async def _network(settings: Settings) -> Finding:
    """Make an outbound network, its firewall included."""
    try:
        path = programs.find_pasta(settings.sandbox.pasta)
        networks = Networks(settings, Launcher(settings), Identities(settings))
        try:
            network = await networks.take()
            await network.close()
        finally:
            await networks.close()
    except AtollError as error:
        loses = 'functions share the network of this machine, and `network="outbound"` is refused'
        return Finding("outbound network", False, False, error.message, loses, error.hint)
    return Finding("outbound network", False, True, f"made by pasta, `{path}`, and filtered")


_DELEGATE = (
    "log in where systemd manages the user's processes, or run `systemd-run --user --scope -p Delegate=yes $SHELL` and "
    "use Atoll from that shell; in a container, mount `/sys/fs/cgroup` writable"
)


def _limits(settings: Settings) -> list[Finding]:
    limits = Limits(settings)
    kind, controllers = limits.kind, limits.controllers
    limits.close()
    found = [Finding("memory limits", False, True, f"{kind}: kept by the kernel")]
    if kind == "watchdog":
        found = [
            Finding(
                "memory limits",
                False,
                False,
                "no cgroup can be made here: a watchdog measures instead",
                "a function that takes memory fast can pass its limit before it is ended",
                _DELEGATE,
            )
        ]
    for controller, name, loses in (
        ("cpu", "CPU limits", "a small machine type may compute as much as a large one"),
        ("pids", "process limits", "processes are limited for each user of the platform instead of for each worker"),
    ):
        if controller in controllers:
            found.append(Finding(name, False, True, "kept by the kernel"))
        else:
            found.append(Finding(name, False, False, "no cgroup can be made here", loses, _DELEGATE))
    return found


def _gpus(settings: Settings) -> Finding:
    found = gpus.find(settings.pool.gpus)
    if found.names:
        return Finding("GPUs", False, True, ", ".join(found.devices(found.names[:])))
    fix = "install the NVIDIA driver; in a container, start it with `--gpus all`"
    if settings.pool.gpus not in ("", "auto"):
        fix = "change `pool.gpus` in `settings.toml`"
    return Finding("GPUs", False, False, "no `/dev/nvidia0` here", "machine types with GPUs are refused", fix)


def _state(home: Path) -> list[Finding]:
    problem = _writable(home)
    if problem:
        fix = f"run `sudo chown -R $USER '{home}'`, or set `ATOLL_HOME` to a directory that you can write"
        return [Finding("state", True, False, f"`{home}` cannot be written: {problem}", "nothing works", fix)]
    free = _free_bytes(home)
    found = [
        Finding("state", True, True, f"`{home}`"),
        Finding(
            "disk space",
            True,
            free >= LEAST_FREE_BYTES,
            f"{free / (1 << 30):.1f} GiB free",
            *("", "") if free >= LEAST_FREE_BYTES else _DISK,
        ),
    ]
    tried: list[tuple[str, bool, Callable[[Path], str], str, str]] = [
        ("atomic exchange", True, _exchanges, "`sync_dir` refuses to mirror", _MOVE),
        ("hard links", False, _links, "environments are copied, not linked: slower and larger", _MOVE),
        ("reflinks", False, _reflinks, "copies take space and time", "use btrfs, or XFS with `reflink=1`"),
    ]
    for name, needed, attempt, loses, fix in tried:
        try:
            problem = attempt(home)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            found.append(Finding(name, needed, False, problem, loses, fix))
        else:
            found.append(Finding(name, needed, True, "tried"))
    found.append(_snapshots(home, clones=found[-1].works))
    return found


def _snapshots(home: Path, *, clones: bool) -> Finding:
    """Report the way of volumes' snapshots and its cost; one way always works."""
    if clones:
        how = "by reflinks: about 0.1 ms for each file, and no space until something changes"
    elif linux.kind_of(str(home)) == "fuse.juicefs":
        how = "by JuiceFS: no content is copied; fast where its program `juicefs` is found, a file at a time where not"
    else:
        how = "by copies: the first takes the space of the data, each further one that of the files that have changed"
    return Finding("snapshots", False, True, how)


_DISK = (
    "environments cannot be built, and functions cannot write",
    "run `atoll env prune`, or set `ATOLL_HOME` to a larger disk",
)
_MOVE = "set `ATOLL_HOME` to a directory on ext4, XFS, btrfs or tmpfs"


def _fuse() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        fix = "run `sudo modprobe fuse`; for a container, add `--device /dev/fuse --cap-add SYS_ADMIN`"
        if isinstance(error, PermissionError):
            fix = "run `sudo chmod 666 /dev/fuse`, as most distributions have it"
        loses = "file systems of a cluster cannot be mounted by Atoll"
        return Finding("FUSE", False, False, f"`/dev/fuse`: {error.strerror}", loses, fix)
    return Finding("FUSE", False, True, "`/dev/fuse` opens")


def _free_bytes(directory: Path) -> int:
    """Return the bytes that this user can still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _writable(directory: Path) -> str:
    """Make the directory if it is missing and write a file there; return the error, empty for none."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"atoll")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _exchanges(directory: Path) -> str:
    """Exchange two directories atomically; return the error, empty for none."""
    with _scratch(directory) as scratch:
        one, two = scratch / "one", scratch / "two"
        one.mkdir()
        two.mkdir()
        (one / "mark").touch()
        try:
            linux.exchange(_HERE, str(one), _HERE, str(two))
        except OSError as error:
            return error.strerror or str(error)
        return "" if (two / "mark").exists() else os.strerror(errno.EIO)


def _links(directory: Path) -> str:
    """Make a hard link; return the error, empty for none."""
    with _scratch(directory) as scratch:
        (scratch / "one").touch()
        try:
            os.link(scratch / "one", scratch / "two")
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _reflinks(directory: Path) -> str:
    """Clone a file without copying its blocks; return the error, empty for none."""
    with _scratch(directory) as scratch:
        (scratch / "one").write_bytes(bytes(4096))
        with open(scratch / "one", "rb") as one, open(scratch / "two", "wb") as two:
            try:
                linux.clone(one.fileno(), two.fileno())
            except OSError as error:
                return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as name:
        yield Path(name)
