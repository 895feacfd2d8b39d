"""`atoll node` and `atoll nodes` against a real server: join, states, messages, and machines over a real ssh."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll import errors
from atoll.cli.nodes import table, values
from atoll.model.options.cluster import ClusterSettings
from atoll.server.accounts.accounts import Accounts
from atoll.server.fleets.part import start_all
from atoll.server.fleets.ssh import SshFleet
from atoll.server.member import joined
from atoll.server.nodes.accounts import Nodes
from atoll.server.state import ServerState
from atoll.settings import load

from ..conftest import own_home
from ..waiting import until
from . import sshd
from .process import Server
from .shell import Shell


@pytest.fixture
def atoll(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line of an operator who is logged in; state directories of tests are the owner's alone."""
    tmp_path.chmod(0o700)
    shell = Shell(tmp_path, monkeypatch, capsys)
    login = ("auth", "login", "--host", server.url, "--ca-file", str(server.ca_file), "--key", "-")
    assert shell(*login, typed=":".join(server.key))[0] == 0
    return shell


def test_a_machine_joins_with_one_command(server: Server, atoll: Shell, tmp_path: Path) -> None:
    """The command that `nodes token` prints joins a machine; the operator drains and removes it, and it is told so."""
    status, printed, told = atoll("nodes", "token", "--label", "zone=lab")
    assert (status, "shown this once" in told) == (0, True)
    command = shlex.split(printed)
    assert command[:4] == ["atoll", "node", "join", server.url]
    place = ("--home", str(tmp_path / "node"))
    more = (*place, "--name", "lab-1", "--label", "rack=3", "--no-run", "--ca-file", str(server.ca_file))
    status, out, told = atoll(*command[1:], *more)
    assert (status, out) == (0, ""), told
    assert told.startswith(f"joined {server.url} as `lab-1`\n")
    file = tmp_path / "node" / "node" / "joined.json"
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    assert json.loads(file.read_text())["labels"] == {"rack": "3", "zone": "lab"}
    out = atoll("node", "status", *place)[1]
    assert out == f"server   {server.url}\nnode     lab-1, does not run here\nstate    active, not linked\n"
    status, out, told = atoll(*command[1:], *more)
    assert (status, "this machine has joined" in told, "atoll node leave" in told) == (1, True, True)
    (row,) = [one for one in json.loads(atoll("nodes", "list", "--json")[1]) if one["name"] == "lab-1"]
    assert (row["state"], row["linked"], row["seen"]) == ("active", False, None)
    heading, local, *rows = atoll("nodes", "list")[1].splitlines()
    assert heading.split()[:2] == ["node", "state"]
    assert re.match(r"local +active +\S+ of \S+ ", local)
    assert any(re.match(r"lab-1 +never linked +never ", line) for line in rows)
    out = atoll("status")[1]
    assert re.search(r"^machine  local  \S+ of \S+ cores free .*\nmachine  lab-1  not linked\n", out, re.MULTILINE), out
    assert [one["name"] for one in json.loads(atoll("status", "--json")[1])["nodes"]] == ["local", "lab-1"]
    assert "`lab-1` is away" not in atoll("calls", "list")[2]  # it has never run any
    assert atoll("nodes", "cordon", "lab-1")[2] == "`lab-1` takes no new calls\n"
    assert "`lab-1` is empty" in atoll("nodes", "drain", "lab-1", "--wait")[2]
    assert atoll("node", "status", *place)[1].endswith("state    draining, not linked\n")
    assert atoll("nodes", "uncordon", "lab-1")[2] == "`lab-1` takes calls\n"
    status, _, told = atoll("nodes", "remove", "lab-1")
    assert (status, "say `--yes`" in told) == (2, True)
    assert atoll("nodes", "remove", "lab-1", "--yes")[2] == "removed the node `lab-1`\n"
    status, _, told = atoll("node", "status", *place)
    assert (status, "was removed from this server" in told, "atoll nodes token" in told) == (1, True, True)
    again = re.findall(r"atoll-join-\S+", atoll("nodes", "token")[1])[0]
    assert atoll("node", "join", server.url, "--token", again, *more)[2].startswith("joined ")  # as the hint says
    assert atoll("nodes", "remove", "lab-1", "--yes")[0] == 0
    status, _, told = atoll("node", "leave", "--yes", *place)
    assert (status, "it is forgotten here, too" in told) == (0, True)
    assert "has joined no server" in atoll("node", "run", *place)[2]


