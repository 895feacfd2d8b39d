"""The accounts that a command is about: those of a server that is asked with a key, or of this machine's directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from atoll import credentials, errors, settings
from atoll.cli.accounts import client
from atoll.cli.accounts.client import ask
from atoll.cli.programs.program import TargetError
from atoll.credentials import Credentials
from atoll.host.local import LocalHost
from atoll.terminal_text import printable

LOOK_SECONDS = 1.0
"""Seconds in which a server has noticed that keys have ended, and has told their programs, before the node ends calls."""


class Place(Protocol):
    """Users and keys, wherever they are; values are as the routes of a server have them."""

    name: str
    """A server's address, or the state directory and what serves it."""

    def list_users(self) -> list[dict[str, Any]]: ...

    def add_user(self, asked: dict[str, Any]) -> dict[str, Any]: ...

    def remove_user(self, name: str, *, keep: bool) -> dict[str, Any]: ...

    def set_quota(self, name: str, quotas: dict[str, Any]) -> dict[str, Any]: ...

    def list_keys(self, user: str) -> list[dict[str, Any]]: ...

    def make_key(self, user: str, asked: dict[str, Any]) -> dict[str, Any]: ...

    def revoke_key(self, key: str) -> dict[str, Any]: ...


class Remote:
    """The accounts of a server, asked with the user's key."""

    def __init__(self, server: Credentials) -> None:
        self.server = server
        self.name = server.url

    def list_users(self) -> list[dict[str, Any]]:
        return list(ask(self.server, "GET", "/v1/users")["users"])

    def add_user(self, asked: dict[str, Any]) -> dict[str, Any]:
        return ask(self.server, "POST", "/v1/users", asked)

    def remove_user(self, name: str, *, keep: bool) -> dict[str, Any]:
        volume = "keep" if keep else "delete"
        return ask(self.server, "DELETE", f"/v1/users/{client.part(name)}?volume={volume}")

    def set_quota(self, name: str, quotas: dict[str, Any]) -> dict[str, Any]:
        return ask(self.server, "PUT", f"/v1/users/{client.part(name)}/quota", quotas)

    def list_keys(self, user: str) -> list[dict[str, Any]]:
        path = f"/v1/users/{client.part(user)}/keys" if user else "/v1/keys"
        return list(ask(self.server, "GET", path)["keys"])

    def make_key(self, user: str, asked: dict[str, Any]) -> dict[str, Any]:
        if user:  # who has it could act as this user
            raise errors.CallerError(
                "keys of other users are made on the server's machine", hint="leave `--user` out for your own keys"
            )
        return ask(self.server, "POST", "/v1/keys", asked)

    def revoke_key(self, key: str) -> dict[str, Any]:
        return ask(self.server, "DELETE", f"/v1/keys/{client.part(key)}")


class Here:
    """The accounts of this machine's state directory, with the rights of its owner.

    Args:
        direct: the open accounts; `atoll.server` is imported only where it is needed.
        home: the state directory.
        name: of the state directory.
    """

    def __init__(self, direct: Any, home: Path, name: str) -> None:
        self._direct = direct
        self._node = LocalHost(home)
        self.name = name

    def list_users(self) -> list[dict[str, Any]]:
        return list(_data(self._direct.list_users())["users"])

    def add_user(self, asked: dict[str, Any]) -> dict[str, Any]:
        from atoll.server.accounts.bodies import NewUser

        added = self._direct.add_user(NewUser(**asked))
        self._limit(added.user)
        return _data(added)

    def remove_user(self, name: str, *, keep: bool) -> dict[str, Any]:
        gone = self._direct.remove_user(name)
        if (self._node.settings.run_directory / "server.json").exists():
            time.sleep(LOOK_SECONDS)
        kept = self._node.request("users.remove", {"user": gone.id, "keep": keep})["kept"]
        return {**_data(gone), "volume": "kept" if kept else "" if keep else "removed"}

    def set_quota(self, name: str, quotas: dict[str, Any]) -> dict[str, Any]:
        from atoll.server.accounts.bodies import Quotas

        changed = self._direct.set_quota(name, Quotas(**quotas))
        self._limit(changed, always=True)
        return _data(changed)

    def list_keys(self, user: str) -> list[dict[str, Any]]:
        return list(_data(self._direct.list_keys(user))["keys"])

    def make_key(self, user: str, asked: dict[str, Any]) -> dict[str, Any]:
        from atoll.server.accounts.bodies import NewKey

        return _data(self._direct.make_key(user, NewKey(**asked)))

    def revoke_key(self, key: str) -> dict[str, Any]:
        return _data(self._direct.revoke_key(key))

    def _limit(self, user: Any, *, always: bool = False) -> None:
        """Tell the node of a user's quotas."""
        if always or user.volume_bytes or user.volume_files:
            quotas = {"user": user.id, "bytes": user.volume_bytes, "files": user.volume_files}
            self._node.request("quotas.set", quotas)


