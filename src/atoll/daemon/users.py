"""Users in whose name the owner's server asks: their limits, and what each of them holds here at a time.

Theory of operation. The server is the owner's client. Its messages name a user (`leasing.on_behalf`), whose id says
nothing about a person and is also the name of the volume's directory. A user is admitted when the first message comes.
Users are kept apart by host uids, which root alone can give: a daemon of a plain user serves one user, unless its owner
consents to a shared one (`shared_uid`). Each bound is counted by user, so a user who is at one holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from atoll import errors
from atoll.daemon import shared_uid
from atoll.engine.actions import WHOLE, Share
from atoll.environments.asked.reading import Readings
from atoll.model.options.users import UsersSettings
from atoll.sandbox import programs
from atoll.settings import Settings

PLACE_SECONDS = 3.0
"""Seconds for which a user waits for the end of one of their own storage clients."""


@dataclass(frozen=True)
class UserLimits:
    """Bounds of one user; 0 means the daemon's setting of that name in `users`.

    Args:
        weight: a user with twice the weight gets twice the cores of another, while both wait.
        workers: calls at a time.
        connections: to the daemon, leases among them.
        builds: of environments at a time; further ones wait.
        storage_clients: of `/data` at a time.
        request_bytes: memory of requests whose leases live.
    """

    weight: float = 1.0
    workers: int = 0
    connections: int = 0
    builds: int = 0
    storage_clients: int = 0
    request_bytes: int = 0


def read_limits(data: object) -> UserLimits:
    """Return the limits in a message of the server.

    Raises:
        ValueError: a limit is unknown, or no such number.
    """
    if data is None:
        return UserLimits()
    known = {field.name for field in fields(UserLimits)}
    if not isinstance(data, dict) or not set(data) <= known:
        raise ValueError(f"`limits` of a user are some of {', '.join(sorted(known))}")
    for name, value in data.items():
        whole = type(value) is int or (name == "weight" and type(value) is float)
        if not whole or not 0 <= value < 1 << 62 or (name == "weight" and not 1e-3 <= value <= 1e6):
            raise ValueError(f"the limit `{name}` of a user must be a number in its bounds")
    return UserLimits(**data)


class _Held:
    """Amounts that users hold at a time."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def take(self, user: str, amount: int, most: int) -> bool:
        if self._held[user] + amount > most:
            return False
        self._held[user] += amount
        return True

    def give_back(self, user: str, amount: int) -> None:
        self._held[user] -= amount
        if not self._held[user]:
            del self._held[user]


class Users:
    """The users that this daemon serves for a server.

    Args:
        options: the daemon's, with the defaults of limits.
        known: returns the users with a volume here.
        separates: whether each user has a host uid of their own.
    """

    def __init__(self, options: Settings, known: Callable[[], list[str]], *, separates: bool) -> None:
        self._options = options
        self._known = known
        self._separates = separates
        self._limits: dict[str, UserLimits] = {}
        self._connections, self._storage, self._bytes, self._shells = _Held(), _Held(), _Held(), _Held()
        self._builds: dict[str, asyncio.Semaphore] = {}
        self.readings = Readings()

    @property
    def _defaults(self) -> UsersSettings:
        return self._options.users

    def network(self) -> str:
        """Return the most open network of users' functions."""
        return "host" if self._defaults.share_network and len(self._limits) < 2 else "outbound"

    def admit(self, user: str, limits: UserLimits, owner: str) -> None:
        """Take note of a user and their present limits.

        Args:
            owner: the daemon's owner, who is no user of the server.

        Raises:
            SandboxUnavailable: this daemon cannot keep the user apart from another that it serves, by host uid or
                network.
        """
        if user not in self._limits or not self._separates:  # the consent to a shared uid may end with a server
            others = {*self._limits, *self._known()} - {user, owner}
            if others and not (self._separates or shared_uid.allowed(self._options)):
                raise errors.SandboxUnavailable(
                    "this node runs as a plain user, and serves one user of its server: several would share a host uid",
                    hint="run the server as root, or start it with `--share-uid-between-users` (`users.share_uid = true` in "
                    "`settings.toml`)",
                )
            if others:
                programs.find_pasta(self._options.sandbox.pasta)
        self._limits[user] = limits

    def share(self, user: str) -> Share:
        """Return a user's share of the machine; the owner's is the whole."""
        limits = self._limits.get(user)
        return WHOLE if limits is None else Share(limits.weight, limits.workers or self._defaults.workers)

    def serves(self, user: str) -> bool:
        """Return whether the server has asked for this user."""
        return user in self._limits

    def _most(self, user: str, name: str) -> int:
        limits = self._limits.get(user)
        return int(getattr(limits, name, 0) or getattr(self._defaults, name))

    # --- what a user holds ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self, user: str) -> Iterator[None]:
        """Count a connection while the context is open.

        Raises:
            ResourcesUnavailable: the user has as many as they may.
        """
        most = self._most(user, "connections")
        if not self._connections.take(user, 1, most):
            raise errors.ResourcesUnavailable(
                f"this user has {most} connections to the node, the most that it takes",
                hint="make fewer calls at a time, or ask the server's operator for more",
            )
        try:
            yield
        finally:
            self._connections.give_back(user, 1)

    @contextlib.contextmanager
    def shell(self, user: str) -> Iterator[None]:
        """Count a shell while the context is open.

        Raises:
            ResourcesUnavailable: the user has as many as they may.
        """
        most = self._defaults.shells
        if not self._shells.take(user, 1, most):
            raise errors.ResourcesUnavailable(
                f"this user has {most} open shells, the most at a time", hint="end one of them"
            )
        try:
            yield
        finally:
            self._shells.give_back(user, 1)

    @contextlib.contextmanager
    def request_bytes(self, user: str, size: int) -> Iterator[None]:
        """Account for the memory of a request for a lease while the context is open.

        Raises:
            ResourcesUnavailable: the user's requests hold as much as they may.
        """
        most = self._most(user, "request_bytes")
        if not self._bytes.take(user, size, most):
            raise errors.ResourcesUnavailable(
                f"the node holds {most >> 20} MiB of requests of this user, the most that it takes",
                hint="make fewer calls at a time, or put large values of `env` into a file below `/data`",
            )
        try:
            yield
        finally:
            self._bytes.give_back(user, size)

    @contextlib.asynccontextmanager
    async def storage(self, user: str) -> AsyncIterator[None]:
        """Count a storage peer while the context is open.

        Raises:
            ResourcesUnavailable: the user has as many as they may for `PLACE_SECONDS`.
        """
        most, deadline = self._most(user, "storage_clients"), asyncio.get_running_loop().time() + PLACE_SECONDS
        while not self._storage.take(user, 1, most):
            if asyncio.get_running_loop().time() > deadline:
                raise errors.ResourcesUnavailable(
                    f"this user works on `/data` through {most} clients, the most at a time",
                    hint="sync fewer directories at a time, or ask the server's operator for more",
                )
            await asyncio.sleep(0.05)
        try:
            yield
        finally:
            self._storage.give_back(user, 1)

    def builds(self, user: str) -> asyncio.Semaphore:
        """Return the turns of a user's builds."""
        if user not in self._builds:
            self._builds[user] = asyncio.Semaphore(self._most(user, "builds"))
        return self._builds[user]

    def facts(self) -> dict[str, Any]:
        """Return who is served and with which share, for an administrator."""
        return {user: {"weight": limits.weight, "workers": limits.workers} for user, limits in self._limits.items()}
