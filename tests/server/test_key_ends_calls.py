"""Keys and users that end while their programs are at work: each gets the cause and the next step."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from atoll import Host, Volume, errors, isolated
from atoll.sdk.futures import CallFuture
from atoll.server.accounts.bodies import NewKey, NewUser
from atoll.server.accounts.direct import Direct

from ..conftest import needs_outbound
from ..waiting import until
from .process import Server

pytestmark = needs_outbound
PROGRAM = [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())"]
ENDED = "the key for `{}` is not valid any more: it was revoked or has expired, or its user was removed"


def _wait() -> None:
    import time

    time.sleep(600)


def atoll(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the server's machine."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=server.home.environment({}),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


class Person:
    """A user with a running call, a command beside it, and an open stream of a file."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        key = server.add_user(NewUser(name)).key
        assert key is not None
        self.key = key
        self.host = self.host_with(key)
        self.call: Future[Any] = isolated(host=self.host)(_wait).submit()
        assert isinstance(self.call, CallFuture)
        self.id = self.call.call_id
        until(lambda: [row["worker"] for row in self.host.request("calls.running", {})["calls"] if row["worker"]])
        self.command = subprocess.Popen(
            [*PROGRAM, "exec", self.id, "sh", "-c", "echo began; sleep 600"],
            env={
                **os.environ,
                "ATOLL_HOST": server.url,
                "ATOLL_KEY_ID": key.id,
                "ATOLL_KEY_SECRET": key.secret,
                "ATOLL_CA_FILE": str(server.ca_file),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.command.stdout is not None
        assert self.command.stdout.readline() == "began\n"

    def host_with(self, key: Any) -> Host:
        return Host(self.server.url, key_id=key.id, key_secret=key.secret, ca_file=str(self.server.ca_file))

    def check_ended(self) -> None:
        """Check that all of it has ended with the same cause and next step."""
        with pytest.raises(errors.NotAuthorized) as caught:
            self.call.result(60)
        assert caught.value.message == f"{ENDED.format(self.server.url)}; call {self.id} has ended"
        assert caught.value.hint.startswith(f"run `atoll auth login --host {self.server.url}`, or ask the operator")
        assert errors.call_id(caught.value) == self.id
        _, said = self.command.communicate(timeout=60)
        assert (self.command.returncode, ENDED.format(self.server.url) in said) == (1, True), said
        with pytest.raises(errors.NotAuthorized, match="the key is not valid"):
            isolated(host=self.host)(_wait)()

    def close(self) -> None:
        self.command.kill()
        self.command.communicate()
        self.host.close()


@pytest.fixture
def person(server: Server, request: pytest.FixtureRequest) -> Iterator[Person]:
    with contextlib.closing(Person(server, f"ends-{request.param}")) as found:
        yield found


@pytest.mark.parametrize("person", ["key"], indirect=True)
def test_a_revoked_key_is_the_reason_of_the_end_of_calls(server: Server, person: Person) -> None:
    """Calls, commands and streams of files of the key end; those of another key of the same user go on."""
    with Direct(server.home.path) as direct:
        other = person.host_with(direct.make_key(person.name, NewKey("API")))
    with Volume(person.host) as volume, Volume(other) as kept:
        kept.write_bytes("much", bytes(1 << 20))
        file = volume.open("much", "rb", buffering=0)
        assert file.read(10) == bytes(10)
        atoll(server, "key", "revoke", person.key.id, "--here")
        person.check_ended()
        with pytest.raises(errors.NotAuthorized):
            file.read()
        with pytest.raises(errors.HostUnreachable):
            file.close()
        assert kept.read_bytes("much") == bytes(1 << 20)
    other.close()


@pytest.mark.parametrize("person", ["user"], indirect=True)
def test_the_removal_of_a_user_is_the_reason_of_the_end_of_calls(server: Server, person: Person) -> None:
    """As for a key; the node ends the user's sandboxes at the same time."""
    atoll(server, "users", "remove", person.name, "--yes")
    person.check_ended()
