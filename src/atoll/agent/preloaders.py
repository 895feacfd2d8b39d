"""The preloaders of an agent: children that import packages, and then fork workers that have them already.

An agent has one that is ready, and perhaps one that is still importing a longer list. An older one stays until its
last worker has ended. Only the agent talks to the daemon: a preloader is told of the workers that are its own, and
its reports are passed on.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from atoll.agent import preloading
from atoll.agent.leftovers import kill_left_behind
from atoll.agent.process import start
from atoll.agent.shared_memory import SharedMemory
from atoll.wire.channel import Channel, ChannelClosed, pair

IMPORT_SECONDS = 30.0
"""Seconds that the import of one module may take ahead."""


class Agent(Protocol):
    """The agent above, as far as its preloaders use it."""

    def fork(self, serve: Callable[[], int], /) -> int: ...
    def watch(self, descriptor: int, on_ready: Callable[[], None], /) -> None: ...
    def unwatch(self, descriptor: int, /) -> None: ...
    def tell(self, message: dict[str, Any], /) -> None: ...
    def serve_preloaded(self, channel: Channel, /) -> None: ...
    def preloaded_worker_ended(self, exited: dict[str, Any], /) -> None: ...


class Preloader:
    """A child that imports modules, and then is an agent for its own workers."""

    def __init__(self, pid: int, channel: Channel, message: dict[str, Any], refused: dict[str, str]) -> None:
        self.pid = pid
        self.channel = channel
        self.message = message
        self.refused = refused
        self.ready = False
        self.importing = ""
        self.deadline = time.monotonic() + IMPORT_SECONDS
        self.workers: dict[str, SharedMemory] = {}


class Preloaders:
    """Starts, uses and ends the preloaders of one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._all: list[Preloader] = []  # in the order of their starts

    @property
    def workers(self) -> dict[str, SharedMemory]:
        """The workers that preloaders have forked, and the memory that each shares with both."""
        return {name: memory for one in self._all for name, memory in one.workers.items()}

    @property
    def sessions(self) -> list[int]:
        return [one.pid for one in self._all]

    @property
    def deadline(self) -> float:
        """When an import must have ended; 0 where none runs."""
        return min((one.deadline for one in self._all if one.deadline), default=0.0)

    def check_deadline(self) -> None:
        """Give an import up that takes too long."""
        for one in list(self._all):
            if one.deadline and one.deadline <= time.monotonic():
                self._refuse(one, one.importing, f"its import takes more than {IMPORT_SECONDS:.0f} s")

    def start(self, message: dict[str, Any], refused: dict[str, str] | None = None) -> None:
        """Import the modules of a `preload` message in a new preloader; the current one serves until it is ready."""
        for one in [one for one in self._all if not one.ready]:
            self._end(one)
        refused = refused or {}
        modules = [str(name) for name in message.get("modules", ()) if name not in refused]
        ours, theirs = pair()

        def serve() -> int:
            ours.close()
            return self._serve(Channel(theirs), modules, message.get("env"))

        preloader = Preloader(self._agent.fork(serve), Channel(ours), message, refused)
        theirs.close()
        self._all.append(preloader)
        self._agent.watch(ours.fileno(), lambda: self._listen(preloader))

    def _serve(self, channel: Channel, modules: Iterable[str], env: object) -> int:
        os.setsid()  # so that processes of an import are found and ended with it
        if isinstance(env, dict):
            os.environ.update({str(name): str(value) for name, value in env.items()})
        importing = ""

        def begin(name: str) -> None:
            nonlocal importing
            importing = name
            channel.send({"type": "importing", "module": name})

        with contextlib.suppress(ChannelClosed):
            try:
                needed = preloading.import_all(modules, begin)
            except preloading.UnsafeImport as error:
                channel.send({"type": "refused", "module": importing, "reason": str(error)})
                return 0
            start.look()  # at what the imports have changed
            gc.collect()
            gc.freeze()
            channel.send({"type": "preloaded", "modules": needed})
            self._agent.serve_preloaded(channel)
        return 0

    def _listen(self, preloader: Preloader) -> None:
        try:
            if preloader.channel.fill():
                while preloader.channel.pending:
                    self._handle(preloader, preloader.channel.receive().header)
        except ChannelClosed:
            if preloader not in self._all:
                return
            if preloader.ready:
                self._end(preloader)
            else:
                self._refuse(preloader, preloader.importing, "its import ends the process")

    def _handle(self, preloader: Preloader, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "importing":
            preloader.importing = str(message["module"])
            preloader.deadline = time.monotonic() + IMPORT_SECONDS
        elif kind == "refused":
            self._refuse(preloader, str(message["module"]), str(message["reason"]))
        elif kind == "answered":
            self._agent.tell(message)
        elif kind == "preloaded":
            preloader.ready, preloader.deadline = True, 0.0
            self._agent.tell({**message, "refused": preloader.refused})
        elif kind == "exited":
            memory = preloader.workers.pop(str(message["worker"]), None)
            if memory is not None:
                memory.close()
                self._agent.preloaded_worker_ended(message)
        self._end_older()

    def _refuse(self, preloader: Preloader, module: str, reason: str) -> None:
        """Start again without a module; where none is to blame, do without any."""
        self._end(preloader)
        if module:
            self._agent.tell({"type": "refused", "module": module, "reason": reason})  # the sandbox may end any time
            self.start(preloader.message, {**preloader.refused, module: reason})

    def _current(self) -> Preloader | None:
        return next((one for one in reversed(self._all) if one.ready), None)

    def _end_older(self) -> None:
        current = self._current()
        for one in [one for one in self._all if one.ready and one is not current and not one.workers]:
            self._end(one)

    def _end(self, preloader: Preloader) -> None:
        if preloader.workers:
            os._exit(1)  # its workers cannot be watched any more; the sandbox ends with this process
        self._all.remove(preloader)
        self._agent.unwatch(preloader.channel.fileno())
        preloader.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(preloader.pid, signal.SIGKILL)
        kill_left_behind("", preloader.pid, keep=self.sessions)
        os.waitpid(preloader.pid, 0)

    def fork(self, name: str, message: dict[str, Any], descriptors: Sequence[int], memory: SharedMemory) -> bool:
        """Have a worker forked with the packages; return whether that can be."""
        current = self._current()
        if current is None:
            return False
        try:
            current.channel.send(message, descriptors=descriptors)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # then it lives: the kernel let no descriptors through
                self._end(current)
            return False
        current.workers[name] = memory
        return True

    def pass_on(self, name: str, message: dict[str, Any]) -> bool:
        """Pass a message on to the preloader of a worker; return whether the worker has one."""
        for one in self._all:
            if name in one.workers:
                try:
                    one.channel.send(message)
                except (ChannelClosed, OSError):
                    self._end(one)
                return True
        return False

    def close(self) -> None:
        """Close the channels and the memory of workers, in a process that was forked."""
        for one in self._all:
            one.channel.close()
            for memory in one.workers.values():
                memory.close()