def test_a_token_comes_from_a_file_or_a_variable(server: Server, atoll: Shell, tmp_path: Path) -> None:
    """A token need not be in the list of processes; a machine that leaves gives its name back."""
    made = json.loads(atoll("nodes", "token", "--uses", "2", "--json")[1])
    assert made["url"] == server.url
    (tmp_path / "token").write_text(f"{made['token']}\n")
    place = ("--home", str(tmp_path / "node"))
    join = ("node", "join", server.url, "--no-run", "--name", "lab-2", *place)
    certificates = ("--ca-file", str(server.ca_file))
    assert atoll(*join, "--token-file", str(tmp_path / "token"), *certificates)[0] == 0
    assert atoll("node", "leave", "--yes", *place)[2] == f"left {server.url}\n"
    assert atoll(*join, *certificates, ATOLL_JOIN_TOKEN=made["token"])[0] == 0
    status, _, told = atoll(*join, "--replace", *certificates, ATOLL_JOIN_TOKEN=made["token"])
    assert (status, "has been used" in told, "atoll nodes token" in told) == (1, True, True)
    assert atoll("node", "leave", "--yes", *place)[0] == 0
    text = f"{json.loads(atoll('nodes', 'token', '--json')[1])['token']}\n{server.ca_file.read_text()}"
    assert atoll(*join, "--token-file", "-", "--ca-file", "-", typed=text)[0] == 0
    assert joined.need(tmp_path / "node").ca_file == str(tmp_path / "node" / "node" / "server-ca.pem")
    assert atoll("node", "leave", "--yes", *place)[0] == 0
    assert atoll("nodes", "token", "--revoke")[2].startswith("revoked ")


def test_mistakes_are_named_with_the_next_step(server: Server, atoll: Shell, tmp_path: Path) -> None:
    """Usage is 2, all else 1; each message is printable, and names what to do."""
    place = ("--home", str(tmp_path / "node"))
    join = ("node", "join", server.url, *place)
    wrong = "\x1b[31m\u202ename"
    token = re.findall(r"atoll-join-\S+", atoll("nodes", "token")[1])[0]
    cases = [
        (join, 2, "no token is given"),
        ((*join, "--token", "x", "--token-file", "y"), 2, "do not go together"),
        ((*join, "--token", "x", "--no-run", "--detach"), 2, "do not go together"),
        ((*join, "--token", "x", "--label", wrong), 2, "`key=value`"),
        ((*join, "--token-file", str(tmp_path / "none")), 1, "No such file"),
        ((*join, "--token", "x"), 1, "name the authority's file: `--ca-file FILE`"),
        ((*join, "--token", wrong, "--ca-file", str(server.ca_file)), 1, "the token to join is not valid"),
        (("node", "join", "http://127.0.0.1:1", "--token", "x", *place), 1, "nothing listens"),
        (
            ("node", "join", server.url, "--token", "x", "--home", str(server.home.path)),
            1,
            "a node of that one already",
        ),
        (("node", "status", *place), 1, "has joined no server"),
        (("nodes", "remove", wrong, "--yes"), 1, "no node is called"),
        (("nodes", "drain", wrong), 1, "no node is called"),
        (("nodes", "remove", "local"), 1, "is always there"),
        (("nodes", "token", "--hours", "0"), 1, "more than 0 hours"),
        ((*join[:-1], "/proc/none", "--token", token, "--ca-file", str(server.ca_file)), 1, "cannot write below"),
        (("node", "join", server.url.replace("https", "http"), "--token", "x", *place), 1, "begins with `https://`"),
        (("nodes", "token", "--uses", "0"), 1, "1 to 1000 uses"),
        (("nodes", "token", "--hours", "9999"), 1, "at most 30 days"),
        (("nodes", "add"), 2, "no machine is named"),
        (("nodes", "add", "--", "-oProxyCommand=x"), 1, "is no name of a machine"),
        (("server", "--ray-address", "x"), 2, "is for `--engine ray`"),
    ]
    for arguments, expected, words in cases:
        status, out, told = atoll(*arguments)
        assert (status, out) == (expected, ""), (arguments, told)
        assert words in told, (arguments, told)
        assert all(line.isprintable() for line in told.splitlines()), arguments
        assert status == 2 or "\nhint: " in told, (arguments, told)
    assert not (tmp_path / "node" / "node" / "joined.json").exists()
    unused = (*join, "--token", token, "--ca-file", str(server.ca_file), "--name", "lab-9", "--no-run")
    assert atoll(*unused)[0] == 0
    assert atoll("nodes", "remove", "lab-9", "--yes")[0] == 0
    key = json.loads(atoll("key", "generate", "--json")[1])
    weak = {"ATOLL_KEY_ID": key["id"], "ATOLL_KEY_SECRET": key["secret"]}
    for act in (("list",), ("token",), ("drain", "local"), ("remove", "local", "--yes")):
        status, out, told = atoll("nodes", *act, **weak)
        assert (status, out, "insufficient permissions" in told) == (1, "", True)


