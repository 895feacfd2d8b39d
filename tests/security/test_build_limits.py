"""Attacks by code of packages while an environment is built: a build is bounded, and reaches nothing of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll import errors
from atoll.environments.built.records import Environment
from atoll.errors import EnvironmentBuildError
from atoll.model.options.environments import EnvironmentsSettings
from atoll.node.builds import Builds
from atoll.node.node import Node
from atoll.settings import SandboxSettings, Settings

from ..environments import Machine

pytestmark = [pytest.mark.as_user]

WAIT = """
    import time
    while True:
        time.sleep(1000)
"""
MEMORY = """
    kept = [bytearray(b"x" * (1 << 20)) for _ in range(600)]
"""
PROCESSES = """
    def multiply():
        for _ in range(300):
            if os.fork() == 0:
                import time
                while True:
                    time.sleep(1000)
    multiply()
"""
DISK = """
    for number in range(400):
        with open(f"/opt/atoll/cache/{number}", "wb") as file:
            file.write(b"x" * (1 << 20))
"""
NAMELESS = """
    file = open("/opt/atoll/cache/x", "wb")
    os.unlink("/opt/atoll/cache/x")
    for number in range(400):
        file.write(b"x" * (1 << 20))
    file.flush()
"""
FLIGHT = """
    import socket
    kept = socket.socketpair()
    for _ in range(8):  # each of them keeps to the limit
        with open("/opt/atoll/cache/x", "wb") as file:
            os.unlink("/opt/atoll/cache/x")
            socket.send_fds(kept[0], [b"x"], [file.fileno()])
            for number in range(50):
                file.write(b"x" * (1 << 20))
"""
MAPPED = """
    import mmap
    kept = []
    for _ in range(8):
        file = os.open("/opt/atoll/cache/x", os.O_RDWR | os.O_CREAT)
        os.unlink("/opt/atoll/cache/x")
        for number in range(50):
            os.write(file, b"x" * (1 << 20))
        kept.append(mmap.mmap(file, 4096))
        os.closerange(file, file + 100)  # with the duplicate that the object keeps
"""
THREAD = """
    import ctypes, threading
    def fill():
        if ctypes.CDLL(None).unshare(0x400):  # CLONE_FILES
            raise SystemExit("refused")
        file = open("/opt/atoll/cache/x", "wb")
        os.unlink("/opt/atoll/cache/x")
        for number in range(400):
            file.write(b"x" * (1 << 20))
        file.flush()
        while True:
            time.sleep(1000)
    import time
    threading.Thread(target=fill).start()
