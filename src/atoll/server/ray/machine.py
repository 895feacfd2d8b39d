"""The actor of one machine: has its guard run the member process, and reports on it. No user's bytes come here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from atoll import process, settings

KEPT_LINES = 50
PAUSE_SECONDS = 1.0
STOP_SECONDS = 30.0
LOOK_SECONDS = 5.0


class Machine:
    """One machine's member process, kept running until the actor ends.

    Args:
        order: `name`, `node` (Ray's), `home`, `env`, `join` (the program that joins, run until it succeeds once for a Ray
            node), `given` (its standard input), `argv` (the program to keep running); `atoll` as a program stands for this installation.
        orphan_seconds: without a word from a driver after which the actor ends itself.
    """

    def __init__(self, order: Mapping[str, Any], orphan_seconds: float) -> None:
        self._clean = settings.daemon_environment()  # nothing of Ray's: no address, no token
        self._order = {
            **order,
            "join": _program(order["join"]),
            "argv": _program(order["argv"]),
            "env": {**self._clean, **order["env"], "ATOLL_HOME": order["home"]},
        }
        self._changed = threading.Condition()
        self._version = 0
        self._state: dict[str, Any] = {"state": "starting", "pid": 0, "exits": 0, "name": order["name"]}
        self._lines = deque[str](maxlen=KEPT_LINES)
        self._stopping = False
        self._channel: socket.socket | None = None
        self._heard = time.monotonic()
        self._orphan_seconds = orphan_seconds
        self._thread = threading.Thread(target=self._keep_guard, daemon=True)
        self._thread.start()
        threading.Thread(target=self._end_orphan, daemon=True).start()

    def report(self, seen: int = -1, seconds: float = 0.0) -> dict[str, Any]:
        """Return state, pid, exits and the last lines of the process, once they are newer than `seen`, or time is up."""
        self._heard = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen, seconds)
            return {**self._state, "lines": list(self._lines), "version": self._version}

    def stop(self) -> None:
        """End the process and all that it started."""
        with self._changed:
            self._stopping = True
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_WR)
        self._thread.join(STOP_SECONDS)

    def _keep_guard(self) -> None:
        while not self._stopping:
            try:
                self._run_guard()
            except OSError as error:
                self._note(state="waiting", line=f"no guard: {error}")
            if not self._stopping:
                time.sleep(PAUSE_SECONDS)
        self._note(state="ended", pid=0)

    def _run_guard(self) -> None:
        here, there = socket.socketpair()
        with here:
            with there:
                argv = [sys.executable, "-m", "atoll.server.ray.guard", str(there.fileno())]
                pid = process.start_detached(argv, env=self._clean, descriptors=(there.fileno(),), log=2)
            os.waitpid(pid, 0)  # the guard itself is a child of this one's, which has left it
            with self._changed:
                if self._stopping:
                    return
                self._channel = here
            here.sendall(json.dumps(self._order).encode() + b"\n")
            with here.makefile("rb") as lines:
                for line in lines:
                    self._note(**json.loads(line))
            with self._changed:
                self._channel = None

    def _note(self, line: str = "", **state: Any) -> None:
        with self._changed:
            if line:
                self._lines.append(line)
            self._state.update(state)
            self._version += 1
            self._changed.notify_all()

    def _end_orphan(self) -> None:
        """End the actor when no driver has asked for long: its server is gone for good."""
        while time.monotonic() - self._heard < self._orphan_seconds:
            time.sleep(min(LOOK_SECONDS, self._orphan_seconds / 4))
        self.stop()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _program(argv: Sequence[str]) -> list[str]:
    return (
        [sys.executable, "-c", "from atoll.cli.main import main; main()", *argv[1:]] if argv[0] == "atoll" else [*argv]
    )
