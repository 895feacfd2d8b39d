"""A second process, for what concerns two: locks, shared maps, appends.

It is a Python of its own with nothing imported from here, which opens the file by itself and does what it is told, a
word a line. It is killed in the end, so that what is to end with its holder can be seen to.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import TracebackType
from typing import Self

_SECONDS = 20.0
"""How long it may take: a file system whose locks hang is one without."""

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


class Partner:
    """Another process that works on a file.

    Args:
        directory: an open directory, which the process inherits.
        name: the file in it.

    Raises:
        OSError: it cannot be started, or what it was told to do failed there.
        TimeoutError: it does not answer.
    """

    def __init__(self, directory: int, name: str) -> None:
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        own = os.dup(directory)
        try:
            os.set_inheritable(own, True)
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, str(own), name],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)],
            )
        except BaseException:
            os.close(self._write)
            os.close(self._read)
            raise
        finally:
            for descriptor in (theirs_in, theirs_out, own):
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._write)
        os.close(self._read)

    def begin(self, word: str) -> None:
        """Tell it to do something."""
        os.write(self._write, f"{word}\n".encode())

    def end(self) -> str:
        """Wait until it has done that, and return its answer."""
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._read], [], [], _SECONDS)[0]:
                raise TimeoutError("another process hangs at it")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise OSError("another process ended at it")
            answer += piece
        verdict, _, text = answer.decode("latin-1").rstrip("\n").partition(" ")
        if verdict != "ok":
            number, _, reason = text.partition(" ")
            raise OSError(int(number), f"another process is refused: {reason}")
        return text

    def ask(self, word: str) -> str:
        """Tell it to do something, and return its answer."""
        self.begin(word)
        return self.end()
