"""Machines of tests: network namespaces with a cable between them, and servers on them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import Home
from ..waiting import PATIENCE_SECONDS, until

SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
COMMAND = "import sys; from atoll.cli.main import main; sys.exit(main())"
_HOLDER = "import sys; print('ready', flush=True); sys.stdin.read()"


@dataclass
class Machine:
    """A network namespace, held by a process."""

    pid: int

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a program on this machine."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *arguments]

    def ip(self, *arguments: str) -> None:
        subprocess.run(self.command("ip", *arguments), check=True)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Make a machine without any network but its loopback."""
    command = ["unshare", "--net", sys.executable, "-c", _HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            made = Machine(holder.pid)
            made.ip("link", "set", "lo", "up")
            yield made
        finally:
            holder.kill()


@contextlib.contextmanager
def serving(where: Machine, command: list[str], log: Path, environment: dict[str, str], port: int) -> Iterator[None]:
    """Run a server on a machine, from the moment at which it listens."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            where.command(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    try:

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            sockets = Path(f"/proc/{where.pid}/net/tcp").read_text().splitlines()[1:]
            return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in sockets)

        until(listens)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()


def user_of(home: Home, name: str) -> dict[str, str]:
    """Add a user; return the variables of the key."""
    from atoll.server.accounts.bodies import NewUser
    from atoll.server.accounts.direct import Direct

    with Direct(home.path) as accounts:
        key = accounts.add_user(NewUser(name)).key
    assert key is not None
    return {"ATOLL_KEY_ID": key.id, "ATOLL_KEY_SECRET": key.secret}


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make a machine at `SERVER` and one at `CLIENT`, which is the first one's way to elsewhere; skips without the tools."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("`ip` and `nsenter` are not installed")
    with machine() as there, machine() as here:
        cable = ["link", "add", "cable", "netns", str(there.pid), "type", "veth"]
        subprocess.run(["ip", *cable, "peer", "name", "cable", "netns", str(here.pid)], check=True)
        for place, address in ((there, SERVER), (here, CLIENT)):
            place.ip("address", "add", f"{address}/24", "dev", "cable")
            place.ip("link", "set", "cable", "up")
        there.ip("route", "add", "default", "via", CLIENT)
        yield there, here
