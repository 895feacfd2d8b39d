"""Attacks that have failed, from the place where a hostile function runs: a worker, or a sandbox with a network."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from atoll import isolated
from tests.conftest import Home

from ..sandbox.conftest import Someone, someone
from ..sandbox.test_network import run

__all__ = ["someone"]
pytestmark = pytest.mark.as_user

CALLS = {
    "io_uring_setup": (425, (8, 0)),
    "bpf": (321, (0, 0, 0)),
    "perf_event_open": (298, (0, 0, -1, -1, 0)),
    "userfaultfd": (323, (0,)),
    "add_key": (248, (0, 0, 0, 0, -3)),
    "keyctl": (250, (0, -3, 0)),
    "request_key": (249, (0, 0, 0, 0)),
    "kexec_load": (246, (0, 0, 0, 0)),
    "init_module": (175, (0, 0, 0)),
    "open_by_handle_at": (304, (-1, 0, 0)),
    "fanotify_init": (300, (0, 0)),
    "modify_ldt": (154, (0, 0, 0)),
    "process_vm_readv": (310, (1, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, (1, 0, 0, 0, 0, 0)),
    "pidfd_getfd": (438, (-1, 0, 0)),
    "ptrace": (101, (16, 1, 0, 0)),
    "kcmp": (312, (1, 1, 0, 0, 0)),
    "mount": (165, (0, 0, 0, 0, 0)),
    "umount2": (166, (0, 0)),
    "pivot_root": (155, (0, 0)),
    "chroot": (161, (0,)),
    "open_tree": (428, (-100, 0, 0)),
    "fsopen": (430, (0, 0)),
    "move_mount": (429, (-1, 0, -1, 0, 0)),
    "unshare": (272, (0x10000000,)),
    "setns": (308, (-1, 0)),
    "clone3": (435, (0, 0)),
    "personality": (135, (0x0040000,)),
    "swapon": (167, (0, 0)),
    "syslog": (103, (3, 0, 0)),
    "vhangup": (153, ()),
    "file_setattr": (469, (-1, 0, 0, 0, 0)),
    "mknod of a device": (133, (0, 0o020600, 0x103)),
    "mknodat of a whiteout": (259, (-1, 0, 0o020600, 0)),
    "mknodat of a disk": (259, (-1, 0, 0o060600, 0x800)),
    "FS_IOC_SETFLAGS": (16, (-1, 0x40086602, 0)),
    "FS_IOC_FSSETXATTR": (16, (-1, 0x401C5820, 0)),
}
"""System calls of x86_64 by number, with arguments that do nothing where they are let through."""


@isolated(network="none")
def try_calls(calls: dict[str, tuple[int, tuple[int, ...]]]) -> dict[str, int]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, (number, arguments) in calls.items():
        ctypes.set_errno(0)
        value = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        found[name] = ctypes.get_errno() if value == -1 else 0
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.usefixtures("shared_home")
def test_a_worker_is_refused_each_way_into_the_kernel() -> None:
    """Calls that make namespaces, mounts, keys, programs in the kernel or ways to other processes fail in a worker."""
    found = try_calls(CALLS)
    refused = {errno.EPERM, errno.ENOSYS}
    assert {name: errno.errorcode.get(error, error) for name, error in found.items() if error not in refused} == {}


@isolated(network="none")
def try_files() -> dict[str, str]:
    import fcntl
    import struct

    found: dict[str, str] = {}

    def attempt(name: str, action: Any) -> None:
        try:
            action()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]

    with open("/data/held-flags", "w") as file:
        for name, flag in (("immutable", 0x10), ("append", 0x20)):
            attempt(name, lambda flag=flag: fcntl.ioctl(file, 0x40086602, struct.pack("l", flag)))
        attempt("project", lambda: fcntl.ioctl(file, 0x401C5820, struct.pack("5I8x", 8, 0, 0, 4711, 0)))
    attempt("trusted", lambda: os.setxattr("/data/held-flags", "trusted.held", b"x"))
    attempt("capability", lambda: os.setxattr("/data/held-flags", "security.capability", b"\1\0\0\2" + bytes(16)))
    attempt("device", lambda: os.mknod("/data/held-device", stat.S_IFBLK | 0o600, os.makedev(8, 0)))
    attempt("owner", lambda: os.chown("/data/held-flags", 0, 0))
    attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
    attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    attempt("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
    attempt("sysrq", lambda: os.open("/proc/sysrq-trigger", os.O_WRONLY))
    attempt("host name", lambda: os.open("/proc/sys/kernel/hostname", os.O_WRONLY))
    attempt("core pattern", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    return found


@pytest.mark.usefixtures("shared_home")
def test_a_worker_is_refused_what_outlives_it_on_the_disk() -> None:
    """Flags and attributes that only root could remove, devices and owners cannot be given to files of `/data`."""
    found = try_files()
    assert {name: error for name, error in found.items() if error == "done"} == {}


@isolated(network="none")
def open_descriptors() -> dict[str, dict[str, str]]:
    """Return descriptors, by process and number, of the worker, its agent and the reaper, as far as they can be read."""
    found: dict[str, dict[str, str]] = {}
    for process in (str(os.getpid()), str(os.getppid()), "1"):
        found[process] = {}
        try:
            for name in os.listdir(f"/proc/{process}/fd"):
                try:
                    path = f"/proc/{process}/fd/{name}"
                    target = os.readlink(path)
                    if target.startswith(("pipe:", "socket:", "anon_inode:")):
                        target = target.partition(":")[0]
                    else:
                        target = f"{target} {stat.S_IFMT(os.stat(path).st_mode):o}"
                    found[process][name] = target
                except OSError:
                    continue
        except OSError:
            continue
    for name in found[str(os.getpid())]:
        if found[str(os.getpid())][name] == "socket":
            with socket.socket(fileno=os.dup(int(name))) as one:
                listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                found[str(os.getpid())][name] = f"socket {one.family.name} {one.getsockname()!r} {listens}"
    return found


@pytest.mark.usefixtures("shared_home")
def test_no_descriptor_of_the_daemon_or_the_machine_is_open_inside() -> None:
    """Worker and agent hold channels without names, pipes, memory and `/dev/null`: no file, directory or listener."""
    found = open_descriptors()
    harmless = ("pipe", "anon_inode", "/memfd:", "/dev/null ", "/dev/zero ", "/proc/")
    strange = {
        f"{process} {number}": target
        for process, descriptors in found.items()
        for number, target in descriptors.items()
        if not target.startswith(harmless) and target not in ("socket", "socket AF_UNIX '' 0")
    }
    assert strange == {}


@isolated(network="none")
def ask_raw(messages: list[dict[str, Any]], version: str) -> list[str]:
    """Send each message on a connection of its own; return how each is answered."""
    from atoll.wire import nested
    from atoll.wire.channel import Channel, ChannelClosed

    found = []
    for message in messages:
        channel = Channel(nested.connect())
        try:
            channel.send_many([({"type": "hello", "version": version}, ()), (message, ())])
            channel.receive()
            while (answer := channel.receive().header)["type"] in ("progress", "notice", "waiting"):
                pass
            error = answer.get("error", {})
            found.append(f"{error['code']}: {error['message']}" if error else answer["type"])
        except ChannelClosed:
            found.append("closed")
        finally:
            channel.close()
    return found


REQUESTS = (
    *("status", "stop", "drain", "calls.list", "calls.show", "calls.output", "volume.restore", "volume.drain"),
    *("environments.list", "environments.build", "environments.lock", "environments.prune", "environments.upgrade"),
    *("environments.show", "environments.clear_cache", "anything"),
)


def lease(**changes: Any) -> dict[str, Any]:
    """Return a message that asks for a lease of a conda environment, or of what `changes` say."""
    environment = {
        "kind": "virtualenv",
        "requirements": [],
        "python_version": "",
        "interpreter": "",
        "index": {},
        **changes.pop("environment", {}),
    }
    return {"type": "lease", "spec": {"environment": environment, **changes}, "client": ""}


def test_a_function_asks_the_daemon_for_calls_alone(shared_home: Home) -> None:
    """Shells, dials, every request, places of the machine and its network are refused, as raw messages too."""
    import atoll

    conda = {"kind": "conda", "packages": ["python"]}
    refused = [
        {"type": "shell", "spec": lease()["spec"], "terminal": True},
        {"type": "dial", "worker": "w1", "port": 22},
        {"type": "collect"},
        *({"type": "request", "name": name, "arguments": {}} for name in REQUESTS),
        lease(mounts={"/host": "/"}),
        lease(network="host"),
        lease(network="outbound"),
        lease(network="bridge"),
        lease(environment={"requirements": ["x @ file:///etc"]}),
        lease(environment={"requirements": ["-e /etc"]}),
        lease(environment={**conda, "channels": ["file:///etc"]}),
        lease(environment={**conda, "channels": ["/etc"]}),
        lease(environment={**conda, "packages": ["a[url=file:///etc/a-1-0.conda]"], "channels": ["https://h.example"]}),
        lease(environment={**conda, "packages": [], "pip": ["x @ file:///etc"], "channels": ["https://h.example"]}),
    ]
    daemons = set(shared_home.daemons())
    answers = ask_raw(refused, atoll.__version__)
    wrong = {}
    for message, answer in zip(refused, answers, strict=True):
        code, _, text = answer.partition(": ")
        if code not in REFUSALS or (code == "environment_build" and "inside a sandbox" not in text):
            wrong[json.dumps(message)] = answer
    assert wrong == {}
    assert daemons <= set(shared_home.daemons())


REFUSALS = ("resources_unavailable", "environment_build", "protocol_mismatch", "volume_busy")


@isolated(network="none")
def volume_of_a_nested_lease(version: str, interpreter: str) -> list[str]:
    """Ask for a lease as another user, with another Python; return the answer and what its worker's volume holds."""
    from atoll import isolated
    from atoll.wire import nested
    from atoll.wire.channel import Channel

    open("/data/of-this-user", "w").close()
    channel = Channel(nested.connect())
    spec = {"environment": {"kind": "virtualenv", "requirements": [], "interpreter": interpreter}, "network": "none"}
    message = {"type": "lease", "spec": {**spec, "user": "other"}, "client": "", "user": "other", "parent": "w0"}
    channel.send_many([({"type": "hello", "version": version, "user": "other"}, ()), (message, ())])
    channel.receive()
    while (answer := channel.receive().header)["type"] in ("progress", "notice", "waiting"):
        pass
    channel.close()
    return [answer["type"], *isolated(os.listdir).on(network="none")("/data")]


