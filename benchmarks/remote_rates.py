"""Calls a second of several clients at once, beside echoes of as many: both kinds wait at gates, which open in turns."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

from servers import Echo
from table import Comparison, Row, Samples, say

from atoll import Host, isolated

BODY = b"x" * 64
PROCESSES = 4
SETTLE_SECONDS = 0.05
START_SECONDS = 300
AIMS = {1: 1.0, 16: 1.7, 256: 1.3}


def add(a: int, b: int) -> int:
    return a + b


def _work(kind: str, variables: dict[str, str], bare: str, cpu: float, ready: Any, gate: Any, counts: Any) -> None:
    """Make calls in threads while the gate is 1, until it is 2; each thread has a place in `counts`."""

    def run(place: int) -> None:
        if kind == "atoll":
            host = Host(
                variables["ATOLL_HOST"],
                key_id=variables["ATOLL_KEY_ID"],
                key_secret=variables["ATOLL_KEY_SECRET"],
            )
            function = isolated(host=host, keep_alive=600, cpu=cpu, memory="64MB")(add)
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
        cpu: of a worker, in cores.
    """

    def __init__(self, kind: str, number: int, variables: dict[str, str], bare: str, cpu: float) -> None:
        context = multiprocessing.get_context("spawn")
        ready, self._gate = context.Semaphore(0), context.RawValue(ctypes.c_byte, 0)
        parts = min(number, PROCESSES)
        self._counts = [context.RawArray(ctypes.c_long, number // parts) for _ in range(parts)]
        self._started = [
            context.Process(target=_work, args=(kind, variables, bare, cpu, ready, self._gate, counts))
            for counts in self._counts
        ]
        for one in self._started:
            one.start()
        for _ in range(number):
            if not ready.acquire(timeout=START_SECONDS):
                self.close()
                raise RuntimeError(f"not all of {number} clients could begin")

    def rate(self, seconds: float) -> float:
        """Open the gate for a while; return the calls a second."""
        before, began = self._count(), time.perf_counter()
        self._gate.value = 1
        time.sleep(seconds)
        count, took = self._count() - before, time.perf_counter() - began
        self._gate.value = 0
        time.sleep(SETTLE_SECONDS)
        return max(count, 1) / took

    def _count(self) -> int:
        return sum(sum(counts) for counts in self._counts)

    def close(self) -> None:
        self._gate.value = 2
        for one in self._started:
            one.join(10)
            if one.is_alive():
                one.kill()


def measure_rate(
    variables: dict[str, str], bare: str, numbers: list[int], rounds: int, seconds: float, cores: int
) -> list[Row]:
    """Calls a second of so many clients at once, whole calls beside echoes."""
    rows: list[Row] = []
    for number in numbers:
        say(f"{number} clients")
        ours, peer = Samples(f"remote calls, {number} clients"), Samples("echo, http.client")
        with contextlib.ExitStack() as stack:
            kinds = []
            for kind, samples in (("atoll", ours), ("echo", peer)):
                clients = Clients(kind, number, variables, bare, min(0.1, cores / (number + 8)))
                stack.callback(clients.close)
                kinds.append((clients, samples))
            for turn in range(rounds + 1):
                for clients, samples in kinds:
                    rate = clients.rate(seconds)
                    if turn:
                        samples.seconds.append(1 / rate)
        rows.append(Comparison(ours, peer, aim=AIMS.get(number), amount=1.0, unit="calls/s"))
    return rows
