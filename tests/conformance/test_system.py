"""The sandbox as a machine: its name, its directories, and what programs of the system look for."""

from __future__ import annotations

import glob
import os
import socket
import time
from typing import Any

import pytest

from .conftest import Place

pytestmark = pytest.mark.as_user


@pytest.mark.parametrize("network", [None, "none", "host"])
def test_its_own_name_resolves(place: Place, network: str | None) -> None:
    """What asks for the address of its own name gets one that it can listen at and connect to."""

    def look() -> tuple[bool, str, str, str]:
        name = socket.gethostname()
        with socket.create_server((name, 0)) as server, socket.create_connection(server.getsockname()[:2]):
            address = socket.gethostbyname(name)
        with open("/etc/hostname") as file:
            kept = file.read().strip()
        return kept == name == os.uname().nodename, address, socket.getfqdn(), socket.gethostbyaddr("127.0.0.1")[0]

    same, address, full, loopback = place.isolated(look, network=network)()
    assert (same, address[:4], loopback) == (True, "127.", "localhost")
    assert full.startswith("atoll-")


def test_two_sandboxes_have_different_names(place: Place) -> None:
    """A lock file that names host and pid names one process."""
    names = {place.isolated(socket.gethostname, network=network)() for network in ("none", "host")}
    assert len(names) == 2


def test_the_directories_that_programs_expect_are_there(place: Place) -> None:
    """Temporary, lock and runtime directories can be written; the user's own is private."""

    def look() -> list[Any]:
        for directory in ("/var/tmp", "/run", "/var/run", "/run/lock", "/var/lock", os.environ["XDG_RUNTIME_DIR"]):
            path = f"{directory}/conformance-written"
            with open(path, "w") as file:
                file.write("x")
            os.remove(path)
        runtime = os.stat(os.environ["XDG_RUNTIME_DIR"])
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{os.environ['XDG_RUNTIME_DIR']}/conformance-socket")
        os.remove(f"{os.environ['XDG_RUNTIME_DIR']}/conformance-socket")
        return [
            runtime.st_uid == os.getuid(),
            oct(runtime.st_mode & 0o777),
            os.environ["XDG_RUNTIME_DIR"] == f"/run/user/{os.getuid()}",
        ]

    assert place.isolated(look)() == [True, "0o700", True]


def test_standard_streams_can_be_opened_by_name(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Programs that write to `/dev/stdout` or `/dev/stderr` reach the caller, and `/dev/fd` names descriptors."""

    def write() -> str:
        import subprocess

        subprocess.run("echo one | tee /dev/stderr > /dev/stdout", shell=True, check=True)
        read, end = os.pipe()
        os.write(end, b"through a name")
        os.close(end)
        with open(f"/dev/fd/{read}") as file:
            return file.read()

    assert place.isolated(write)() == "through a name"
    assert capfd.readouterr() == ("one\n", "one\n")


def wait_for_file(path: str) -> None:
    """Wait until another function has made a file."""
    deadline = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


def test_processes_of_two_sandboxes_have_different_numbers(place: Place) -> None:
    """A program that locks by its process id works in two sandboxes at once: LMDB, on one database in `/data`."""

    def read(own: str, other: str) -> tuple[int, bytes | None]:
        import lmdb

        with lmdb.open("/data/conformance-lmdb", map_size=1 << 20) as database:
            with database.begin(write=True) as change:
                change.put(own.encode(), b"written")
            with database.begin() as snapshot:
                found = snapshot.get(own.encode())
                open(f"/data/conformance-lmdb-{own}", "w").close()
                wait_for_file(f"/data/conformance-lmdb-{other}")
        return os.getpid(), found

    def clean() -> None:
        import glob
        import shutil

        shutil.rmtree("/data/conformance-lmdb", ignore_errors=True)
        for path in glob.glob("/data/conformance-lmdb-*"):
            os.remove(path)

    place.isolated(clean)()
    options = {"requirements": ["lmdb==1.6.2"]}
    apart, beside = (place.isolated(read, network=network, **options) for network in ("none", "host"))
    first, second = apart.submit("first", "second"), beside.submit("second", "first")
    (one, found), (other, also) = first.result(200), second.result(200)
    place.isolated(clean)()
    assert (found, also) == (b"written", b"written")
    assert abs(one - other) > 1000


@pytest.mark.skipif(
    not os.environ.get("SOAK") or not glob.glob("/usr/lib/postgresql/*/bin/postgres"), reason="SOAK only"
)
def test_a_second_postgresql_on_one_directory_is_refused(place: Place) -> None:
    """Servers of two sandboxes tell each other's files apart as on one machine, also when one has been killed."""

    def serve(own: str, other: str) -> tuple[int | None, str]:
        import subprocess

        programs = glob.glob("/usr/lib/postgresql/*/bin")[0]
        data = "/data/conformance-postgresql"
        if not os.path.exists(data):
            subprocess.run([f"{programs}/initdb", "-D", data, "-A", "trust", "-N"], check=True, capture_output=True)
        line = [f"{programs}/postgres", "-D", data, "-k", "/tmp", "-h", ""]
        with open("/tmp/log", "w+") as log, subprocess.Popen(line, stdout=log, stderr=log) as server:
            while server.poll() is None and "ready to accept" not in open("/tmp/log").read():
                time.sleep(0.02)
            open(f"/data/conformance-postgresql-{own}", "w").close()
            if other:
                wait_for_file(f"/data/conformance-postgresql-{other}")
            status = server.poll()
            server.kill()
            server.wait()
            return status, open("/tmp/log").read()

    def clean() -> None:
        import shutil

        for path in glob.glob("/data/conformance-postgresql*"):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    place.isolated(clean)()
    beside = place.isolated(serve, network="host")  # a place without it skips before anything runs
    first = place.isolated(serve, network="none").submit("first", "second")
    place.isolated(wait_for_file, network="host")("/data/conformance-postgresql-first")
    refused, text = beside("second", "")
    running, _ = first.result(120)
    again, log = beside("third", "")
    place.isolated(clean)()
    assert (refused, running) == (1, None), text
    assert "still in use" in text
    assert again is None, log