def test_a_function_cannot_name_user_or_interpreter(shared_home: Home, tmp_path: Path) -> None:
    """Fields of a message that name another user or a program of the machine change nothing."""
    import atoll

    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    answer, *names = volume_of_a_nested_lease(atoll.__version__, str(program))
    assert answer in ("granted", "failed")
    assert "of-this-user" in names
    assert not (tmp_path / "started").exists()
    assert "other" not in os.listdir(shared_home.volume.parents[1])


def test_nothing_below_an_open_home_is_open(atoll_home: Home) -> None:
    """Where `ATOLL_HOME` itself may be entered, everything in it is closed to other users, environments included."""
    atoll_home.path.chmod(0o755)
    assert isolated(network="none")(abs)(-1) == 1
    atoll_home.atoll("env", "list")
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in atoll_home.path.iterdir()}
    assert {"environments", "volumes", "run", "logs", "agents"} <= modes.keys()
    assert {name: f"{mode:o}" for name, mode in modes.items() if mode & 0o077} == {}


STRANGER = """
import json, os, socket, sys
sys.path[:0] = [sys.argv[2]]
from atoll.wire.channel import Channel, ChannelClosed
os.setgroups([])
os.setgid(54399)
os.setuid(54399)
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(60)
    client.connect(sys.argv[1])
    channel = Channel(client)
    try:
        channel.send({"type": "hello", "version": sys.argv[3], "purpose": "control"})
        channel.send({"type": "request", "name": "status", "arguments": {}})
        print(channel.receive().header)
    except (ChannelClosed, OSError):
        print("refused")
"""


