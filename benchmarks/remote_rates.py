"""Calls a second of several clients at once, beside echoes of as many: both kinds wait at gates, which open in turns."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

from servers import Echo, cpu_of
from table import Comparison, Row, Samples, say

from atoll import Host, isolated

BODY = b"x" * 64
PROCESSES = 4
SETTLE_SECONDS = 0.05
START_SECONDS = 60
AIMS = {1: 1.0, 16: 1.7, 256: 1.3}
"""Of the calls that a processor relays in a second, by that of the echoes that it answers."""


def add(a: int, b: int) -> int:
    return a + b


def _work(kind: str, variables: dict[str, str], bare: str, ready: Any, gate: Any, counts: Any) -> None:
    """Make calls in threads while the gate is 1, until it is 2; each thread has a place in `counts`."""

    def run(place: int) -> None:
        if kind == "atoll":
            host = Host(
                variables["ATOLL_HOST"],
                key_id=variables["ATOLL_KEY_ID"],
                key_secret=variables["ATOLL_KEY_SECRET"],
            )
            function = isolated(host=host, keep_alive=600)(add)
            call: Callable[[], Any] = lambda: function(1, 2)  # noqa: E731
        else:
            echo = Echo(bare)
            call = lambda: echo.call(BODY)  # noqa: E731
        call()
        ready.release()
        while gate.value != 2:
            if gate.value:
                call()
                counts[place] += 1
            else:
                time.sleep(0.005)

    running = [threading.Thread(target=run, args=(place,)) for place in range(len(counts))]
    for one in running:
        one.start()
    for one in running:
        one.join()


class Clients:
    """Clients of one kind, who wait until the gate is open.

    Args:
        kind: `atoll` or `echo`.
        number: of clients.
    """

    def __init__(self, kind: str, number: int, variables: dict[str, str], bare: str) -> None:
        context = multiprocessing.get_context("spawn")
        ready, self._gate = context.Semaphore(0), context.RawValue(ctypes.c_byte, 0)
        parts = min(number, PROCESSES)
        self._counts = [context.RawArray(ctypes.c_long, number // parts) for _ in range(parts)]
        self._started = [
            context.Process(target=_work, args=(kind, variables, bare, ready, self._gate, counts))
            for counts in self._counts
        ]
        for one in self._started:
            one.start()
        for _ in range(number):
            if not ready.acquire(timeout=START_SECONDS):
                self.close()
                raise RuntimeError(f"not all of {number} clients could begin")

    def take_turn(self, seconds: float, calls: Samples, processor: Samples, server: int, *, counts: bool) -> None:
        """Open the gate for a while.

        Args:
            calls: take the seconds for each call, of all clients together.
            processor: take the seconds that the server's processor works for each call.
            server: the process that answers or relays.
            counts: False for the turn that warms up.
        """
        before, worked, began = self._count(), cpu_of(server), time.perf_counter()
        self._gate.value = 1
        time.sleep(seconds)
        count = max(self._count() - before, 1)
        took, worked = time.perf_counter() - began, cpu_of(server) - worked
        self._gate.value = 0
        time.sleep(SETTLE_SECONDS)
        if counts:
            calls.seconds.append(took / count)
            processor.seconds.append(worked / count)

    def _count(self) -> int:
        return sum(sum(counts) for counts in self._counts)

    def close(self) -> None:
        self._gate.value = 2
        for one in self._started:
            one.join(10)
            if one.is_alive():
                one.kill()


def measure_rate(
    variables: dict[str, str], server: int, bare: tuple[str, int], numbers: list[int], rounds: int, seconds: float
) -> list[Row]:
    """Calls a second of so many clients at once, and of the server's processor alone, beside echoes.

    Args:
        server: its process.
        bare: the echo's address and process.
    """
    rows: list[Row] = []
    for number in numbers:
        say(f"{number} clients")
        with contextlib.ExitStack() as stack:
            kinds = []
            for kind, pid, name, peer in (
                ("atoll", server, "remote calls, {} clients", "relayed by a processor, {} clients"),
                ("echo", bare[1], "echo, http.client", "echoed by a processor"),
            ):
                clients = Clients(kind, number, variables, bare[0])
                stack.callback(clients.close)
                kinds.append((clients, Samples(name.format(number)), Samples(peer.format(number)), pid))
            for turn in range(rounds + 1):
                for clients, calls, processor, pid in kinds:
                    clients.take_turn(seconds, calls, processor, pid, counts=turn > 0)
        (_, ours, relayed, _), (_, echoes, echoed, _) = kinds
        rows += [
            Comparison(relayed, echoed, aim=AIMS.get(number), amount=1.0, unit="calls/s"),
            Comparison(ours, echoes, amount=1.0, unit="calls/s"),
        ]
    return rows
