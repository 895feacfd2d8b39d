"""Resources in plain numbers, with a real daemon and real sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.host import daemon_start
from atoll.host.local import local
from atoll.node.tmp_disks import TmpDisks
from atoll.sandbox.limits.limits import Limits
from atoll.settings import Settings
from atoll.wire.channel import Channel

from ..conftest import Home
from ..waiting import until
from .test_machine_types import fake_gpus, settings

pytestmark = pytest.mark.as_user


@pytest.fixture(scope="module")
def kernel() -> frozenset[str]:
    """What the kernel limits for this user."""
    limits = Limits(Settings(Path(f"/tmp/atoll-limits-{os.getpid()}")))
    found = limits.controllers
    limits.close()
    return found


def fill(megabytes: int) -> int:
    return len(bytearray(b"x") * (megabytes << 20)) >> 20


def pause(name: str) -> None:
    """Say that the call runs, and wait until the test lets it end."""
    import time

    open(f"/data/{name}-runs", "w").close()
    while not os.path.exists(f"/data/{name}-ends"):
        time.sleep(0.01)


def volume(home: Home) -> Path:
    (found,) = (home.path / "volumes").glob("*/data")
    return found


def quota_of(pid: int) -> float:
    """Return the cores that the group of a process may use, by the kernel's own file."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"):
            directory = Path(root + path)
            if "cpu" in controllers.split(",") and (directory / "cpu.cfs_quota_us").exists():
                quota = int((directory / "cpu.cfs_quota_us").read_text())
                return quota / int((directory / "cpu.cfs_period_us").read_text())
            if not controllers and (directory / "cpu.max").exists():
                most, period = (directory / "cpu.max").read_text().split()
                return int(most) / int(period)
    raise AssertionError("the process is in no group with a quota")


def test_the_kernel_is_told_the_quota_that_a_function_names(atoll_home: Home, kernel: frozenset[str]) -> None:
    """A worker with `cpu=0.5` is in a group whose quota is half a core."""
    if "cpu" not in kernel:
        pytest.skip("this user cannot limit processor time here")
    isolated(cpu=0.5, keep_alive=60)(fill)(1)
    (worker,) = local.request("status", {})["workers"]
    assert quota_of(worker["pid"]) == 0.5


def test_too_much_memory_names_the_option(atoll_home: Home) -> None:
    """A worker over its `memory` is out of memory; the next step names that option, and the next call works."""
    function = isolated(memory="300MB", keep_alive=30)(fill)
    with pytest.raises(errors.OutOfMemory) as caught:
        function(600)
    assert caught.value.limit_bytes is not None
    assert 299_000_000 < caught.value.limit_bytes <= 300_000_000
    assert 'give the function `memory="600MB"`' in caught.value.hint
    assert function(50) == 50
    assert function.on(memory="1GB")(600) == 600


@pytest.mark.once
def test_numbers_larger_than_the_machine_fail_at_once(atoll_home: Home) -> None:
    """A call that can never fit is refused before anything is built, with the nearest that fits."""
    settings(atoll_home, f'[pool]\nslots = 2\nmemory_bytes = {12 << 30}\ngpus = "none"\n')
    function: Any = isolated(requirements=["no-such-package-anywhere"])(fill)
    with pytest.raises(errors.ResourcesUnavailable, match="asks for `cpu=64`, and this machine has 2 CPUs") as caught:
        function.on(cpu=64)(1)
    assert caught.value.hint == "the largest type that fits is `M`; nearest: `cpu=2`"
    with pytest.raises(errors.ResourcesUnavailable, match='`memory="1TB"`') as caught:
        function.on(memory="1TB")(1)
    assert 'nearest: `memory="12GiB"`' in caught.value.hint
    with pytest.raises(errors.ResourcesUnavailable, match=r'`gpu="A100:2"`, and this machine has no GPUs'):
        function.on(gpu="A100:2")(1)


@pytest.mark.once
def test_a_number_of_gpus_is_what_a_call_sees(atoll_home: Home) -> None:
    """`gpu=2` shows two devices and names both to CUDA; `gpu=0` takes them from a type that has one."""
    with fake_gpus(atoll_home, 3) as paths:

        @isolated(gpu=2)
        def seen(directory: str) -> tuple[list[str], str]:
            found = os.listdir(directory) if os.path.exists(directory) else []
            return sorted(name for name in found if "nvidia" in name), os.environ.get("CUDA_VISIBLE_DEVICES", "none")

        directory = os.path.dirname(paths[0])
        assert seen(directory) == (["nvidia0", "nvidia1"], "0,1")
        assert seen.on(gpu=0, machine_type="GPU")(directory) == ([], "none")