def _data(value: Any) -> dict[str, Any]:
    from atoll.server.typed import plain

    return plain(value)


def home_of(given: Path | None) -> Path:
    """Return the state directory that a command is about, by its `--home`."""
    return settings.default_home() if given is None else Path(os.path.abspath(given.expanduser()))


def has_accounts(home: Path) -> bool:
    """Return whether a state directory has accounts of a server."""
    return (home / "server" / "pepper").exists()


def check_accounts(home: Path) -> None:
    """Check that a server has run in a state directory.

    Raises:
        StateUnusable: none has, so the directory is probably another one than the server's.
    """
    if not has_accounts(home):
        raise errors.StateUnusable(
            f"no server has run in `{printable(str(home))}`", hint="name the server's state directory by `--home`"
        )


def check_one_place(host: str, home: Path | None) -> None:
    """Refuse an address together with a state directory.

    Raises:
        TargetError: both are given.
    """
    if host and home is not None:
        raise TargetError("`--host` and `--home` do not go together")


@contextlib.contextmanager
def opened(
    host: str, database: str = "", home: Path | None = None, *, here: bool = False, server: bool = False
) -> Iterator[Place]:
    """Open the accounts to use: at the address, else this machine's, else of the server one is logged in to.

    Args:
        host: an address; empty for none.
        database: of this machine's accounts; see `atoll server --database`.
        home: of this machine's accounts; None for the default, unless `host` is given.
        here: this machine's where nothing else is named, which makes them.
        server: a server's in any case: keys are one's own, and the rights of a directory are nobody's.

    Raises:
        NotAuthorized: there is no key for the server.
        HostUnreachable: nothing names one.
        StateUnusable: no server has run in the state directory.
        TargetError: an address and a state directory are given.
    """
    check_one_place(host, home)
    place = home_of(home)
    if home is not None or (not host and not server and (database or has_accounts(place))):
        if not here and not database:
            check_accounts(place)
        with _here(place, database, make=here) as found:
            yield found
        return
    login = credentials.find(host)
    if login is not None:
        yield Remote(login)
        return
    if server and has_accounts(place):
        raise errors.HostUnreachable(
            f"no server is named, and `{printable(str(place))}` has keys of all users",
            hint="say whose: `--user NAME`, or to revoke one `--here`; or run `atoll auth login --host URL`",
        )
    if not here:
        raise errors.HostUnreachable(
            f"no server is named, and none has run in `{printable(str(place))}`",
            hint="run `atoll auth login --host URL`, or give `--host URL`; on the server's machine give `--home`",
        )
    with _here(place, database, make=True) as found:
        yield found


@contextlib.contextmanager
def _here(home: Path, database: str, *, make: bool) -> Iterator[Place]:
    try:
        from atoll.server.accounts.direct import Direct
        from atoll.server.database.address import address_of
    except ImportError as error:
        raise errors.StateUnusable(
            f"a server's accounts need packages that are not installed: {error}", hint="pip install 'atoll[server]'"
        ) from error
    served = _served(home) if has_accounts(home) else "no server has run there yet"
    with Direct(home, address_of(home, database), make=make) as direct:
        yield Here(direct, home, f"`{printable(str(home))}` ({served})")


def _served(home: Path) -> str:
    """Return where the server of a state directory listens."""
    try:
        found = json.loads((home / "run" / "server.json").read_bytes())
        os.kill(int(found["pid"]), 0)  # the file of a server that was killed is still there
        return printable(str(found["url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "no server runs there now"
