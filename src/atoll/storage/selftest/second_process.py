"""The second process of a trial that needs two: for locks, shared maps and appends.

A Python that imports nothing of Atoll opens the file by itself and answers one word a line. It is killed at the end,
so that a trial sees a lock end with its holder.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from types import TracebackType
from typing import Self

_SECONDS = 20.0
"""The longest wait for an answer: a file system whose locks hang has none."""
_DIRECTORY = 3

_PROGRAM = """
import fcntl, mmap, os, sys
directory, name = int(sys.argv[1]), sys.argv[2]
def do(word):
    if word == "append":
        file = os.open(name, os.O_WRONLY | os.O_APPEND, dir_fd=directory)
        for number in range(200):
            os.write(file, b"them %04d\\n" % number)
        return ""
    file = os.open(name, os.O_RDWR, dir_fd=directory)
    if word == "map":
        page = mmap.mmap(file, 4096)
        page[10:15] = b"there"
        return page[0:5].decode("latin-1")
    getattr(fcntl, word)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return ""
for line in sys.stdin:
    try:
        answer = "ok " + do(line.strip())
    except OSError as error:
        answer = "no %d %s" % (error.errno or 0, error.strerror or error)
    print(answer.replace("\\0", "."), flush=True)
"""


class SecondProcess:
    """Another process that works on a file.

    Args:
        directory: an open directory, inherited by the process.
        name: name of the file in it.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_SECONDS)
        with theirs:
            program = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_DIRECTORY), name]
            inherited = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), number) for number in (0, 1)]
            inherited.append((os.POSIX_SPAWN_DUP2, directory, _DIRECTORY))
            try:
                self.pid = os.posix_spawn(sys.executable, program, {}, file_actions=inherited)
            except BaseException:
                self._socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._socket.close()

    def begin(self, word: str) -> None:
        """Send a word that tells the process what to do."""
        self._socket.sendall(f"{word}\n".encode())

    def end(self) -> str:
        """Wait until the process has done it, and return its answer.

        Raises:
            OSError: it failed there, or the process ended.
            TimeoutError: no answer came.
        """
        answer = b""
        while not answer.endswith(b"\n"):
            try:
                piece = self._socket.recv(1 << 16)
            except TimeoutError:
                raise TimeoutError("another process hangs at it") from None
            except ConnectionError:
                piece = b""
            if not piece:
                raise OSError("another process ended at it")
            answer += piece
        verdict, _, text = answer.decode("latin-1").rstrip("\n").partition(" ")
        if verdict != "ok":
            number, _, reason = text.partition(" ")
            raise OSError(int(number), f"another process is refused: {reason}")
        return text

    def ask(self, word: str) -> str:
        """Send a word and return the answer."""
        self.begin(word)
        return self.end()
