"""A pseudo terminal of the caller's: a lease's worker prints to it where the caller prints to a terminal.

Theory of operation. The worker gets the terminal's end for writing only, and nothing is ever written to the other end:
no key that the user presses reaches a function. Output is passed on as it is (`OPOST` off); the caller's own terminal
makes its line ends. Linux hands the text that was written over before it answers `poll` or `read` of this end (since
4.5), so that the text is here when the answer is, as with pipes.
"""

from __future__ import annotations

import os

_SIZE_BYTES = 8  # `struct winsize` of <asm-generic/termios.h>


class PseudoTerminal:
    """One pseudo terminal; it belongs to one lease.

    Args:
        owner: the uid of the worker, which may open it again by `/dev/stdout` and `/dev/stderr`.

    The attribute `descriptor` is the end that the text comes from; it does not block, and its owner closes it.

    Raises:
        OSError: there is none.
    """

    def __init__(self, owner: int) -> None:
        import termios  # not on every platform

        self._size = b""
        self.descriptor, both = os.openpty()
        try:
            modes = termios.tcgetattr(both)
            modes[1] &= ~termios.OPOST
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(both, termios.TCSANOW, modes)
            if os.geteuid() == 0 and owner != 0:
                os.fchown(both, owner, -1)
            os.set_blocking(self.descriptor, False)
            self._inner = os.open(f"/proc/self/fd/{both}", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.descriptor)
            raise
        finally:
            os.close(both)

    def take_inner(self) -> int:
        """Return the end that the worker gets; the caller owns it."""
        inner, self._inner = self._inner, -1
        return inner

    def follow(self, descriptor: int) -> None:
        """Give it the size of another terminal."""
        import fcntl  # as above
        import termios  # as above

        try:
            size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(_SIZE_BYTES))
            if size != self._size:
                fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, size)
                self._size = size
        except OSError:  # the caller has closed its terminal
            pass
