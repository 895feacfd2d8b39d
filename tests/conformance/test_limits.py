"""Machine types, `max_concurrency`, network policies, mounts: what a call may use."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from ..waiting import PATIENCE_SECONDS
from .conftest import Place

pytestmark = pytest.mark.as_user


def fill(megabytes: int) -> int:
    block = bytearray(megabytes << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    return len(block) >> 20


@pytest.mark.parametrize(("machine_type", "megabytes"), [("XS", 100), ("S", 600), ("M", 1200)])
def test_what_fits_a_machine_type_runs(place: Place, machine_type: str, megabytes: int) -> None:
    """A function may use what its type gives it."""
    assert place.isolated(fill, machine_type=machine_type)(megabytes) == megabytes


@pytest.mark.parametrize(("machine_type", "limit", "larger"), [("XS", 256 << 20, "S"), ("S", 1 << 30, "M")])
def test_too_much_memory_is_named(place: Place, machine_type: str, limit: int, larger: str) -> None:
    """`OutOfMemory` is a `WorkerDied` with the limit, the peak and the next larger type; the next call works."""
    function = place.isolated(fill, machine_type=machine_type)
    with pytest.raises(errors.OutOfMemory) as caught:
        function((limit >> 20) + 200)
    assert caught.value.limit_bytes == limit
    assert caught.value.peak_bytes is not None
    assert caught.value.peak_bytes > limit // 2
    assert f'"{larger}"' in caught.value.hint
    assert function(10) == 10


def test_memory_of_what_a_function_starts_counts(place: Place) -> None:
    """Children share their worker's limit."""

    def start() -> int:
        import subprocess

        code = "b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"
        return subprocess.run(["python", "-c", code], check=False).returncode

    status = 1  # the child was killed alone, or the worker with it
    with contextlib.suppress(errors.OutOfMemory):
        status = place.isolated(start, machine_type="XS")()
    assert status != 0


def test_a_worker_that_kills_itself_is_not_out_of_memory(place: Place) -> None:
    """SIGKILL alone says nothing about memory, in a worker whose memory was never short."""

    def die() -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(errors.WorkerDied) as caught:
        place.isolated(die, machine_type="XS", env={"CONFORMANCE": "kills itself"})()
    assert not isinstance(caught.value, errors.OutOfMemory)


def test_an_unknown_machine_type_is_refused(place: Place) -> None:
    """A type that does not exist is a `ValueError` that names those that do."""
    with pytest.raises(ValueError, match="XL"):
        place.isolated(fill, machine_type="XLL")


def test_a_larger_type_than_the_machine_is_served(place: Place) -> None:
    """`XL` on a small machine gets what there is."""
    assert place.isolated(fill, machine_type="XL")(10) == 10


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_a_gpu_type_without_a_gpu_is_refused(place: Place) -> None:
    """A machine without a GPU says so."""
    with pytest.raises(errors.ResourcesUnavailable, match="GPU"):
        place.isolated(fill, machine_type="GPU-T4")(1)


@pytest.mark.once
def test_max_concurrency_bounds_the_calls_at_a_time(place: Place) -> None:
    """With `max_concurrency=1` no two calls of the function overlap, and all are answered."""

    def alone(number: int) -> int:
        descriptor = os.open("/data/conformance-alone", os.O_CREAT | os.O_EXCL)
        time.sleep(0.005)
        os.close(descriptor)
        os.remove("/data/conformance-alone")
        return number

    function = place.isolated(alone, max_concurrency=1)
    futures = [function.submit(number) for number in range(20)]
    assert [future.result(60) for future in futures] == list(range(20))


ALONE = """
import sys
from atoll import isolated

@isolated(max_concurrency=1, keep_alive=60)
def alone(number):
    import os, time
    path = "/data/conformance-programs-alone"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    time.sleep(0.005)
    os.remove(path)
    return number

print("ready", flush=True)
sys.stdin.readline()
print([future.result(60) for future in [alone.submit(number) for number in range(8)]] == list(range(8)))
"""


