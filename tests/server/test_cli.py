"""Commands of a user who is logged in to a server: theirs there by default, this machine's with `--host local`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll import CallHandle, Host, cloud, credentials, isolated, local
from atoll.cli import hosts, main
from atoll.credentials import Credentials
from atoll.host import default
from atoll.server.accounts.bodies import NewUser

from ..conftest import Home, own_home
from ..waiting import until
from .process import Server


class Said(NamedTuple):
    """What a command has printed, and its exit status."""

    status: int
    out: str
    err: str


class Person:
    """A user with their calls: one that is over and one that runs."""

    def __init__(self, server: Server, name: str) -> None:
        added = server.add_user(NewUser(name))
        assert added.key is not None
        self.variables = {
            "ATOLL_HOST": server.url,
            "ATOLL_KEY_ID": added.key.id,
            "ATOLL_KEY_SECRET": added.key.secret,
            "ATOLL_CA_FILE": str(server.ca_file),
        }
        self.id = added.user.id
        self.host = Host(server.url, key_id=added.key.id, key_secret=added.key.secret, ca_file=str(server.ca_file))

    def begin(self, path: str) -> CallHandle[Any]:
        """Begin a call that prints, and then waits for a file of `/data`."""

        def waits(path: str) -> None:
            import os
            import time

            print("begun", flush=True)
            while not os.path.exists(path):
                time.sleep(0.05)

        return isolated(host=self.host, machine_type="XS")(waits).spawn(path)


@pytest.fixture(scope="module")
def here() -> Iterator[Home]:
    """The client's own state directory."""
    with own_home() as home:
        yield home


@pytest.fixture(scope="module")
def people(server: Server) -> Iterator[tuple[Person, Person, CallHandle[Any], CallHandle[Any]]]:
    """Two users, each with a call that runs."""
    mine, other = Person(server, "mia"), Person(server, "otto")
    calls = mine.begin("/data/over"), other.begin("/data/over")
    until(lambda: all(call.status().state == "running" for call in calls))
    yield mine, other, *calls
    for call in calls:
        call.cancel()
    mine.host.close()
    other.host.close()


