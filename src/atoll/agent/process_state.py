"""State of a worker's process: a call's changes do not reach the next one."""

from __future__ import annotations

import os
import sys
import time

from atoll.agent import output


class ProcessState:
    """State of the process that is restored between calls: one function's changes do not reach the next."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._environment = dict(os.environ)
        self._raw = dict(getattr(os.environ, "_data", {}))
        self._arguments = list(sys.argv)

    @property
    def variables_changed(self) -> bool:
        """True if the environment variables differ from the saved ones."""
        return getattr(os.environ, "_data", None) != self._raw

    def restore(self) -> None:
        """Put back the working directory, the standard streams, the environment and `sys.argv`."""
        stdin, stdout, stderr = self._streams
        if stdin.closed or stdout.closed or stderr.closed:
            output.open_streams()
            self._streams = (sys.stdin, sys.stdout, sys.stderr)
        elif sys.stdin is not stdin or sys.stdout is not stdout or sys.stderr is not stderr:
            sys.stdin, sys.stdout, sys.stderr = self._streams
        try:
            moved = os.getcwd() != self._directory
        except OSError:
            moved = True
        if moved:
            os.chdir(self._directory)
        if self.variables_changed:  # decoding all of it would cost 30 us a call
            os.environ.clear()
            os.environ.update(self._environment)
            time.tzset()
        if sys.argv != self._arguments:
            sys.argv = list(self._arguments)