"""

DEEP = """
    here = os.open("/opt/atoll/cache", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 240, dir_fd=here)
        here, above = os.open("n" * 240, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    file = os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    for number in range(400):
        os.write(file, b"x" * (1 << 20))
    os.fsync(file)
"""
NAMES = """
    for number in range(3000):
        os.mkdir(f"/opt/atoll/cache/{number}")
"""


@contextlib.asynccontextmanager
async def node(machine: Machine, sandbox: SandboxSettings | None = None, **limits: Any) -> AsyncIterator[Node]:
    made = Node(
        Settings(machine.home, sandbox=sandbox or SandboxSettings(), environments=EnvironmentsSettings(**limits))
    )
    try:
        yield made
    finally:
        await made.close()


def build(machine: Machine, **limits: Any) -> Environment:
    async def main() -> Environment:
        async with node(machine, **limits) as made:
            return await made.environments.ensure(machine.spec("delta"))

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("during", "kind", "setting", "value"),
    [
        (MEMORY + WAIT, "memory", "build_memory_bytes", 256 << 20),
        (PROCESSES + WAIT, "processes", "build_processes", 100),
        (WAIT, "time", "build_seconds", 1.0),
        (DISK + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (NAMELESS + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (FLIGHT + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (MAPPED + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (THREAD + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (DEEP + WAIT, "disk", "build_disk_bytes", 100 << 20),
        (NAMES + WAIT, "disk", "build_disk_bytes", 4 << 20),
    ],
    ids=[
        "memory",
        "processes",
        "time",
        "disk",
        "files without a name",
        "files in a message",
        "mapped files",
        "files of a thread",
        "paths that are too long",
        "names",
    ],
)
def test_a_build_that_takes_too_much_is_ended_and_says_so(
    tmp_path: Path, during: str, kind: str, setting: str, value: float
) -> None:
    """The error names the limit, its size, and the setting that raises it; nothing of the build stays."""
    machine = Machine(tmp_path)
    machine.sdist("delta", during)
    with pytest.raises(EnvironmentBuildError, match=f"used more {kind} than it may: limit") as caught:
        build(machine, **{"build_seconds": 90.0, setting: value})  # a limit that does not hold fails the test
    assert f"environments.{setting}" in caught.value.hint
    assert machine.work() == []
    assert not [pid for pid in filter(str.isdigit, os.listdir("/proc")) if shows(pid, machine.home)]
    if kind == "memory":
        machine.sdist("delta")
        assert build(machine, **{setting: value}).path.is_dir(), "the next build works"


def test_a_wheel_that_unpacks_to_more_than_it_may_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    """A small file with large contents meets the same limit as a build's code, and no part of it is kept."""
    machine = Machine(tmp_path)
    with (
        zipfile.ZipFile(machine.wheel("delta"), "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb", "w") as bomb,
    ):
        for _ in range(1024):
            bomb.write(bytes(1 << 20))
    with pytest.raises(EnvironmentBuildError, match="used more disk than it may: limit"):
        build(machine, build_seconds=90.0, build_disk_bytes=50 << 20)
    assert machine.work() == []
    kept = sum(path.lstat().st_size for path in machine.home.rglob("*") if path.is_file())
    assert kept < 10 << 20


def shows(pid: str, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return f"{path}/environments" in Path("/proc", pid, "mountinfo").read_text()
    return False


async def network(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], reaches: Sequence[str], *, works: bool = True
) -> str:
    """Return the network in which a command that runs code of packages would run."""

    async def policy(asked: str, _notice: Any) -> str:
        if not works:
            raise errors.SandboxUnavailable("no `pasta`")
        return asked

    builds = Builds(EnvironmentsSettings(), *(None,) * 2, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(builds, "_networks", SimpleNamespace(policy=policy))
    return await builds._network([*environment.values(), *reaches], environment)


@pytest.mark.parametrize(
    ("environment", "reaches", "expected"),
    [
        ({}, (), "outbound"),
        ({"UV_DEFAULT_INDEX": "https://192.0.2.1/simple"}, ("numpy",), "outbound"),
        ({"UV_DEFAULT_INDEX": "http://me:word@127.0.0.1:3141/simple"}, (), "host"),
        ({"UV_DEFAULT_INDEX": "http://localhost/simple"}, (), "host"),
        ({"UV_INDEX": "http://[::1]:80/"}, (), "host"),
        ({"UV_DEFAULT_INDEX": "http://169.254.1.2/"}, (), "host"),
        ({"HTTPS_PROXY": "http://127.0.0.1:8080"}, (), "host"),
        ({"https_proxy": "127.0.0.1:8080"}, (), "host"),
        ({}, ("delta @ https://127.0.0.1/delta-1.tar.gz",), "host"),
        ({}, ('[[index]]\nurl = "http://127.0.0.1/simple"\n',), "host"),
        ({"UV_DEFAULT_INDEX": "https://no-such-host.invalid/"}, (), "outbound"),
    ],
)
def test_a_build_reaches_the_machine_only_where_its_index_is(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], reaches: Sequence[str], expected: str
) -> None:
    """Indexes, proxies, requirements and the configuration of uv are looked at."""
    assert asyncio.run(network(monkeypatch, environment, reaches)) == expected


def test_where_no_outbound_network_can_be_made_a_build_has_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are built on machines without `pasta`, as functions run there."""
    assert asyncio.run(network(monkeypatch, {}, (), works=False)) == "host"


def test_code_of_a_package_reaches_no_service_of_the_machine(tmp_path: Path) -> None:
    """A `setup.py` that connects to a port of the machine's loopback is refused; `pasta` may lie in `/var/tmp`."""
    found = shutil.which("pasta")
    if found is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs `pasta` and `/dev/net/tun`")
    machine = Machine(tmp_path)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(directory, 0o755)  # the carrier has a uid of its own
        pasta = shutil.copy(os.path.realpath(found), f"{directory}/pasta")
        port = server.getsockname()[1]
        machine.sdist(
            "delta",
            f"    import socket\n    try:\n        socket.create_connection(('127.0.0.1', {port}), 5)\n"
            "        note = 'reached'\n    except OSError:\n        note = 'refused'\n",
        )

        async def main() -> Environment:
            async with node(machine, SandboxSettings(pasta=pasta)) as made:
                try:
                    await made.network("outbound", lambda _: None)
                except errors.SandboxUnavailable as error:
                    pytest.skip(str(error))
                return await made.environments.ensure(machine.spec("delta"))

        assert machine.python(asyncio.run(main()), "import delta; print(delta.NOTE)") == "refused"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_wheel_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """A small archive of a large file, unpacked beside the shared cache, meets the limit of the disk as well."""
    machine = Machine(tmp_path)
    path = machine.wheel("delta")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("delta_large", bytes(96 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(EnvironmentBuildError, match="used more disk than it may: limit"):
        build(machine, build_disk_bytes=32 << 20)
    assert machine.work() == []
