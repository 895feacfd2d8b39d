"""The programs of `examples/server/`, copied with the names of 2023 or of today, and run as a user of a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..waiting import PATIENCE_SECONDS, soak
from .process import Server

EXAMPLES = Path(__file__).parents[2] / "examples" / "server"
NAMES = soak(["fal-serverless"], ["fal-serverless", "atoll"])
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@dataclass
class Examples:
    """A copy of the directory, whose programs have the names of one generation.

    Args:
        directory: gets the copy.
        name: of the command.
    """

    server: Server
    directory: Path
    name: str

    def __post_init__(self) -> None:
        """Write the copy."""
        self.directory = self.directory / "server"
        self.directory.mkdir()
        for source in EXAMPLES.glob("*.*"):
            text = source.read_text()
            if self.name != "atoll":
                text = re.sub(r"^from atoll import", "from fal_serverless import", text, flags=re.MULTILINE)
                text = text.replace("ATOLL_", "FAL_").replace("atoll ", "fal-serverless ")
            (self.directory / source.name).write_text(text)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the programs."""
        key_id, secret = self.server.key
        prefix = "ATOLL" if self.name == "atoll" else "FAL"
        own = {f"{prefix}_HOST": self.server.url, f"{prefix}_KEY_ID": key_id, f"{prefix}_KEY_SECRET": secret}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "FAL_"))}
        path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        where = {"ATOLL_HOME": str(self.directory.parent / "home"), "PATH": path, "COLUMNS": "200"}
        return {**kept, **self.server.client_variables, **own, **where}

    def run(self, program: str, *arguments: str, python: str | Path = sys.executable) -> list[str]:
        """Run a program to its end; return the lines that it has printed."""
        done = subprocess.run(
            ["sh" if program.endswith(".sh") else python, self.directory / program, *arguments],
            cwd=self.directory.parent,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.splitlines()
