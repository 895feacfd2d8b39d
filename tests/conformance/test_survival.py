"""Deaths at any moment: each call is answered exactly once, nobody gets another's answer, nothing leaks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from ..waiting import PATIENCE_SECONDS, soak, until
from .conftest import Place

KILLS = soak(24, 200)
VICTIMS = 4
OTHERS = 20
COLD = soak(12, 100)


def record(place: Place, name: str) -> list[str]:
    """Return the words that calls have recorded in a directory of `/data`, which is removed."""

    def take(name: str) -> list[str]:
        files = list((Path("/data") / name).glob("*"))
        for file in files:
            file.unlink()
        return [file.stem for file in files]

    return place.isolated(take)(name)


def append(name: str, word: str) -> None:
    """Record a word as a file of its own: of what two machines append to one, a shared disk may keep a part."""
    os.makedirs(f"/data/{name}", exist_ok=True)
    with open(f"/data/{name}/{word}.{uuid.uuid4().hex}", "x"):
        pass


def doomed(token: str, kill_after: float, work: float) -> str:
    """Have this worker killed in some seconds, whatever it does then; work; answer."""
    import subprocess

    append("conformance-kills", token)
    if kill_after:
        killer = ["sh", "-c", f"sleep {kill_after:.4f}; kill -9 {os.getpid()}"]
        subprocess.Popen(killer, stdin=subprocess.DEVNULL, start_new_session=True).returncode = 0  # not waited for
    time.sleep(work)
    return f"answer to {token}"


def steady(token: str) -> str:
    return f"answer to {token}"


def test_kills_at_random_moments_beside_twenty_others(place: Place) -> None:
    """Every call is answered once, by its own answer or by its worker's death; the others notice nothing.

    Death comes in the call that asks for it, with its answer, between two calls, or in the call after it.
    """
    record(place, "conformance-kills")
    over = threading.Event()
    wrong: list[object] = []
    outcomes: dict[str, str] = {}
    rounds: Counter[int] = Counter()

    def ask(function: Any, token: str, *args: Any) -> None:
        try:
            answer = function(token, *args)
        except errors.WorkerDied as error:
            outcomes[token] = "died"
            if error.signal != signal.SIGKILL or isinstance(error, errors.OutOfMemory):
                wrong.append((token, error))
        except BaseException as error:
            wrong.append((token, error))
        else:
            outcomes[token] = "answered"
            if answer != f"answer to {token}":
                wrong.append((token, answer))

    def victim(number: int) -> None:
        dice = random.Random(number)
        function = place.isolated(doomed, env={"CONFORMANCE": f"victim {number}"})
        for kill in range(KILLS // VICTIMS):
            work = dice.uniform(0, 0.01)
            ask(function, f"{number}-{kill}-armed", max(0.0001, dice.uniform(work - 0.006, work + 0.006)), work)
            ask(function, f"{number}-{kill}-after", 0, 0)

    def other(number: int) -> None:
        function = place.isolated(steady, env={"CONFORMANCE": f"other {number % 4}"})
        while not over.is_set() or not rounds[number]:
            rounds[number] += 1
            ask(function, f"other-{number}-{rounds[number]}")

    others = [threading.Thread(target=other, args=(number,)) for number in range(OTHERS)]
    victims = [threading.Thread(target=victim, args=(number,)) for number in range(VICTIMS)]
    for thread in (*others, *victims):
        thread.start()
    for thread in victims:
        thread.join()
    over.set()
    for thread in others:
        thread.join()

    assert not wrong
    assert all(
        outcomes[f"other-{number}-{one}"] == "answered"
        for number in range(OTHERS)
        for one in range(1, rounds[number] + 1)
    )
    own = {token: outcome for token, outcome in outcomes.items() if not token.startswith("other")}
    assert len(own) == 2 * KILLS
    assert set(own.values()) == {"answered", "died"}
    ran = Counter(record(place, "conformance-kills"))
    assert set(ran.values()) == {1}
    assert {token for token, outcome in own.items() if outcome == "answered"} <= set(ran) <= set(own)


def test_many_cold_starts_at_once(place: Place, tmp_path: Path) -> None:
    """Many calls that need a new worker each are all answered, within what the machine has."""

    def who() -> str:
        return os.environ["NUMBER"]

    functions = [place.isolated(who, env={"NUMBER": str(number)}, keep_alive=1) for number in range(COLD)]
    futures = [function.submit() for function in functions]
    assert [future.result(PATIENCE_SECONDS) for future in futures] == [str(number) for number in range(COLD)]


def test_a_caller_that_is_killed_takes_its_calls_with_it(place: Place, tmp_path: Path) -> None:
    """After SIGKILL of a caller with calls in flight these end, and others' calls go on."""
    text = (
        "import os, sys, time\n"
        "from atoll import isolated\n"
        "@isolated(env={'CONFORMANCE': 'orphan'})\n"
        "def beat(number):\n"
        "    import subprocess\n"
        "    subprocess.Popen(['sleep', '4321'])\n"
        "    print('begun', number)\n"
        "    time.sleep(1000)\n"
        "futures = [beat.submit(number) for number in range(8)]\n"
        "futures[0].result()\n"
    )

    def still_there() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"CONFORMANCE=orphan" in (path / "environ").read_bytes():
                    found.append(path.name)
        return found

    look = place.isolated(still_there)
    for _ in range(soak(1, 3)):
        with place.program(tmp_path / "caller.py", text) as run:
            assert run.stdout is not None
            assert run.stdout.readline().startswith(b"begun")
            run.kill()
        until(lambda: not look())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_caller_that_is_told_to_end_ends_at_once(place: Place, tmp_path: Path, number: int) -> None:
    """A signal to a caller that waits for a call ends it, and the call with it."""
    text = (
        "import time\n"
        "from atoll import isolated\n"
        "@isolated(env={'CONFORMANCE': 'told'})\n"
        "def wait():\n"
        "    print('begun')\n"
        "    time.sleep(1000)\n"
        "wait()\n"
    )
    with place.program(tmp_path / "caller.py", text) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        run.send_signal(number)
        _, err = run.communicate(timeout=120)
    assert run.returncode == -number
    assert number != signal.SIGINT or b"KeyboardInterrupt" in err


