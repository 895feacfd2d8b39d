"""Clients that make calls of all kinds all the time, and log each outcome; the calls log each write.

A client is a program of its own with some threads. Each thread draws a kind of call and a token, notes both, makes the
call, and notes each outcome that it hears of. Calls write a line every 10 ms below `/data/writes` (see `history`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..waiting import PATIENCE_SECONDS, until
from .cluster import Cluster
from .history import Made, read_calls

KINDS = ("plain", "again", "generator", "map", "spawn", "sync", "nested")
LONG = ("long", "long again")
"""Calls that outlast a lease: a node that loses it has to end them."""

PROGRAM = '''
import itertools, json, os, random, sys, threading, time, uuid
from pathlib import Path
from atoll import Host, errors, isolated, sync_dir

name, log_path, threads, seed, kinds = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5].split(",")
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ending = threading.Event()
host = Host()


def note(what, token, **more):
    os.write(log, (json.dumps({"what": what, "token": token, "at": time.monotonic(), **more}) + "\\n").encode())


def writes(token, lines):
    """Write a line every 10 ms, and give the execution's id at the end."""
    import os, time, uuid

    execution = uuid.uuid4().hex
    with open(MARK) as file:
        node = file.read().strip()
    os.makedirs("/data/writes", exist_ok=True)
    file = os.open(f"/data/writes/{token}+{execution}+{node}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
    for number in range(lines):
        if number and os.path.exists("/data/ending"):
            break
        os.write(file, f"{time.monotonic_ns()}\\n".encode())
        os.fsync(file)
        yield number
        time.sleep(0.01)
    os.write(file, b"done\\n")
    os.close(file)
    yield execution


def last(items):
    for item in items:
        pass
    return item


@isolated(host=host, keep_alive=30)
def plain(token, lines):
    return last(writes(token, lines))


again = plain.on(host, retries=2)


@isolated(host=host, keep_alive=30)
def generator(token, lines):
    yield from writes(token, lines)


@isolated(keep_alive=30)
def inner(token, lines):
    return last(writes(token, lines))


@isolated(host=host, keep_alive=30)
def outer(token, lines):
    inner(token + ".1", lines // 2)
    return last(writes(token, lines))


@isolated(host=host, keep_alive=30)
def versions(directory):
    import os

    found = set()
    for entry in os.scandir(directory):
        with open(entry.path) as file:
            found.add(file.read())
    return sorted(found)


class Wrong(Exception):
    pass


def one(token, lines, kind):
    if kind in {"plain", "long"}:
        return plain(token, lines)
    if kind in {"again", "long again"}:
        return again(token, lines)
    if kind == "nested":
        return outer(token, lines)
    if kind == "spawn":
        try:
            handle = plain.spawn(token, lines)
        except errors.AtollError as error:
            note("end", token, error=type(error).__name__, told=str(error), may_run=True)
            return None
        return asked_again(handle)
    numbers = itertools.count()
    for item in generator(token, lines):
        if isinstance(item, str):
            return item
        if item != next(numbers):
            raise Wrong(f"item {item}")
    raise Wrong("no last item")


def asked_again(handle):
    """Return the result of a call that outlives what fails: while its machine is away nobody knows it."""
    end = time.monotonic() + 60
    while True:
        try:
            return handle.result()
        except errors.HostUnreachable:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def attempt(token, work):
    try:
        execution = work()
    except errors.AtollError as error:
        note("end", token, error=type(error).__name__, told=str(error))
        return False
    except Wrong as error:
        note("end", token, told=f"wrong {error}")
        return False
    except BaseException as error:
        note("end", token, error="other", told=repr(error))
        return False
    if execution is not None:
        note("end", token, execution=execution)
    return True


def batch(tokens, lines):
    """Make calls by one `map`: the first without an answer has the error that ended it, the others are cancelled."""
    left = list(tokens)

    def work():
        for execution in plain.map(tokens, [lines] * len(tokens)):
            note("end", left.pop(0), execution=execution)

    try:
        work()
    except errors.AtollError as error:
        for token in left:
            note("end", token, error=type(error).__name__, told=str(error), may_run=token != left[0])
        return False
    except BaseException as error:
        for token in left:
            note("end", token, error="other", told=repr(error))
        return False
    return True


class Syncs:
    """A directory of one thread whose files all have one version: a call after a sync reads that one, and no other."""

    def __init__(self, thread):
        self.name = f"sync-{name}-{thread}"
        self.place = Path(log_path).parent / self.name
        self.place.mkdir()
        self.version = 0

    def work(self):
        self.version += 1
        for number in range(20):
            (self.place / str(number)).write_text(f"version {self.version}")
        target = sync_dir(self.place, self.name, host=host)
        found = versions(target)
        if found != [f"version {self.version}"]:
            raise Wrong(f"version {self.version} was synced, and a call reads {found}")
        return ""


def run(thread):
    chance = random.Random(f"{seed} {name} {thread}")
    syncs = Syncs(thread)
    for number in itertools.count():
        if ending.is_set():
            return
        kind = chance.choice(kinds)
        lines = 1600 if kind.startswith("long") else chance.choice((3, 10, 40, 150))
        tokens = [f"{name}-{thread}-{number}"]
        if kind == "map":
            tokens = [f"{tokens[0]}-{item}" for item in range(6)]
        for token in tokens:
            note("begin", token, kind=kind, retries=2 if "again" in kind else 0)
        if kind == "map":
            good = batch(tokens, lines // 2)
        else:
            good = attempt(tokens[0], syncs.work if kind == "sync" else lambda: one(tokens[0], lines, kind))
        if not good:
            time.sleep(0.05)


working = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
for thread in working:
    thread.start()
sys.stdin.read()
ending.set()
for thread in working:
    thread.join()
'''


@dataclass
class Load:
    """Clients at work.

    Args:
        logs: theirs.
    """

    logs: Sequence[Path]
    _programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def calls(self) -> dict[str, Made]:
        """Read what the clients have noted so far."""
        return read_calls(self.logs)

    def answered(self, since: float = 0.0) -> int:
        """Return how many calls that began after a time have an answer."""
        return sum(any(one.is_answer for one in made.outcomes) for made in self.calls().values() if made.at >= since)

    def wait_answers(self, since: float, count: int = 1, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until so many calls that began after a time are answered."""
        try:
            until(
                lambda: self.answered(since) >= count or not all(one.poll() is None for one in self._programs), seconds
            )
            assert self.answered(since) >= count, "a client has ended"
        except AssertionError as error:
            last = "".join("".join(log.read_text().splitlines(keepends=True)[-4:]) for log in self.logs)
            raise AssertionError(f"{error}\n{last}{self.logs[0].with_suffix('.out').read_text()[-1000:]}") from None


@contextlib.contextmanager
def load(made: Cluster, directory: Path, seed: int, clients: Sequence[tuple[int, Sequence[str]]]) -> Iterator[Load]:
    """Run clients on their machine; each has ended by itself, with an outcome for each call, when the context ends.

    Args:
        clients: for each its threads, which make one call at a time, and the kinds of their calls.
    """
    directory.mkdir()
    program = directory / "client.py"
    program.write_text(PROGRAM.replace("MARK", repr(made.mark)))
    found = Load([directory / f"client-{number}.log" for number in range(len(clients))])
    try:
        for number, (threads, kinds) in enumerate(clients):
            log = found.logs[number]
            arguments = [str(program), str(number), str(log), str(threads), str(seed), ",".join(kinds)]
            with open(log.with_suffix(".out"), "wb") as output:
                started = subprocess.Popen(
                    made.client.command(sys.executable, *arguments),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **made.variables},
                    cwd=directory,
                )
            found._programs.append(started)
        yield found
        for one in found._programs:
            assert one.stdin is not None
            one.stdin.close()
        (made.volume() / "ending").touch()
        for one, log in zip(found._programs, found.logs, strict=True):
            assert one.wait(PATIENCE_SECONDS) == 0, log.with_suffix(".out").read_text()[-2000:]
    finally:
        for one in found._programs:
            one.kill()
            one.wait()
            if one.stdin is not None:
                one.stdin.close()