@contextlib.contextmanager
def asked(function: Any) -> Iterator[Channel]:
    """A lease that is asked for as a client does, by hand."""
    message = {"type": "lease", "spec": function.lease_spec().to_data(), "client": "by-hand"}
    channel = daemon_start.control_connection(local.settings, message)
    assert channel is not None
    try:
        yield channel
    finally:
        channel.close()


def reason_of(channel: Channel, wanted: str) -> dict[str, Any]:
    """Return the first `waiting` message whose reason has this text."""
    while True:
        header = channel.receive().header
        assert header["type"] == "waiting", header
        if wanted in header["reason"]:
            return header


@pytest.mark.once
def test_a_call_that_waits_names_the_call_that_holds_its_cores(atoll_home: Home) -> None:
    """A second call is told the share, the function and the id of the first; a third one its turn; then it is granted."""
    settings(atoll_home, "[pool]\nslots = 2\n")
    running: Any = isolated(cpu=2, keep_alive=30)(pause).submit("cores")
    until(lambda: list((atoll_home.path / "volumes").glob("*/data/cores-runs")))
    call = running.call_id[:8]
    with asked(isolated(cpu=1, max_concurrency=1)(fill)) as second:
        header = reason_of(second, "(")
        assert header == {"type": "waiting", "position": 0, "reason": f"2 CPUs held by pause ({call})"}
        with asked(isolated(cpu=1)(len)) as third:
            assert reason_of(third, "turn") == {
                "type": "waiting",
                "position": 1,
                "reason": "its turn: 1 call before it",
            }
        (volume(atoll_home) / "cores-ends").touch()
        running.result()
        until(lambda: second.receive().type == "granted")
        with asked(isolated(cpu=1, max_concurrency=1)(fill)) as again:
            assert reason_of(again, "max")["reason"].startswith("max_concurrency of fill: 1 running")


def write(megabytes: int) -> tuple[int, str]:
    """Write a file of zeros below `/tmp` in pieces; return what was written and the name of the error that ended it."""
    import errno

    piece, written = bytes(1 << 20), 0
    with open("/tmp/large", "wb", buffering=0) as file:
        try:
            for _ in range(megabytes):
                written += file.write(piece)
        except OSError as error:
            return written, errno.errorcode[error.errno or 0]
    return written, ""


def room() -> tuple[int, str, list[str], int]:
    found = os.statvfs("/tmp")
    return found.f_bavail * found.f_frsize, os.environ["TMPDIR"], sorted(os.listdir("/tmp")), os.stat("/tmp").st_mode


@pytest.fixture
def mounts(atoll_home: Home) -> bool:
    """True if a `/tmp` on the disk is a file system of its own here."""
    disks = TmpDisks(Settings(atoll_home.path))
    asyncio.run(disks.check(100 << 20))
    return disks._mounts is True


def left(home: Home) -> list[str]:
    """Return what is left of `/tmp` directories: names below the state directory, and mounted files without a name."""
    names = os.listdir(home.path / "tmp") if (home.path / "tmp").exists() else []
    files = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return names + [text for text in files if str(home.path) in text]


def test_a_tmp_on_the_disk_is_larger_than_the_memory(atoll_home: Home, kernel: frozenset[str]) -> None:
    """With `disk`, more can be written to `/tmp` than the worker may use memory; without it, it may not."""
    function = isolated(memory="150MB", disk="400MB", keep_alive=0)(write)
    assert function(300) == (300 << 20, "")
    if "memory" in kernel:  # the watchdog does not count files in memory
        with pytest.raises(errors.OutOfMemory):
            function.on(disk=None)(300)


