"""Two users of one server's node, each as the server asks for them: hosts whose messages name a user."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from atoll import LocalHost, errors, isolated
from atoll.host import daemon_start
from atoll.host.storage_channels import StorageChannel
from atoll.settings import Settings
from atoll.wire.channel import Channel
from tests.conftest import Home

P = ParamSpec("P")
R = TypeVar("R")


class UserHost(LocalHost):
    """The node as one user of the server has it.

    Args:
        more: the rest of `as` (`daemon.leasing`).
    """

    def __init__(self, home: Path, user: str, **more: Any) -> None:
        super().__init__(home)
        self.user = user
        self._as = {"user": user, **more}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def kind(self, spec: Any) -> Any:
        return self.user, super().kind(spec)

    def _open(
        self, message: dict[str, Any], index: Iterable[tuple[str, str]], descriptors: Sequence[int] = ()
    ) -> Channel:
        return super()._open({**message, "as": self._as}, index, descriptors)

    def connect(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> Channel:
        """Return a connection with this opening message."""
        return daemon_start.open_connection(self.settings, {**message, "as": self._as}, descriptors)

    def open_storage(self) -> Channel:
        control = self.connect({"type": "storage"})
        header = control.receive().header
        if header.get("type") == "failed":
            control.close()
            raise errors.from_data(header.get("error") or {})
        (descriptor,) = control.take_descriptors(1)
        return StorageChannel(socket.socket(fileno=descriptor), control)


@dataclass(frozen=True)
class Users:
    """The hosts of two users, and the node's owner."""

    ann: UserHost
    bob: UserHost
    owner: LocalHost
    home: Home

    @property
    def settings(self) -> Settings:
        return self.owner.settings


@contextlib.contextmanager
def two_users(home: Home, **options: str) -> Iterator[Users]:
    """Give two users of a node, which is started with their first request.

    Args:
        options: lines of the table `users` of the settings.
    """
    lines = {"share_uid": "true", **options}
    (home.path / "settings.toml").write_text(
        "[users]\n" + "".join(f"{name} = {text}\n" for name, text in lines.items())
    )
    users = Users(UserHost(home.path, "u-ann"), UserHost(home.path, "u-bob"), LocalHost(home.path), home)
    try:
        yield users
    finally:
        for host in (users.ann, users.bob, users.owner):
            host.close()


def on(host: LocalHost, function: Callable[P, R], **options: Any) -> Any:
    """Return a function that runs on a host."""
    return isolated(host=host, **{"network": "none", **options})(function)
