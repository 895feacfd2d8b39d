"""Members of a test's server: machines that have joined, all of them this one, each with a state directory of its own."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..conftest import Home, own_home
from ..waiting import until
from .process import Server, Supervised, running

_PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"


@dataclass
class Member:
    """A machine that has joined.

    Args:
        home: its state directory.
    """

    server: Server
    home: Home
    name: str
    process: Supervised = field(default_factory=Supervised)
    _seen: int = 0

    @property
    def log(self) -> Path:
        """The file of its stderr."""
        return self.home.path / "member.log"

    def begin(self, *arguments: str) -> None:
        """Start it."""
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-c", _PROGRAM, "node", *arguments]
        self.process.start(command, self.home.environment(), self.log)

    def wait(self) -> None:
        """Wait until it is linked."""

        def linked() -> bool:
            text = self.log.read_text()[self._seen :]
            assert self.process.runs, text
            return "linked to" in text

        until(linked)

    def start(self) -> None:
        """Start it again, and wait until it is linked."""
        self.begin("run")
        self.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its status; its daemon stays."""
        return self.process.end(number)


@contextlib.contextmanager
def joined(server: Server, *names: str) -> Iterator[dict[str, Member]]:
    """Run members of a server; they and their nodes have ended at the end of the context."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            home = stack.enter_context(own_home())
            settings = (server.home.path / "settings.toml").read_text()
            (home.path / "settings.toml").write_text(settings)
            member = found[name] = Member(server, home, name)
            stack.callback(_end, member)
            status, answer = server.ask("POST", "/v1/nodes/tokens", b"{}")
            assert status == 201, answer
            member.begin(
                "join", server.url, "--token", answer["token"], "--name", name, "--ca-file", str(server.ca_file)
            )
        for member in found.values():
            member.wait()
        yield found


def _end(member: Member) -> None:
    status = member.end()
    member.process.close()
    text = member.log.read_text() if member.log.exists() else ""
    assert status in (0, -signal.SIGTERM), f"the member ended with {status}\n{text[-3000:]}"
    assert "Traceback" not in text, text[-5000:]


@contextlib.contextmanager
def cluster(*names: str, options: tuple[str, ...] = ("--no-local",)) -> Iterator[tuple[Server, dict[str, Member]]]:
    """Run a server and members of it."""
    with running(*options, own_data=True) as server, joined(server, *names) as found:
        yield server, found