@pytest.mark.root
def test_the_daemon_serves_no_other_user(atoll_home: Home) -> None:
    """A process of another user that reaches the socket gets no answer: the kernel names its uid."""
    import atoll

    assert isolated(network="none")(abs)(-1) == 1
    way = [atoll_home.path, atoll_home.path / "run", atoll_home.path / "run/daemon.sock"]
    modes = [path.stat().st_mode for path in way]
    for path in way:
        path.chmod(0o777)
    try:
        source = str(Path(atoll.__file__).parents[1])
        said = atoll_home.python("-c", STRANGER, str(way[-1]), source, atoll.__version__, cwd=Path("/"))
    finally:
        for path, mode in zip(way, modes, strict=True):
            path.chmod(stat.S_IMODE(mode))
    assert said.stdout == "refused\n"
    assert "client_refused uid=54399" in (atoll_home.path / "logs/daemon.log").read_text()


FORGE = r"""
import errno, json, socket, struct, sys
found = {}
def attempt(name, action):
    try:
        found[name] = action() or "done"
    except TimeoutError:
        found[name] = "timeout"
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, str(error))
def source_route():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        route = bytes([1, 131, 11, 4]) + socket.inet_aton("10.50.0.2") + socket.inet_aton("10.50.0.1")
        one.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        one.settimeout(1)
        one.connect(("10.50.0.2", 8080))
def routing_header(kind, way, target):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
        header = bytes([0, 2, kind, 1]) + bytes(4) + socket.inet_pton(socket.AF_INET6, way)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        one.settimeout(1)
        one.connect((target, 8080))
def multicast(address, family):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.settimeout(1)
        one.sendto(b"x", (address, 5353))
        one.recv(1)
def join():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("", 5354))
        one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + bytes(4))
        one.settimeout(1)
        one.recv(1)
def broadcast():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        one.sendto(b"x", ("255.255.255.255", 9))
def transparent():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
def mark():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, 36, 1)  # SO_MARK
def abstract():
    with open("/proc/net/unix") as file:
        names = [line.split()[-1] for line in file if "@" in line]
    return json.dumps(names)
def forwarded():
    with open("/proc/sys/net/ipv4/ip_forward") as file:
        return file.read().strip()
attempt("source route", source_route)
for kind in (0, 2, 4):
    attempt(f"to the machine by routing header {kind}", lambda: routing_header(kind, "fd50::2", "fd50::1"))
    attempt(f"over the machine by routing header {kind}", lambda: routing_header(kind, "fd50::1", "fd50::2"))
attempt("multicast", lambda: multicast("224.0.0.251", socket.AF_INET))
attempt("multicast 6", lambda: multicast("ff02::1%tap0", socket.AF_INET6))
attempt("join", join)
attempt("broadcast", broadcast)
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and "done")
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) and "done")
attempt("transparent", transparent)
attempt("mark", mark)
attempt("abstract", abstract)
attempt("sysctl", lambda: open("/proc/sys/net/ipv4/ip_forward", "w") and "done")
print(json.dumps(found))
"""

SILENT = """
import json, sys
print(json.dumps([]), flush=True)
sys.stdin.read()
"""


def test_an_outbound_sandbox_forges_no_packets(someone: Someone) -> None:
    """Source routes, raw packets, multicast, broadcast and other marks are refused; no abstract socket is seen."""
    pasta = shutil.which("pasta")
    if pasta is None:
        pytest.skip("`pasta` is not installed")
    found = run(someone, programs={"pasta": pasta}, **{"try": FORGE}, listen=SILENT, addresses=[])
    assert "reached" in found, found
    reached = found["reached"]
    assert json.loads(reached.pop("abstract")) == []
    assert {attack: outcome for attack, outcome in reached.items() if outcome == "done"} == {}
