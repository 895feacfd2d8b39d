"""The command line in the test's own process."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from atoll.cli.main import run


class Shell:
    """The command line in this process, with nothing of the test's own environment that names a server."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        for name in list(os.environ):
            if name.startswith(("ATOLL_", "FAL_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        monkeypatch.setenv("ATOLL_HOME", str(directory / "home"))

    def __call__(self, *arguments: str, typed: str = "", **variables: str) -> tuple[int, str, str]:
        """Return status, output and errors of a command."""
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(typed))
            for name, value in variables.items():
                patch.setenv(name, value)
            status = run(list(arguments))
        return status, *self.capsys.readouterr()
