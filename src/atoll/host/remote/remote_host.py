"""Hosts that are servers: `Host`, and `cloud`, the server that the user is logged in to."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from atoll import credentials, errors, settings
from atoll.host import index_settings
from atoll.host.lease_pool import DaemonEnded
from atoll.host.pooled import PooledHost, answer_of
from atoll.host.remote import travelling
from atoll.host.remote.remote_link import RemoteLink
from atoll.host.remote.server import Server
from atoll.model.specs import LeaseSpec
from atoll.wire import nested

if TYPE_CHECKING:
    import socket


_VARIABLES = (
    *(b"ATOLL_HOST", b"ATOLL_KEY_ID", b"ATOLL_KEY_SECRET", b"ATOLL_CA_FILE"),
    *(b"FAL_HOST", b"FAL_PORT", b"FAL_KEY_ID", b"FAL_KEY_SECRET", b"XDG_CONFIG_HOME", b"HOME"),
)


class Host(PooledHost):
    """Runs functions on a server.

    Args:
        url: such as `https://lab.example`; by default the server that the user is logged in to (`atoll auth login`),
            or that `ATOLL_HOST` names.
        key_id, key_secret: the halves of the key; by default those of `ATOLL_KEY_ID` and `ATOLL_KEY_SECRET`, or of the
            login at that address.
        ca_file: certificates of authorities to trust in place of the system's.

    A pickle of a host holds no key: inside a function it is the machine that the function is on, in the same program
    this host, and in another one the server, with the key that is known there.
    """

    name = "remote"

    def __init__(self, url: str = "", *, key_id: str = "", key_secret: str = "", ca_file: str = "") -> None:
        super().__init__()
        self._url = credentials.address_of(url) if url else ""
        self._given = (self._url, key_id, key_secret, str(ca_file))
        self._number = os.urandom(8).hex()
        _made[self._number] = self
        self._server: Server | None = None
        self._found_by: Any = None

    def __repr__(self) -> str:
        return f"Host({self._url!r})" if self._url else "cloud"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._url, self._number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Host) and other._given == self._given

    def __hash__(self) -> int:
        return hash(self._given)

    def with_key(self, key_id: str, key_secret: str) -> Host:
        """Return this host with another key."""
        return Host(self._url, key_id=key_id, key_secret=key_secret, ca_file=self._given[3])

    @property
    def server(self) -> Server:
        """The server and its key.

        Raises:
            NotAuthorized: none is known.
            StateUntrusted, StateUnusable: see `credentials.find`.
        """
        variables = settings.known_variables(_VARIABLES)
        if self._server is None or self._found_by != variables:
            found = credentials.find(*self._given)
            if found is None:
                raise errors.NotAuthorized(
                    "no server is known", hint="run `atoll auth login --host URL`, or set ATOLL_HOST and its key"
                )
            self._server, self._found_by = Server(found), variables
        return self._server

    @property
    def identity(self) -> str:
        """The server and the user there: what is remembered of one is not taken for another's."""
        return f"{self.server.url} {self.server.key_id}"

    def kind(self, spec: LeaseSpec) -> Any:
        """See `contract.Leasing.kind`."""
        server = self.server
        return server.url, server.key_id, spec.terms

    def travelling(self, spec: LeaseSpec) -> LeaseSpec:
        """See `PooledHost.travelling`."""
        return travelling.spec_for(self, spec)

    def _ask_for(self, message: dict[str, Any], index: Iterable[tuple[str, str]]) -> RemoteLink:
        return RemoteLink(self.server, self._with_certificates(message, index))

    @staticmethod
    def _with_certificates(message: dict[str, Any], index: Iterable[tuple[str, str]]) -> dict[str, Any]:
        digest = dict(index).get("certificates")
        if not digest:
            return message
        return {**message, "certificates": digest, "certificates_text": index_settings.certificates(digest)}

    def _ended_while_waiting(self) -> DaemonEnded:
        return DaemonEnded(
            f"the connection to {self.server.shown} was lost while the call waited",
            hint="call again: it has not started",
        )

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """See `contract.Host.request`."""
        asked = arguments.get("environment")
        if isinstance(asked, dict):
            arguments = {**arguments, "environment": travelling.environment_data(self, asked)}
            index = tuple(arguments["environment"]["index"].items())
        else:
            index = ()
        if on_progress is None and not index:
            value = self.server.ask("POST", f"/v1/requests/{name}", arguments)
            return value if isinstance(value, dict) else {}
        message = {"type": "request", "name": name, "arguments": arguments}
        ended = f"the connection to {self.server.shown} was lost before it answered"
        return answer_of(self._ask_for(message, index), on_progress, ended=ended)

    def open_storage(self) -> Any:
        """See `contract.Host.open_storage`."""
        from atoll.host.remote.storage_line import StorageLine  # for `/data` alone

        return self._rested_storage() or StorageLine(self.server)

    @property
    def _storage_of(self) -> str:
        return self.identity

    def dial(self, worker: str, port: int) -> socket.socket:
        """See `contract.Host.dial`."""
        from atoll.host.remote.dialled import dial  # for few

        return dial(self.server, worker, port)

    def run_shell(
        self,
        spec: LeaseSpec,
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_progress: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> int:
        """See `contract.Host.run_shell`."""
        from atoll.host.remote import commands  # for the command line alone

        travels = self.travelling(spec)
        message = self._with_certificates({"type": "shell", "spec": travels.to_data()}, travels.environment.index)
        return commands.run(
            self.server, message, descriptors, terminal=terminal, on_progress=on_progress, on_start=on_start
        )

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
        from atoll.host.remote import commands  # as above

        message = {"type": "exec", "call": call, "command": list(command)}
        return commands.run(
            self.server, message, descriptors, terminal=terminal, on_progress=lambda _: None, on_start=on_start
        )


_made: weakref.WeakValueDictionary[str, Host] = weakref.WeakValueDictionary()
"""The hosts of this program, by numbers that say nothing elsewhere."""


def _unpickled(url: str, number: str) -> Any:
    """Return the host of a pickle; see `Host`."""
    if nested.inside():
        from atoll.host.local import local

        return local
    if number in _made:
        return _made[number]
    return Host(url) if url else cloud


cloud = Host()
"""The server that the user is logged in to, or that `ATOLL_HOST` names."""
