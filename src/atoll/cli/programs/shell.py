"""`atoll shell [FILE.py::FUNC]`: a shell where the function would run.

On a terminal the shell gets a pseudo terminal of its own, otherwise pipes; their other ends are copied to and from the
caller's. The caller's own descriptors are never in a sandbox: whoever holds one can open its file or terminal anew, for
reading and for writing, through `/proc/self/fd`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from atoll.cli.programs import target as program
from atoll.cli.terminal import echo
from atoll.host.local import LocalHost, local
from atoll.model.specs import LeaseSpec
from atoll.sdk.decorator import isolated


def shell(target: str = "", /) -> int:
    """Open an interactive shell in a function's environment and sandbox, with `/data`.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC; without it, an environment without requirements.
    """
    function = program.described(target) if target else isolated(_nothing)
    host = function.options.host if isinstance(function.options.host, LocalHost) else local
    spec = function.lease_spec(pickled=False)
    for descriptor in range(3):
        _open_if_closed(descriptor)
    if os.isatty(0) and os.isatty(1):
        return _on_terminal(host, spec)
    return _on_pipes(host, spec)


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _nothing() -> None:
    """Stand for a function without requirements."""


def _run(
    host: LocalHost, spec: LeaseSpec, descriptors: tuple[int, int, int], *, terminal: bool, on_start: Any = None
) -> int:
    def tell(line: str) -> None:
        echo(f"atoll: {line}", error=True)

    return host.run_shell(spec, descriptors, terminal=terminal, on_progress=tell, on_start=on_start or (lambda: None))


def _on_terminal(host: LocalHost, spec: LeaseSpec) -> int:
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
        return _run(host, spec, (theirs, theirs, theirs), terminal=True, on_start=begin)
    finally:
        os.close(theirs)
        reader.join(1.0)
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _on_pipes(host: LocalHost, spec: LeaseSpec) -> int:
    (stdin, ours), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
    copies = [(os.dup(0), ours), (out, os.dup(1)), (err, os.dup(2))]
    threads = [threading.Thread(target=_copy_and_close, args=pair, daemon=True) for pair in copies]
    for thread in threads:
        thread.start()
    try:
        status = _run(host, spec, (stdin, stdout, stderr), terminal=False)
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
