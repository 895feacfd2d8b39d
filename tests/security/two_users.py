"""Two users of one server's node, each as the server asks for them: hosts whose messages name a user."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from atoll import LocalHost, isolated
from atoll.host import daemon_start
from atoll.settings import Settings
from atoll.wire.channel import Channel
from tests.conftest import Home

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class NamedSettings(Settings):
    """Settings whose connections ask in the name of a user.

    Args:
        named: the value of `as` (`daemon.leasing`).
    """

    named: dict[str, Any] = field(default_factory=dict)


class UserHost(LocalHost):
    """The node as one user of the server has it.

    Args:
        more: the rest of `as`.
    """

    def __init__(self, home: Path, user: str, **more: Any) -> None:
        super().__init__(home)
        self.user = user
        self._named = NamedSettings(home, named={"user": user, **more})

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @property
    def settings(self) -> Settings:
        return self._named

    def kind(self, spec: Any) -> Any:
        return self.user, super().kind(spec)

    def connect(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> Channel:
        """Return a connection with this opening message."""
        return daemon_start.open_connection(self.settings, message, descriptors)


@contextlib.contextmanager
def _named_connections() -> Iterator[None]:
    plain = daemon_start.open_connection

    def named(options: Settings, message: dict[str, Any] | None = None, descriptors: Sequence[int] = ()) -> Channel:
        if isinstance(options, NamedSettings) and message is not None:
            message = {**message, "as": options.named}
        return plain(options, message, descriptors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon_start, "open_connection", named)
        yield


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
    with _named_connections():
        try:
            yield users
        finally:
            for host in (users.ann, users.bob, users.owner):
                host.close()


def on(host: LocalHost, function: Callable[P, R], **options: Any) -> Any:
    """Return a function that runs on a host."""
    return isolated(host=host, **{"network": "none", **options})(function)