@pytest.mark.once
def test_max_concurrency_bounds_the_calls_of_all_programs(place: Place, tmp_path: Path) -> None:
    """Calls of a function that two programs make do not overlap, wherever they run; no idle worker keeps the other out."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(place.program(tmp_path / "alone.py", ALONE)) for _ in range(3)]
        for one in programs:
            assert one.stdout is not None
            assert one.stdout.readline() == b"ready\n"
        for one in programs:
            assert one.stdin is not None
            one.stdin.write(b"\n")
            one.stdin.flush()
        for one in programs:
            printed, said = one.communicate(timeout=PATIENCE_SECONDS)
            assert printed == b"True\n", said.decode()


@pytest.mark.once
def test_a_function_that_waits_for_itself_beyond_its_bound_is_refused(place: Place) -> None:
    """A chain that `max_concurrency` can never let through is an error, not a wait without an end."""

    def inner_call(again: Any, depth: int) -> int:
        return 0 if depth == 0 else 1 + int(again(again, depth - 1))

    function: Any = place.isolated(inner_call, max_concurrency=1)
    with pytest.raises(errors.ResourcesUnavailable):
        function(function, 1)
    assert function(function, 0) == 0


# --- network -----------------------------------------------------------------------------------------------------------


def connect(address: str, port: int) -> str:
    import socket

    try:
        with socket.create_connection((address, port), 3):
            return "connected"
    except OSError as error:
        return type(error).__name__


def test_without_a_network_nothing_outside_is_reached(place: Place) -> None:
    """With `network="none"` a function reaches itself only, and not what listens on its machine."""
    import socket

    def to_itself() -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return connect("127.0.0.1", server.getsockname()[1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert place.isolated(connect, network="none")("127.0.0.1", port) != "connected"
        assert place.isolated(connect, network="none")("169.254.169.254", 80) != "connected"
    assert place.isolated(to_itself, network="none")() == "connected"


def test_the_machines_network_is_the_machines(place: Place) -> None:
    """With `network="host"` a function reaches what listens on its machine."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert place.isolated(connect, network="host")("127.0.0.1", server.getsockname()[1]) == "connected"


def test_outbound_does_not_reach_the_machine_or_is_refused(place: Place) -> None:
    """`network="outbound"` is what it says, or an error with the fix; never the machine's own network."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = "refused"
        with contextlib.suppress(errors.ResourcesUnavailable, errors.SandboxUnavailable):
            reached = place.isolated(connect, network="outbound")("127.0.0.1", server.getsockname()[1])
    assert reached != "connected"


def test_an_unknown_policy_is_refused(place: Place) -> None:
    """A policy that does not exist is a `ValueError` when the function is defined."""
    with pytest.raises(ValueError, match="outbound"):
        place.isolated(connect, network="everything")


def test_functions_of_other_policies_share_data(place: Place) -> None:
    """`/data` is the same whatever the network is."""

    def write() -> None:
        Path("/data/conformance-policy").write_text("shared")

    def read() -> str:
        return Path("/data/conformance-policy").read_text()

    place.isolated(write, network="none")()
    assert place.isolated(read)() == "shared"


# --- mounts ------------------------------------------------------------------------------------------------------------


def test_a_mount_is_read_only(place: Place, tmp_path: Path) -> None:
    """`mounts` shows a directory of the machine, which a function cannot change."""
    (tmp_path / "file").write_text("mounted")
    tmp_path.chmod(0o755)

    def look() -> tuple[str, bool]:
        with contextlib.suppress(OSError):
            Path("/datasets/new").write_text("x")
        return Path("/datasets/file").read_text(), Path("/datasets/new").exists()

    assert place.isolated(look, mounts={"/datasets": str(tmp_path)})() == ("mounted", False)
    assert not (tmp_path / "new").exists()
    assert not place.isolated(os.path.exists)("/datasets")


@pytest.mark.parametrize("target", ["relative", "/", "/a/../b"])
def test_a_mount_that_makes_no_sense_is_refused(place: Place, target: str) -> None:
    """A mount must have an absolute place below the root."""
    with pytest.raises(ValueError, match="mount"):
        place.isolated(connect, mounts={target: "/tmp"})
