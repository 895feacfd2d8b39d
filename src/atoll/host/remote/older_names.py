"""Names of `fal_serverless` for a server and its key."""

from __future__ import annotations

from typing import Any, NamedTuple

from atoll.host.remote.remote_host import Host, cloud


class FalServerlessKeyCredentials(NamedTuple):
    """A key of a server."""

    key_id: str
    key_secret: str

    def __repr__(self) -> str:  # the secret is in no traceback and no log
        return f"FalServerlessKeyCredentials({self.key_id!r}, …)"


CloudKeyCredentials = FalServerlessKeyCredentials


class FalServerlessHost(Host):
    """A server, by its address and a key.

    Args:
        url: `HOST:PORT` or an address; by default the server that the user is logged in to.
        credentials: the key; by default as `Host`.
    """

    def __init__(self, url: str = "", credentials: FalServerlessKeyCredentials | None = None, **more: str) -> None:
        key = {} if credentials is None else {"key_id": credentials.key_id, "key_secret": credentials.key_secret}
        super().__init__(url, **{**key, **more})


def host_with(host: Any, credentials: Any) -> Any:
    """Return the host of a function with `credentials`: the server, with this key.

    Raises:
        TypeError: they are no key, or the host is no server.
    """
    if not isinstance(credentials, FalServerlessKeyCredentials):
        raise TypeError(f"`credentials` must be `FalServerlessKeyCredentials(key_id, key_secret)`, is {credentials!r}")
    if host is not None and not isinstance(host, Host):
        raise TypeError(f"`credentials` are for a server, and `host` is {host!r}")
    return (host or cloud).with_key(credentials.key_id, credentials.key_secret)