def test_a_caller_that_stops_reading_does_not_hold_up_others(place: Place, tmp_path: Path) -> None:
    """A caller that is stopped while its function prints without end waits alone."""
    text = "from atoll import isolated\n@isolated\ndef flood():\n    while True: print('x' * 1000)\nflood()\n"
    with place.program(tmp_path / "caller.py", text) as run:
        assert run.stdout is not None
        assert run.stdout.readline()
        run.send_signal(signal.SIGSTOP)
        assert [place.isolated(abs)(-number) for number in range(50)] == list(range(50))
        run.kill()


def test_a_function_that_kills_all_that_it_can_see_ends_alone(place: Place) -> None:
    """A function that signals every process it may loses its own sandbox at most; the next call works."""

    def rampage() -> None:
        os.kill(-1, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(errors.AtollError):
        place.isolated(rampage, env={"CONFORMANCE": "rampage"})()
    assert place.isolated(abs)(-1) == 1


def test_a_function_that_closes_every_descriptor_is_an_error_of_the_call(place: Place) -> None:
    """Code that closes all descriptors, as daemons do, breaks its own call at most."""

    def close() -> str:
        os.closerange(0, 1000)
        return "closed"

    with contextlib.suppress(errors.AtollError):
        assert place.isolated(close)() == "closed"
    assert place.isolated(abs)(-1) == 1


def test_a_fork_bomb_of_a_hundred_is_gone_with_its_call(place: Place) -> None:
    """A hundred children that are left behind end with their worker, and calls beside it work."""

    def multiply() -> int:
        for _ in range(100):
            if os.fork() == 0:
                time.sleep(1000)
                os._exit(0)
        return os.getpid()

    def count() -> int:
        return len([name for name in os.listdir("/proc") if name.isdigit()])

    before = place.isolated(count)()
    function = place.isolated(multiply, keep_alive=0)
    assert function() > 0
    until(lambda: place.isolated(count)() <= before + 10)


def test_a_worker_that_stops_itself_does_not_block_others(place: Place) -> None:
    """A worker that stopped with SIGSTOP holds its own call only, which can be cancelled."""

    def freeze() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    function = place.isolated(freeze, env={"CONFORMANCE": "frozen"})
    future = function.submit()
    assert [place.isolated(abs)(-number) for number in range(20)] == list(range(20))
    function.cancel(future)
    with pytest.raises((errors.CallCancelled, errors.WorkerDied, CancelledError)):
        future.result(60)


def test_many_failures_in_a_row_leave_no_descriptors(place: Place) -> None:
    """A caller whose calls fail over and over has as many open descriptors as before."""

    def die(value: Any) -> None:
        os._exit(1)

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    function = place.isolated(die)
    with pytest.raises(errors.WorkerDied):
        function(0)
    before = opened()
    for number in range(30):
        with pytest.raises(errors.WorkerDied):
            function(number)
    assert opened() <= before + 4
