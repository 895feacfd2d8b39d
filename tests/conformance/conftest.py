"""The hosts that the suite runs against, each as a `Place`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from atoll import IsolatedFunction, LocalHost, isolated

P = ParamSpec("P")
R = TypeVar("R")

PLACES = ("local",)
"""One name for each kind of host; `place` makes it."""


@dataclass(frozen=True)
class Place:
    """A host under test.

    Args:
        host: where functions run.
        variables: what makes this host the default one of another program.
    """

    host: Any
    variables: Mapping[str, str]

    def isolated(self, function: Callable[P, R], **options: Any) -> IsolatedFunction[P, R]:
        """Return the function, isolated on this host."""
        made: IsolatedFunction[P, R] = isolated(host=self.host, **options)(function)
        return made

    def program(self, path: Path, text: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Write and start a program of its own whose default host is this one; its three streams are pipes."""
        path.write_text(text)
        return subprocess.Popen(
            [sys.executable, str(path), *arguments],
            cwd=path.parent,
            env={**os.environ, **self.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture(scope="session", params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """A host that all tests of the suite share: they leave each other's files in `/data` alone."""
    home = request.getfixturevalue("_session_home").path
    made = Place(LocalHost(home), {"ATOLL_HOME": str(home)})
    made.isolated(int)()  # what a host says once, it has said
    return made
