"""A TCP proxy on loopback that loses connections when it is told to, at any byte."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading


class DropProxy:
    """Passes connections on to a port of this machine.

    Args:
        port: where to.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.drops = 0
        self.refuses = False
        self._ended = threading.Event()
        self._start(self._accept)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses or self._ended.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open |= {near, far}
            self._start(self._pass_on, near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError, ValueError):
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    other[ready].sendall(data)
        with self._lock:
            self._open -= {near, far}

    def drop(self) -> int:
        """Lose all connections of now; return how many there were."""
        with self._lock:
            lost, self._open = self._open, set()
        for one in lost:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.drops += len(lost) // 2
        return len(lost) // 2

    def drop_at_random(self, seed: int, most_seconds: float) -> None:
        """Lose connections at random moments from now on."""
        chance = random.Random(seed)

        def work() -> None:
            while not self._ended.wait(chance.uniform(0.002, most_seconds)):
                self.drop()

        self._start(work)

    def close(self) -> None:
        """End, with all connections and threads."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            while thread.is_alive():
                self.drop()
                thread.join(0.05)
