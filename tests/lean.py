"""A small process that runs the bodies of tests which fork often.

A fork of a process that holds all tests of a run costs several times as much as the work of the child that it makes.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from .leaks import Holdings

ROOT = Path(__file__).parents[1]
LONGEST_VALUE = 500
"""Characters of a variable that a failure shows."""


class Lean:
    """Runs functions of modules, one after the other, in a process that has imported little else."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function there; what it raises, and what it leaks, fails the test with its traceback."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function.__module__, function.__qualname__, arguments), self._process.stdin)
            self._process.stdin.flush()
            failure = pickle.load(self._process.stdout)
        except BaseException:  # it has ended, or the test's time is over
            self._process.kill()
            self.close()
            self._process = self._start()
            raise
        if failure:
            pytest.fail(failure, pytrace=False)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _tried(module: str, name: str, arguments: tuple[object, ...]) -> str:
    """Return what has failed, with the variables of each frame; empty where nothing has."""
    function: Any = getattr(importlib.import_module(module), name)
    before = Holdings.now()
    try:
        function(*arguments)
    except BaseException as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        for frame in told.stack:
            frame.locals = {key: text[:LONGEST_VALUE] for key, text in (frame.locals or {}).items()}
        return "".join(told.format())
    return (leaked := before.leaked()) and f"the test leaks\n{leaked}"


def main() -> None:
    """Answer requests on the standard input until its end; what functions print goes to the standard error."""
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_tried(*request), answers)
        answers.flush()


if __name__ == "__main__":
    main()
