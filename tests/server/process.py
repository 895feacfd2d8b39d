"""A server in a process of its own, for tests of any part."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.cli.server import machine_packages

from ..conftest import Home, own_home
from ..waiting import PATIENCE_SECONDS, until
from .certificates import Authority

if TYPE_CHECKING:
    from atoll.server.accounts.bodies import AddedUser, NewUser

PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"

_SUPERVISOR = """
import json, subprocess, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open(asked["log"], "ab") as log:
        child = subprocess.Popen(asked["command"], env=asked["env"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    print(child.pid, flush=True)
    print(child.wait(), flush=True)
"""


class Supervised:
    """A process that is ended and started again, below one that stays: tests see the same child before and after."""

    def __init__(self) -> None:
        self._above = subprocess.Popen(
            [sys.executable, "-c", _SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = 0

    def start(self, command: list[str], env: dict[str, str], log: Path) -> None:
        """Start it."""
        assert self._above.stdin is not None
        self._above.stdin.write(json.dumps({"command": command, "env": env, "log": str(log)}).encode() + b"\n")
        self.pid = int(self._read())

    def _read(self) -> str:
        assert self._above.stdout is not None
        return self._above.stdout.readline().decode()

    @property
    def runs(self) -> bool:
        """True while it has not ended."""
        assert self._above.stdout is not None
        return bool(self.pid) and not select.select([self._above.stdout], [], [], 0)[0]

    def end(self, number: int) -> int:
        """Send it a signal, SIGKILL when that does not end it; return its status, 0 if none runs."""
        assert self._above.stdout is not None
        pid, self.pid = self.pid, 0
        if not pid:
            return 0
        for one in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, one)
            if select.select([self._above.stdout], [], [], PATIENCE_SECONDS)[0]:
                break
        return int(self._read())

    def close(self) -> None:
        """End it, and the one above."""
        self.end(signal.SIGKILL)
        with self._above:
            assert self._above.stdin is not None
            self._above.stdin.close()


@dataclass
class Server:
    """A state directory with a server, which can be ended and started again on the same port.

    Args:
        home: of the server and its node.
        authority: has issued its certificate.
        options: further arguments of `atoll server`.
        tls: False for plain HTTP.
        client_variables: of programs whose packages come from the server's index where this machine's are directories.
        source: the Python that its process runs.
    """

    home: Home
    authority: Authority
    options: Sequence[str] = ()
    tls: bool = True
    port: int = 0
    process: Supervised = field(default_factory=Supervised)
    environment: dict[str, str] = field(default_factory=dict)
    client_variables: dict[str, str] = field(default_factory=dict)
    source: str = PROGRAM
    _key: tuple[str, str] | None = None

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Use the network of its clients in this thread."""
        return contextlib.nullcontext()

    @property
    def address(self) -> str:
        """Where it listens."""
        return "127.0.0.1"

    @property
    def url(self) -> str:
        """The address with scheme and port, such as `https://127.0.0.1:12345`."""
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}"

    @property
    def volumes(self) -> Path:
        """The directory with the volumes of its users."""
        return self.home.path / "volumes"

    @property
    def ca_file(self) -> Path:
        """The certificates that its clients trust."""
        return self.authority.ca_file

    @property
    def key(self) -> tuple[str, str]:
        """The operator's key: id and secret."""
        if self._key is None:
            from atoll.server.accounts.bodies import NewUser

            added = self.add_user(NewUser("operator", operator=True))
            assert added.key is not None
            self._key = added.key.id, added.key.secret
        return self._key

    def add_user(self, asked: NewUser) -> AddedUser:
        """Add a user as the command line on the server's machine does."""
        from atoll.server.accounts.direct import Direct
        from atoll.server.database.address import address_of

        with Direct(self.home.path, address_of(self.home.path)) as accounts:
            return accounts.add_user(asked)

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.process.pid

    @property
    def log(self) -> Path:
        """The file of its stderr."""
        return self.home.path / "server.log"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        files: list[str] = []
        if self.tls:
            certificate, key = self._files()
            files = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        arguments = ["server", "--listen", f"127.0.0.1:{self.port}", *files, *self.options]
        described = self.home.path / "run" / "server.json"
        described.unlink(missing_ok=True)
        command = [sys.executable, "-c", self.source, *arguments]
        self.process.start(command, self.home.environment(self.environment), self.log)

        def listens() -> dict[str, Any]:
            assert self.process.runs, self.log.read_text()
            with contextlib.suppress(FileNotFoundError, ValueError):
                found: dict[str, Any] = json.loads(described.read_text())
                return found
            return {}

        self.port = int(until(listens)["url"].rpartition(":")[2])

    def _files(self) -> tuple[Path, Path]:
        directory = self.authority.ca_file.parent
        certificate, key = directory / "server.pem", directory / "server.key"
        return (certificate, key) if key.exists() else self.authority.issue("server")

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its status; the node stays."""
        return self.process.end(number)

    def context(self) -> ssl.SSLContext:
        """Return the trust of its clients."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection that the caller closes."""
        if self.tls:
            return http.client.HTTPSConnection(
                self.address, self.port, timeout=PATIENCE_SECONDS, context=self.context()
            )
        return http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE_SECONDS)

    def headers(self) -> dict[str, str]:
        """Return the headers of a request of the operator's."""
        return {"Authorization": f"Key {':'.join(self.key)}", "Atoll-Protocol": "1"}

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and body of a request: JSON where it is so, else bytes."""
        connection = self.connection()
        try:
            connection.request(method, path, body, self.headers() if headers is None else headers)
            answer = connection.getresponse()
            data = answer.read()
            is_json = answer.getheader("content-type", "").startswith("application/json")
            return answer.status, json.loads(data) if is_json else data
        finally:
            connection.close()


def on_cluster() -> bool:
    """Return whether servers of the tests have their functions on other machines (`ATOLL_CONFORMANCE=cluster`)."""
    return os.environ.get("ATOLL_CONFORMANCE") == "cluster"


@contextlib.contextmanager
def running(
    *options: str,
    tls: bool = True,
    share_network: bool = False,
    own_data: bool = False,
    program: str = PROGRAM,
    settings: str = "",
    **environment: str,
) -> Iterator[Server]:
    """Run a server in a fresh state directory; it and its node have ended at the end of the context.

    With `ATOLL_CONFORMANCE=cluster` its functions run on two other machines, and this thread is on a third one.

    Args:
        share_network: functions of its only user have the machine's network.
        own_data: machines that join need not share `/data`.
        program: of the server.
        settings: further lines of its `settings.toml`.
    """
    if (
        on_cluster() and program == PROGRAM and not settings
    ):  # else its endpoints are the test's, and no machine has calls
        from ..cluster.cluster import cluster

        with cluster(share_network=share_network, options=options, environment=environment) as made:
            with made.client.entered():
                yield made.head
        return
    with own_home() as home, tempfile.TemporaryDirectory(prefix="atoll-tls-") as directory:
        share_uid = os.geteuid() != 0  # else a node of a plain user serves one user
        packages = machine_packages.read(Path(directory))
        lines = ["[users]", f"share_uid = {str(share_uid).lower()}", f"share_network = {str(share_network).lower()}"]
        own = ["[cluster]", "own_data = true"] if own_data else []
        (home.path / "settings.toml").write_text(
            "\n".join([*lines, *own, "[environments]", packages.options, settings])
        )
        server = Server(home, Authority(Path(directory)), options, tls, environment=environment, source=program)
        server.client_variables = packages.variables
        try:
            server.start()
            yield server
        finally:
            status = server.end()
            server.process.close()
            text = server.log.read_text() if server.log.exists() else ""
        assert status in (0, -signal.SIGTERM), f"the server ended with {status}\n{text[-5000:]}"
        assert "Traceback" not in text, text[-5000:]


def thread_count(pid: int) -> int:
    """Return the number of a process's threads."""
    return len(os.listdir(f"/proc/{pid}/task"))


def memory(pid: int) -> int:
    """Return the bytes of memory that a process has for itself."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("RssAnon:")).split()[1]) << 10