def test_a_full_tmp_is_no_space_left(atoll_home: Home, mounts: bool) -> None:
    """A write beyond `disk` is `ENOSPC` where the kernel bounds it, and all that was asked for fits."""
    if not mounts:
        pytest.skip("a directory is counted here")
    function = isolated(disk="100MB", keep_alive=30)(write)
    written, error = function(200)
    assert error == "ENOSPC"
    assert 100_000_000 <= written < 110_000_000
    free, directory, names, mode = isolated(disk="1GB")(room)()
    assert 1_000_000_000 <= free < 1_100_000_000
    assert (directory, [name for name in names if not name.startswith(".")], stat.S_IMODE(mode)) == ("/tmp", [], 0o1777)


def test_a_counted_tmp_over_its_bound_ends_its_sandbox(atoll_home: Home, mounts: bool) -> None:
    """Where no file system can be mounted, a call that writes more than `disk` is ended with the reason."""
    if mounts:
        pytest.skip("the kernel bounds it here")

    def flood() -> None:
        write(300)
        while True:
            time.sleep(1)

    function = isolated(disk="100MB", keep_alive=30)(flood)
    with pytest.raises(errors.WorkerDied, match=r'`/tmp` holds more than its `disk="100MB"`: \d+ MiB') as caught:
        function()
    assert "larger `disk`" in caught.value.hint
    assert isolated(disk="100MB")(write)(20) == (20 << 20, "")


def test_files_in_tmp_go_with_the_sandbox(atoll_home: Home) -> None:
    """Nothing of a `/tmp` on the disk is left after its sandbox, nor after a daemon that was killed, by its next one."""
    assert isolated(disk="60MB", keep_alive=0)(write)(20) == (20 << 20, "")
    until(lambda: not left(atoll_home))
    running = isolated(disk="60MB", keep_alive=60)(pause).submit("tmp")
    until(lambda: list((atoll_home.path / "volumes").glob("*/data/tmp-runs")))
    assert left(atoll_home)
    pid = atoll_home.daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(errors.AtollError):
        running.result(60)
    assert isolated(keep_alive=0)(fill)(1) == 1
    until(lambda: not left(atoll_home))


@pytest.mark.once
def test_two_sizes_of_tmp_are_two_sandboxes(atoll_home: Home) -> None:
    """`disk` is part of the sandbox's key: a function never sees the files of one with another size."""
    isolated(disk="60MB", keep_alive=60, preload=[])(write)(1)
    assert "large" in isolated(disk="60MB", preload=[])(room)()[2]
    assert "large" not in isolated(disk="70MB", preload=[])(room)()[2]


@pytest.mark.once
def test_more_disk_than_is_free_is_refused_with_the_nearest(atoll_home: Home) -> None:
    """A `/tmp` larger than the free space of the state's disk is refused before anything is built."""
    function = isolated(disk="900TB", requirements=["no-such-package-anywhere"])(write)
    with pytest.raises(errors.ResourcesUnavailable, match='asks for `disk="900TB"`') as caught:
        function(1)
    assert caught.value.hint.startswith('nearest: `disk="')


@pytest.mark.once
def test_capacity_tells_what_is_free_and_what_fits(atoll_home: Home) -> None:
    """The request `capacity` has the machine's totals, its free shares, and how many of each type fit, while a call runs."""
    settings(atoll_home, f'[pool]\nslots = 4\nmemory_bytes = {10 << 30}\ngpus = "none"\n')
    machine = {"cpus": 4.0, "memory_bytes": 10 << 30, "gpus": []}
    before = local.request("capacity", {})
    assert before["machine"] == machine
    assert before["free"] == {"cpus": 4.0, "memory_bytes": 10 << 30, "gpus": 0}
    assert {one["name"]: one["fits_now"] for one in before["types"]} == {
        "XS": 16,
        "S": 8,
        "M": 1,
        "L": 1,
        "XL": 1,
        "GPU-T4": 0,
        "GPU": 0,
    }
    assert [one["name"] for one in before["types"] if one["largest"]] == ["M"]
    running = isolated(machine_type="M", keep_alive=30)(pause).submit("call")
    until(lambda: list((atoll_home.path / "volumes").glob("*/data/call-runs")))
    during = local.request("capacity", {})
    assert during["machine"] == machine
    assert during["free"] == {"cpus": 2.0, "memory_bytes": 2 << 30, "gpus": 0}
    assert {one["name"]: one["fits_now"] for one in during["types"] if one["fits_now"]} == {"XS": 8, "S": 2}
    (volume(atoll_home) / "call-ends").touch()
    running.result()