def test_the_owner_of_the_state_directory_needs_no_key(server: Server, atoll: Shell) -> None:
    """On the server's machine the state directory's rights are enough, with the same figures and a line of the audit."""
    place = ("--home", str(server.home.path))
    (local, *_) = json.loads(atoll("nodes", "list", "--json", *place)[1])
    assert (local["name"], local["linked"], local["has"]["millicores"] > 0) == ("local", True, True)
    printed = atoll("nodes", "token", *place)[1]
    assert printed.startswith(f"atoll node join {server.url} --token atoll-join-")
    assert atoll("nodes", "token", "--revoke", *place)[2] == "revoked 1 token\n"
    assert atoll("nodes", "cordon", "local", *place)[0] == 0
    assert json.loads(atoll("nodes", "list", "--json")[1])[0]["state"] == "cordoned"
    assert atoll("nodes", "uncordon", "local", *place)[0] == 0
    acts = server.ask("GET", "/v1/audit?act=node.cordon")[1]["acts"]
    assert (acts[0]["actor_name"], acts[0]["details"]) == ("machine", {"name": "local"})


def test_no_server_runs_where_a_node_of_another_has_run() -> None:
    """A state directory that has served another server's users serves no others: calls of theirs may be left there."""
    with own_home() as there:
        (there.path / "run").mkdir(mode=0o700, exist_ok=True)
        (there.path / "run" / "joined").touch(mode=0o600)
        done = there.atoll("server", "--listen", "127.0.0.1:0", check=False)
    assert (done.returncode, "of a node of another server" in done.stderr) == (1, True), done.stderr


def test_one_process_runs_a_node(tmp_path: Path) -> None:
    """The lock of a node's process is held by one at a time, names its pid, and is nobody's after a kill."""
    tmp_path.chmod(0o700)
    assert joined.running(tmp_path) == 0
    with joined.only_one(tmp_path):
        assert joined.running(tmp_path) == os.getpid()
        with pytest.raises(errors.StateUnusable, match=f"pid {os.getpid()}"), joined.only_one(tmp_path):
            pass
        assert joined.running(tmp_path) == os.getpid()
    assert joined.running(tmp_path) == 0
    (tmp_path / "node" / "run.lock").write_text("1")  # as a killed one leaves it
    assert joined.running(tmp_path) == 0


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    """A file of credentials that others can read, or of another form, is named and not used."""
    tmp_path.chmod(0o700)
    found = joined.Joined("https://lab.example", "node-1", "secret", "lab", {"a": "b"})
    joined.write(tmp_path, found)
    assert joined.read(tmp_path) == found
    assert "secret" not in repr(found)
    joined.path(tmp_path).chmod(0o640)
    with pytest.raises(errors.StateUnusable, match="others can read it"):
        joined.read(tmp_path)
    joined.path(tmp_path).chmod(0o600)
    joined.path(tmp_path).write_text("[" * 10_000)
    with pytest.raises(errors.StateUnusable, match="another form"):
        joined.need(tmp_path)


