"""`atoll shell [FILE.py::FUNC]`: a shell where the function would run.

On a terminal the shell gets a pseudo terminal of its own, otherwise pipes; their other ends are copied to and from the
caller's. A server makes them itself. The caller's own descriptors are never in a sandbox: whoever holds one can open its file or terminal anew, for
reading and for writing, through `/proc/self/fd`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from atoll.cli import hosts
from atoll.cli.programs import target as program
from atoll.sdk.decorator import isolated
from atoll.sdk.display.build_display import BuildDisplay

Descriptors = tuple[int, int, int]
Run = Callable[[Descriptors, bool, Callable[[], None]], int]


def shell(target: str = "", /) -> int:
    """Open an interactive shell in a function's environment and sandbox, with `/data`.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC; without it, an environment without requirements.
    """
    function = program.described(target) if target else isolated(_nothing)
    host = function.options.host or hosts.chosen()
    spec = function.lease_spec(pickled=False)

    def run(descriptors: Descriptors, terminal: bool, on_start: Callable[[], None]) -> int:
        with BuildDisplay("atoll: ") as tell:

            def start() -> None:
                tell.close()
                on_start()

            return host.run_shell(spec, descriptors, terminal=terminal, on_progress=tell, on_start=start)

    return run_on_own_streams(run) if hosts.server_of(host) is not None else run_on_own_terminal(run)


def run_on_own_streams(run: Run) -> int:
    """Run a shell or a command of a server, whose output and input pass through the caller's own descriptors.

    Args:
        run: see `run_on_own_terminal`; without `termios`, as on Windows, it gets no terminal.
    """
    for descriptor in range(3):
        _open_if_closed(descriptor)
    own = (0, 1, 2)
    try:
        import termios
        import tty

        before = termios.tcgetattr(0) if os.isatty(0) and os.isatty(1) else None
    except ImportError:
        before = None
    if before is None:
        return run(own, False, lambda: None)
    try:
        return run(own, True, lambda: tty.setraw(0, termios.TCSANOW))  # keeps input that was typed meanwhile
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def run_on_own_terminal(run: Run) -> int:
    """Run a shell or a command on descriptors of its own, which are copied to and from the caller's.

    Args:
        run: runs it on three descriptors, a terminal or not; it calls its last argument when it begins.
    """
    for descriptor in range(3):
        _open_if_closed(descriptor)
    return _on_terminal(run) if os.isatty(0) and os.isatty(1) else _on_pipes(run)


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _nothing() -> None:
    """Stand for a function without requirements."""


def _on_terminal(run: Run) -> int:
    import fcntl
    import pty
    import signal
    import termios
    import tty

    ours, theirs = pty.openpty()

    def resize(*_: Any) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    resize()
    signal.signal(signal.SIGWINCH, resize)
    before = termios.tcgetattr(0)

    def begin() -> None:
        tty.setraw(0, termios.TCSANOW)  # keeps input that was typed meanwhile
        threading.Thread(target=_copy, args=(0, ours), daemon=True).start()

    reader = threading.Thread(target=_copy, args=(ours, 1), daemon=True)
    reader.start()
    try:
        return run((theirs, theirs, theirs), True, begin)
    finally:
        os.close(theirs)
        reader.join(1.0)
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _on_pipes(run: Run) -> int:
    (stdin, ours), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
    copies = [(os.dup(0), ours), (out, os.dup(1)), (err, os.dup(2))]
    threads = [threading.Thread(target=_copy_and_close, args=pair, daemon=True) for pair in copies]
    for thread in threads:
        thread.start()
    try:
        status = run((stdin, stdout, stderr), False, lambda: None)
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    for thread in threads[1:]:  # to the end of the output: no process of the shell is left
        thread.join()
    return status


def _copy_and_close(source: int, target: int) -> None:
    _copy(source, target)
    os.close(source)  # a writer without a reader is told
    os.close(target)


def _copy(source: int, target: int) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(target, data) :]
