"""Resources in plain numbers, with a real daemon and real sandboxes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.host import daemon_start
from atoll.host.local import local
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