def test_the_table_says_what_is_free_of_each_machine() -> None:
    """Free of total, states with and without a link, the age of the last word, and shared `/data`."""
    plain = {"id": "x", "labels": {}, "version": "1", "created": 0.0, "joined": 0.0, "gpus": [], "lines": None}
    nothing = {"has": None, "free": None, "volumes": "", "running": None, "waiting": None, "seen": None}
    has = {"millicores": 8000, "memory_bytes": 64 << 30, "gpus": 2}
    free = {"millicores": 2500, "memory_bytes": 1 << 30, "gpus": 1}
    busy = {"has": has, "free": free, "volumes": "juicefs:abc", "running": 3, "waiting": 0, "seen": 999.0}
    rows = table.cells(
        [
            {**plain, **busy, "name": "gpu-1", "state": "active", "linked": True, "labels": {"zone": "a"}},
            {**plain, **busy, "name": "gpu-2", "state": "draining", "linked": False, "seen": 880.0},
            {**plain, **nothing, "name": "new", "state": "active", "linked": False},
        ],
        1000.0,
    )
    assert rows == [
        ("gpu-1", "active", "2.5 of 8", "1.0 GiB of 64.0 GiB", "1 of 2", "3", "0", "now", "shared", "1", "zone=a"),
        ("gpu-2", "draining, not linked", "2.5 of 8", "1.0 GiB of 64.0 GiB", "1 of 2", "3", "0", "2 min 00 s ago", "shared", "1", ""),
        ("new", "never linked", "", "", "", "", "", "never", "", "1", ""),
    ]  # fmt: skip


def test_the_host_name_becomes_a_nodes_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a machine is called, its default name is one that a server takes."""
    for host, name in (("GPU_2.lab.example", "gpu-2"), ("-a--b-", "a-b"), ("x" * 80, "x" * 63), ("\u00fc", "")):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        assert values.machine_name() == name


async def as_a_server_does(server: Server, options: ClusterSettings) -> None:
    """Start the machines of the settings, as a server does when it begins."""
    accounts = Accounts(server.home.path)
    try:
        settings = replace(load(server.home.path), cluster=options)
        state = ServerState(cast("Any", SimpleNamespace(options=settings)), parts={"nodes": Nodes(accounts)})
        await start_all(state)
    finally:
        accounts.close()


def test_a_machine_joins_over_ssh(
    server: Server, atoll: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command has a machine join by the user's own ssh; again it starts the same node, and reasons of failures are told."""
    with sshd.running(tmp_path / "ssh") as client, own_home() as there:
        (tmp_path / "bin").mkdir()
        wrapper = tmp_path / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
        program = shlex.join([sys.executable, "-P", "-c", "from atoll.cli.main import main; main()"])
        add = ["nodes", "add", "127.0.0.1", "--name", "far", "--home-there", str(there.path)]
        add += ["--ca-file", str(server.ca_file)]

        def row() -> dict[str, Any]:
            return next(one for one in json.loads(atoll("nodes", "list", "--json")[1]) if one["name"] == "far")

        status, _, told = atoll(*add, "--command", "/no/such/atoll")
        assert (status, "there is no `/no/such/atoll`" in told, "pip install" in told) == (1, True, True)
        options = ClusterSettings(("127.0.0.1",), command=program, home=str(there.path), ssh=("ssh",))
        fleet = SshFleet(options)
        try:
            status, _, told = atoll(*add, "--command", program)
            assert (status, told) == (0, "`127.0.0.1` has joined, and runs its node\n")
            until(lambda: row()["linked"])
            first = row()
            asyncio.run(fleet.stop("127.0.0.1"))
            assert asyncio.run(fleet.machines()) == [{"machine": "127.0.0.1", "state": "dead", "node": "far"}]
            assert atoll(*add, "--command", program)[0] == 0
            until(lambda: row()["linked"])
            assert row()["id"] == first["id"]
            assert atoll("nodes", "remove", "far", "--yes")[0] == 0
            until(lambda: not joined.running(there.path))
            asyncio.run(as_a_server_does(server, replace(options, ca_file=str(server.ca_file))))
            own = joined.need(there.path)
            assert (own.name, own.node != first["id"]) == (values.machine_name(), True)
        finally:
            asyncio.run(fleet.stop("127.0.0.1"))
        assert atoll("node", "leave", "--yes", "--home", str(there.path))[0] == 0
    (row_after,) = asyncio.run(fleet.machines())
    assert (row_after["state"], "cannot reach `127.0.0.1`" in row_after["reason"]) == ("unknown", True)
