"""Server and node are killed at random moments under load: each call has one outcome, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import needs_outbound
from ..waiting import PATIENCE_SECONDS, ended, soak, until
from .process import Server, running

ROUNDS = 2, 200
"""Kills: as is, and with `SOAK`."""
FIRST = ("server and node", "node")
"""The first kills; the further ones are drawn."""
CLIENTS, THREADS = 2, 2

PROGRAM = """
import os, sys, threading, time
from atoll import Host, errors, isolated

host, name, log = Host(), sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ending = threading.Event()

@isolated(host=host, keep_alive=60)
def work(token, data):
    with open(f"/data/{token}", "ab", buffering=0) as file:
        file.write(b"x")
    return token, data

def run(thread):
    count = 0
    while not ending.is_set():
        token = f"{name}-{thread}-{count}"
        count += 1
        data = bytes([count % 256]) * (2_000_000 if count % 5 == 0 else 10)
        os.write(log, f"begin {token}\\n".encode())
        try:
            answer = work(token, data)
            outcome = "ok" if answer == (token, data) else "wrong"
        except errors.AtollError as error:
            outcome = type(error).__name__
        except BaseException as error:
            outcome = f"other {error!r}"
        os.write(log, f"{outcome} {token}\\n".encode())
        if outcome != "ok":
            time.sleep(0.05)

threads = [threading.Thread(target=run, args=(number,)) for number in range(int(sys.argv[3]))]
for one in threads:
    one.start()
sys.stdin.read()
ending.set()
for one in threads:
    one.join()
"""


@contextlib.contextmanager
def clients(server: Server, directory: Path) -> Iterator[list[Path]]:
    """Programs that call all the time; when the context ends, each has ended by itself. Gives their logs."""
    program = directory / "client.py"
    program.write_text(PROGRAM)
    key_id, secret = server.key
    variables = {
        "ATOLL_HOST": server.url,
        "ATOLL_KEY_ID": key_id,
        "ATOLL_KEY_SECRET": secret,
        "ATOLL_CA_FILE": str(server.ca_file),
    }
    logs = [directory / f"client-{number}.log" for number in range(CLIENTS)]
    started = list[subprocess.Popen[bytes]]()
    try:
        for number, log in enumerate(logs):
            command = [sys.executable, str(program), str(number), str(log), str(THREADS)]
            started.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **variables}, cwd=directory)
            )
        yield logs
        for one in started:
            assert one.stdin is not None
            one.stdin.close()
        for one in started:
            assert one.wait(PATIENCE_SECONDS) == 0
    finally:
        for one in started:
            one.kill()
            one.wait()
            if one.stdin is not None:
                one.stdin.close()


def outcomes(logs: list[Path]) -> dict[str, list[str]]:
    """Return the outcomes of each call that has begun, by its token."""
    found = dict[str, list[str]]()
    for log in logs:
        for line in log.read_text().splitlines() if log.exists() else ():
            outcome, _, token = line.rpartition(" ")
            if outcome == "begin":
                found[token] = []
            else:
                found[token].append(outcome)
    return found


def succeeded(logs: list[Path]) -> int:
    return sum(outcome == ["ok"] for outcome in outcomes(logs).values())


def kill(server: Server, victims: str, chance: random.Random) -> None:
    """Kill the server, its node, or both, and have the server run again."""
    for victim in victims.split(" and "):
        if victim == "server":
            server.end(signal.SIGKILL)
        elif (node := server.home.daemon_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node, signal.SIGKILL)
            assert ended(node)
        time.sleep(chance.random() * 0.1)  # the other one sees this death, or not yet
    if "server" in victims:
        server.start()


@pytest.mark.timeout(5000)  # the long form takes a quarter of an hour
@needs_outbound
def test_each_call_has_one_outcome_whatever_is_killed(tmp_path: Path) -> None:
    """None runs or is answered twice, none is without an answer or a named error; databases and files are whole."""
    seed = random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    killed = Counter[str]()
    with running() as server:
        with clients(server, tmp_path) as logs:
            until(lambda: succeeded(logs) >= 2 * CLIENTS)
            for number in range(soak(*ROUNDS)):
                drawn = chance.choice(["server", "node", "server and node", "node and server"])
                victims = FIRST[number] if number < len(FIRST) else drawn
                time.sleep(chance.random() * 0.3)  # somewhere in a call: no event names the place
                kill(server, victims, chance)
                killed[victims] += 1
                before = succeeded(logs)
                until(lambda least=before: succeeded(logs) > least)  # type: ignore[misc]
        found = outcomes(logs)
        told = f"seed {seed}, {dict(killed)}"
        assert {len(one) for one in found.values()} == {1}, told
        kinds = Counter(one[0] for one in found.values())
        print(told, dict(kinds))
        assert set(kinds) <= {"ok", "HostUnreachable", "WorkerDied", "CallLost", "StateUnusable"}, (told, kinds)
        (volume,) = (path / "data" for path in (server.home.path / "volumes").iterdir() if (path / "data").is_dir())
        for token, (outcome,) in found.items():
            runs = (volume / token).stat().st_size if (volume / token).exists() else 0
            assert runs == 1 if outcome == "ok" else runs <= 1, (told, token, outcome, runs)
        home = server.home.path
        for path in home.rglob("*.db"):
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",), (told, path)
    assert str(home) not in Path("/proc/self/mountinfo").read_text(), told
    assert str(home) not in Path("/proc/net/unix").read_text(), told
