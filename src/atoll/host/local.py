"""The local host: leases from the daemon, calls straight to the worker.

Theory of operation. A connection to the daemon carries one lease and lives as long as it. The daemon hands over a
data socket to the worker and its two output pipes; calls then go without the daemon (`local_link`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from atoll import errors, settings
from atoll.host import daemon_start
from atoll.host.local_link import LocalAsking
from atoll.host.pooled import PooledHost, answer_of
from atoll.model.specs import LeaseSpec
from atoll.settings import Settings
from atoll.wire import nested
from atoll.wire.channel import Channel, ChannelClosed

if TYPE_CHECKING:
    import socket


class LocalHost(PooledHost):
    """Runs functions on this machine; inside a sandbox, on the machine that the sandbox is on.

    Args:
        home: the state directory; by default `ATOLL_HOME` or the platform's user data directory.
    """

    name = "local"

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._home = os.fspath(home) if home is not None else None
        self._settings: Settings | None = None

    def __repr__(self) -> str:
        return "local" if self._home is None else f"LocalHost({self._home!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalHost, (self._home,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalHost) and other._home == self._home

    def __hash__(self) -> int:
        return hash(("local", self._home))

    @property
    def settings(self) -> Settings:
        """The settings of this host's state directory, read once; the defaults where the file has a mistake."""
        from pathlib import Path

        home = Path(os.path.abspath(self._home)) if self._home is not None else settings.default_home()
        if self._settings is None or self._settings.home != home or self._settings.mistake:
            if nested.inside():
                return Settings(Path("/nonexistent"))
            self._settings = settings.usable(home)
        return self._settings

    def kind(self, spec: LeaseSpec) -> Any:
        """See `contract.Leasing.kind`."""
        return self._home or settings.home_variables(), spec.terms

    def _ask_for(self, message: dict[str, Any], index: Iterable[tuple[str, str]]) -> LocalAsking:
        return LocalAsking(self._open(message, index))

    def _open(
        self, message: dict[str, Any], index: Iterable[tuple[str, str]], descriptors: Sequence[int] = ()
    ) -> Channel:
        """Open a connection with a message, and with the certificates that its index settings name."""
        digest = dict(index).get("certificates")
        if not digest:
            return daemon_start.open_connection(self.settings, message, descriptors)
        from atoll.host import index_settings  # for few callers
        from atoll.wire import sealed_file  # as above

        sealed = sealed_file.make(index_settings.certificates(digest).encode())
        try:
            announced = {**message, "certificates": digest}
            return daemon_start.open_connection(self.settings, announced, [sealed, *descriptors])
        finally:
            os.close(sealed)

    def dial(self, worker: str, port: int) -> socket.socket:
        """Connect to a port inside the sandbox of a worker that serves a lease; see `host.dial`."""
        from atoll.host.dial import dial

        return dial(self.settings, worker, port)

    def open_storage(self) -> Channel:
        """See `contract.Host.open_storage`."""
        import socket

        from atoll.host.storage_channels import StorageChannel

        warm: Channel | None = self._rested_storage()
        if warm is not None:
            return warm
        control = daemon_start.open_connection(self.settings, {"type": "storage"})
        try:
            header = control.receive().header
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            (descriptor,) = control.take_descriptors(1)
        except ChannelClosed as error:
            control.close()
            raise errors.HostUnreachable("the daemon ended", hint="try again") from error
        except BaseException:
            control.close()
            raise
        return StorageChannel(socket.socket(fileno=descriptor), control)

    @property
    def _storage_of(self) -> str:
        return str(self.settings.home)

    def run_shell(
        self,
        spec: LeaseSpec,
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_progress: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> int:
        """Run a shell in the function's sandbox on these descriptors; return its exit status."""
        message = {"type": "shell", "spec": spec.to_data(), "terminal": terminal}
        control = self._open(message, spec.environment.index, descriptors)
        answer = answer_of(LocalAsking(control), on_progress, on_start)
        return int(answer["status"])

    def run_command(
        self,
        call: str,
        command: Sequence[str],
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_start: Callable[[], None],
    ) -> int:
        """See `contract.Host.run_command`."""
        from atoll.host.exec import execute  # for the command line alone

        return execute(self.settings, call, command, descriptors, terminal=terminal, on_start=on_start)

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """See `contract.Host.request`."""
        message = {"type": "request", "name": name, "arguments": arguments}
        asked = arguments.get("environment")
        index = tuple(asked["index"].items()) if isinstance(asked, dict) else ()
        return answer_of(self._ask_for(message, index), on_progress)

    def request_running(
        self, name: str, arguments: dict[str, Any], *, greeting_seconds: float = daemon_start.GREETING_SECONDS
    ) -> dict[str, Any] | None:
        """Ask a daemon that is running already; None when there is none."""
        message = {"type": "request", "name": name, "arguments": arguments}
        channel = daemon_start.control_connection(self.settings, message, greeting_seconds)
        return None if channel is None else answer_of(LocalAsking(channel))


local = LocalHost()
"""The host of this machine, with the default state directory."""