@pytest.fixture
def atoll(people: Any, here: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Run commands as the first user, in this process."""
    for name, value in {**people[0].variables, "ATOLL_HOME": str(here.path)}.items():
        monkeypatch.setenv(name, value)

    def say(*arguments: str) -> Said:
        out, err = io.StringIO(), io.StringIO()
        out.buffer = io.BytesIO()  # type: ignore[misc]
        default._chosen.clear()
        with redirect_stdout(out), redirect_stderr(err):
            status = main.run(list(arguments))
        return Said(status, out.getvalue() + out.buffer.getvalue().decode(), err.getvalue())

    yield say
    default._chosen.clear()


def test_status_is_the_users_own(atoll: Callable[..., Said], people: Any, server: Server) -> None:
    """Server, user, limits and quota are named; no call, sandbox or number of the machine is another's."""
    mine, other, call, others = people
    said = atoll("status")
    assert said.out.startswith(f"server   {server.url}, version ")
    assert "user     mia (key " in said.out
    assert "limits   no limit of calls · /data: " in said.out
    assert call.id[:8] in said.out
    assert others.id[:8] not in said.out
    found = json.loads(atoll("status", "--json").out)
    assert [one["call"] for one in found["calls"]] == [call.id]
    assert {one["user"] for one in found["sandboxes"]} == {mine.id}
    assert len(found["workers"]) == 1
    assert other.id not in json.dumps(found)
    assert (found["daemon"]["pid"], found["daemon"]["home"], found["daemon"]["settings"]) == (0, "", {})
    assert not any(one["pid"] for one in (*found["sandboxes"], *found["workers"]))
    assert str(server.home.path) not in json.dumps(found)


def test_an_operator_is_shown_their_own(
    atoll: Callable[..., Said], people: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node tells an administrator of all; `atoll status` keeps what is theirs."""
    monkeypatch.setenv("ATOLL_KEY_ID", server.key[0])
    monkeypatch.setenv("ATOLL_KEY_SECRET", server.key[1])
    said = atoll("status", "--json").out
    assert people[0].id not in said
    assert people[2].id not in said


def test_an_operator_sees_calls_of_all_users(
    atoll: Callable[..., Said], people: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--all` and `--user` list running and ended calls with their users' names, for an operator's ADMIN key alone."""
    mine, other, call, others = people

    def said(word: str) -> None:
        print(word)

    isolated(host=other.host, machine_type="XS")(said)("of otto")
    for words in (("--all",), ("--user", "otto")):
        told = atoll("calls", "list", *words)
        assert (told.status, told.out) == (1, "")
        assert "insufficient permissions" in told.err
    headers = {"Authorization": f"Key {mine.variables['ATOLL_KEY_ID']}:{mine.variables['ATOLL_KEY_SECRET']}"}
    for arguments in ({"all": True}, {"user": other.id}):
        body = json.dumps(arguments).encode()
        status, found = server.ask("POST", "/v1/requests/calls.list", body, headers)
        assert (status, "cannot see calls of others" in found["error"]["message"]) == (400, True)
    _, found = server.ask("POST", "/v1/requests/calls.running", b'{"all": true}', headers)
    assert {row["user"] for row in found["calls"]} == {mine.id}
    monkeypatch.setenv("ATOLL_KEY_ID", server.key[0])
    monkeypatch.setenv("ATOLL_KEY_SECRET", server.key[1])
    assert not {call.id, others.id} & {row["call"] for row in json.loads(atoll("calls", "list", "--json").out)}
    everybody = json.loads(atoll("calls", "list", "--all", "--json").out)
    running = {row["call"]: row["user_name"] for row in everybody if row["state"] == "running"}
    assert running.items() >= {call.id: "mia", others.id: "otto"}.items()
    command = ("calls", "list", "--user", "otto", "--outcome", "ok", "--json")
    ended = until(lambda: json.loads(atoll(*command).out))  # its record comes a moment after its end
    assert {(row["function"][-5:], row["user"], row["user_name"]) for row in ended} == {(".said", other.id, "otto")}
    assert {row["user_name"] for row in json.loads(atoll("calls", "list", "--user", "otto", "--json").out)} == {"otto"}
    table = atoll("calls", "list", "--all").out
    assert re.search(r"^id +user +function", table)
    assert re.search(rf"^{ended[0]['call'][:8]} +otto +test", table, re.MULTILINE)
    assert f"user         {other.id}\n" in atoll("calls", "show", ended[0]["call"]).out
    assert atoll("logs", ended[0]["call"]).out.endswith("\nof otto\n")
    assert "no user is called" in atoll("calls", "list", "--user", "nobody").err


def test_calls_are_those_of_the_server(atoll: Callable[..., Said], people: Any, server: Server) -> None:
    """Lists name the server on standard error; JSON has none of that; another's call is unknown."""
    _, _, call, others = people
    said = atoll("calls", "list")
    assert said.err == f"on {server.url}\n"
    assert call.id[:8] in said.out
    assert others.id[:8] not in said.out
    said = atoll("calls", "list", "--json")
    assert [one["call"] for one in json.loads(said.out)] == [call.id]
    assert said.err == ""
    assert f"call         {call.id}\n" in atoll("calls", "show", call.id[:8]).out
    assert "waits" in atoll("stack", call.id).out
    until(lambda: "begun\n" in atoll("logs", call.id).out)
    assert atoll("top").out.startswith(f"on {server.url}\nCPU  ")
    for command in (
        ("calls", "show"),
        ("logs",),
        ("logs", "-f"),
        ("stack",),
        ("cancel",),
        ("attach",),
        ("calls", "forget"),
    ):
        said = atoll(*command, others.id)
        assert said.status == 1, command
        assert said.err.startswith("error: no "), command
    assert others.status().state == "running"


def test_a_call_is_cancelled_and_looked_at_afterwards(atoll: Callable[..., Said], people: Any) -> None:
    """`cancel`, `calls result`, `attach` and `calls forget` act on a call of the server; `usage` counts it."""
    call = people[0].begin("/data/never")
    until(lambda: "begun" in atoll("logs", call.id).out)
    assert atoll("cancel", call.id[:8]).out.startswith(("cancelled", "interrupted"))
    assert "cancelled" in atoll("calls", "result", "--wait", call.id[:8]).err
    said = atoll("attach", call.id)
    assert (said.status, said.out) == (1, "begun\n")
    assert "waits" in atoll("usage").out
    found = json.loads(atoll("usage", "--json", "--by", "user").out)
    assert [row["key"] for row in found["rows"]] == ["mia"]
    assert "records_bytes" not in found["disk"]  # of this machine
    assert atoll("calls", "forget", call.id).out == f"removed call {call.id[:8]}\n"


def test_environments_are_those_of_the_server(atoll: Callable[..., Said], server: Server) -> None:
    """`env` lists, shows and locks the user's; no answer has a path of the server's machine."""
    said = atoll("env", "list")
    assert said.err == f"on {server.url}\n"
    (record,) = json.loads(atoll("env", "list", "--json").out)
    assert record["key"] in said.out
    assert record["interpreter"] == ""
    shown = atoll("env", "show", record["key"][:8]).out
    assert re.search(r"^python        3\.\d+\.\d+$", shown, re.MULTILINE)
    assert f"in use {record['key']}" in atoll("env", "prune", "--dry-run").out


def test_local_is_this_machine(atoll: Callable[..., Said], people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--host local` and `ATOLL_HOST=local` ask this machine, where no daemon runs; nothing names a server."""
    nothing = "no daemon is running; the first call starts one\n"
    assert atoll("status", "--host", "local") == (0, nothing, "")
    assert atoll("status", "--host=local") == (0, nothing, "")
    said = atoll("cancel", "--host", "local", people[2].id)
    assert (said.status, said.out) == (1, "")
    assert "no daemon is running" in said.err
    said = atoll("calls", "list", "--host")
    assert (said.status, said.err) == (2, "error: --host needs the address of a server, or `local`\n")
    monkeypatch.setenv("ATOLL_HOST", "local")
    assert atoll("status") == (0, nothing, "")
    assert atoll("stop") == (0, "no daemon is running\n", "")
    assert json.loads(atoll("version", "--json").out)["server"] is None


def test_local_commands_say_so(atoll: Callable[..., Said], server: Server) -> None:
    """`stop` and the daemon's log are this machine's."""
    for command in (["stop"], ["logs"]):
        said = atoll(*command)
        assert said.status == 0
        assert f"of this machine, and not of {server.url}, where you are logged in" in said.err


def test_a_server_that_cannot_be_reached(atoll: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line, with the next step; `atoll version` tells of it and succeeds."""
    assert re.search("^server +[0-9.]+ at https://", atoll("version").out, re.MULTILINE)
    monkeypatch.setenv("ATOLL_HOST", "https://127.0.0.1:1")
    for command in (["status"], ["calls", "list"], ["env", "list"], ["usage"], ["top"]):
        said = atoll(*command)
        assert (said.status, said.out) == (1, ""), command
        assert said.err.startswith("error: nothing listens at `https://127.0.0.1:1`\nhint: check the address"), command
    said = atoll("version")
    assert said.status == 0
    assert "server    nothing listens at `https://127.0.0.1:1`" in said.out


def test_the_target_of_run_comes_after_the_host(atoll: Callable[..., Said]) -> None:
    """`--host` before the target is Atoll's; behind it, the function's."""
    assert hosts.take_option(["run", "a.py::f", "--host", "x"]) == ["run", "a.py::f", "--host", "x"]
    assert not default._chosen
    assert hosts.take_option(["run", "--host", "local", "a.py::f", "--host", "x"]) == ["run", "a.py::f", "--host", "x"]
    assert default._chosen == [local]


def test_the_variable_counts_before_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ATOLL_HOST=local` is this machine, also where a login is kept."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ATOLL_HOST", raising=False)
    credentials.store(Credentials("https://127.0.0.1:1", "id", "secret"))
    assert hosts.chosen() is cloud
    monkeypatch.setenv("ATOLL_HOST", "local")
    assert hosts.chosen() is local
