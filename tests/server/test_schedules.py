"""Schedules at a real server: functions that run by the clock, their history and output, crashes, and rights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, errors, isolated
from atoll.sdk.apps.scheduling import schedule
from atoll.server.accounts.bodies import NewUser

from ..waiting import soak, until
from .process import Server, running

_MAIN = "import sys; from atoll.cli.main import main; sys.exit(main())"


def note() -> None:
    """Leave a line for each run."""
    import os
    import time

    with open("/data/runs", "a") as file:
        file.write(f"{time.time()}\n")
    print("the secret is", os.environ.get("WORD"))


def slow() -> None:
    import time

    time.sleep(3600)


def needs(count: int) -> int:
    return count


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module."""
    with running() as found:
        yield found


@pytest.fixture
def host(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server as the operator's host."""
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    return Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))


def host_of(server: Server, name: str) -> Any:
    """Return the server as a new user's host."""
    key = server.add_user(NewUser(name)).key
    assert key is not None
    return Host(server.url, key_id=key.id, key_secret=key.secret, ca_file=str(server.ca_file))


def command(server: Server, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the operator."""
    (key_id, secret), ca_file = server.key, str(server.ca_file)
    own = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret, "ATOLL_CA_FILE": ca_file}
    env = {**os.environ, **server.client_variables, **own, "ATOLL_HOME": str(home), "COLUMNS": "200"}
    given = [sys.executable, "-c", _MAIN, *arguments]
    return subprocess.run(given, env=env, capture_output=True, text=True, timeout=300, check=False)


def runs(host: Any, name: str, state: str = "finished") -> list[dict[str, Any]]:
    found = host.server.ask("GET", f"/v1/schedules/{name}/activations?limit=1000")["activations"]
    return [one for one in found if one["state"] == state]


def test_a_scheduled_function_runs_with_its_owners_secrets(server: Server, host: Any, tmp_path: Path) -> None:
    """`function schedule` prints an id; runs are listed with their output; a cancelled schedule has no further ones."""
    host.request("secrets.set", {"name": "WORD", "value": "swordfish"})
    program = tmp_path / "program.py"
    program.write_text(
        "from atoll import isolated\nfrom tests.server.test_schedules import note\nnote = isolated(note)\n"
    )
    made = command(server, tmp_path, "function", "schedule", "* * * * * *", str(program), "note")
    assert made.returncode == 0, made.stderr
    name = made.stdout.strip()
    assert "runs next at" in made.stderr
    until(lambda: runs(host, name))
    assert name in (listed := command(server, tmp_path, "cron", "list").stdout)
    assert "Active" in listed
    history = json.loads(command(server, tmp_path, "crons", "activations", name, "3", "--json").stdout)
    assert 1 <= len(history) <= 3
    done = runs(host, name)[-1]
    assert done["outcome"] == "ok"
    assert done["ended"] >= done["started"] >= done["due"]
    assert command(server, tmp_path, "crons", "logs", name, done["id"]).stdout == "the secret is swordfish\n"
    assert command(server, tmp_path, "crons", "cancel", name).stdout == f"cancelled {name}\n"
    assert "Not Active" in command(server, tmp_path, "crons", "list").stdout
    again = command(server, tmp_path, "crons", "resume", name)
    assert again.returncode == 1
    assert "does not run again" in again.stderr
    host.request("secrets.delete", {"name": "WORD"})


def test_mistakes_have_named_errors(server: Server, host: Any) -> None:
    """A function that needs arguments, a wrong expression, an unknown zone and an unknown schedule are refused."""
    with pytest.raises(TypeError, match="it needs `count`"):
        schedule(isolated(host=host)(needs), "0 7 * * *")
    with pytest.raises(ValueError, match="has no schedule"):
        schedule(isolated(host=host)(note))
    with pytest.raises(ValueError, match="must have minute"):
        isolated(host=host, schedule="often")
    for options, cron, reason in (
        ({}, "0 25 * * *", "bad hour"),
        ({"timezone": "Mars/Olympus"}, "0 7 * * *", "no time zone"),
    ):
        with pytest.raises(errors.CallerError, match=reason):
            schedule(isolated(host=host, **options)(note), cron)  # type: ignore[call-overload]
    remote: Any = host
    for method, path in (("GET", "none/activations"), ("DELETE", "none"), ("POST", "none/pause")):
        with pytest.raises(errors.CallerError, match="no schedule `none`"):
            remote.server.ask(method, f"/v1/schedules/{path}")


def test_users_have_their_own_schedules(server: Server, host: Any) -> None:
    """One user neither sees nor changes another's; a key for calls alone schedules nothing; a removed user's go."""
    made = schedule(isolated(host=host_of(server, "ann"))(note), "0 7 * * *")
    bob = host_of(server, "bob")
    key = bob.server.ask("POST", "/v1/keys", {"scope": "API"})
    calls_only = Host(server.url, key_id=key["id"], key_secret=key["secret"], ca_file=str(server.ca_file))
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/activations")):
        with pytest.raises(errors.CallerError, match="no schedule"):
            bob.server.ask(method, f"/v1/schedules/{made['id']}{path}")
    assert bob.server.ask("GET", "/v1/schedules")["schedules"] == []
    with pytest.raises(errors.NotAuthorized, match="insufficient permissions"):
        schedule(isolated(host=calls_only)(note), "0 7 * * *")


def test_a_run_that_goes_on_leaves_later_ones_out(server: Server, host: Any) -> None:
    """`skip` is the default; a run that is cancelled as a call has that outcome, and the next one begins."""
    made = schedule(isolated(host=host, keep_alive=0)(slow), "* * * * * *")
    (first,) = until(lambda: runs(host, made["id"], "running"))
    until(lambda: runs(host, made["id"], "skipped"))
    until(lambda: host.request("detached.show", {"call": first["id"]})["call"]["state"] == "running")
    host.request("detached.cancel", {"call": first["id"]})
    assert until(lambda: runs(host, made["id"]))[-1]["outcome"] == "cancelled"
    second = until(lambda: runs(host, made["id"], "running"))[0]
    host.server.ask("DELETE", f"/v1/schedules/{made['id']}")
    host.request("detached.cancel", {"call": second["id"]})


def test_servers_that_are_killed_lose_and_double_no_run() -> None:
    """However often a server is killed, each activation runs once, and no moment is left out."""
    with running() as server:
        host: Any = Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.client_variables.items():
                patch.setenv(name, value)
            made = schedule(isolated(host=host, overlap="allow", missed="all")(note), "*/5 * * * * *")
        until(lambda: runs(host, made["id"]))
        for _ in range(soak(2, 100)):
            before = len(runs(host, made["id"]))
            server.end(signal.SIGKILL)
            server.start()
            until(lambda: len(runs(host, made["id"])) > before)
        host.server.ask("DELETE", f"/v1/schedules/{made['id']}")
        until(lambda: not runs(host, made["id"], "running") and not runs(host, made["id"], "waiting"))
        found = host.server.ask("GET", f"/v1/schedules/{made['id']}/activations?limit=1000")["activations"]
        assert {one["outcome"] for one in found} == {"ok"}
        moments = sorted(int(one["due"]) for one in found)
        assert moments == list(range(moments[0], moments[-1] + 1, 5))
        (written,) = server.home.path.glob("volumes/*/data/runs")
        assert len(written.read_text().splitlines()) == len(found)
