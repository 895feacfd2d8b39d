"""The kept part of a request beside its body: method, target, and the headers that its function gets."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from atoll.server.endpoints.passing import HOP, Asked, is_functions, is_ours, without_credentials_in

_DROPPED = HOP | {b"cookie", b"idempotency-key"}


class Head(msgspec.Struct, frozen=True):
    """Method, target and headers of a request.

    Args:
        target: path and query below the endpoint's address.
        headers: names in lower case; of a private endpoint without credentials.
        client: the address of the client.
        prefix: the endpoint's own path.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    client: str
    scheme: str
    prefix: str
    public: bool = False

    def asked(self, request: str, caller: str) -> Asked:
        """Return the request to a runner.

        Args:
            request: its id.
        """
        return Asked(
            self.method,
            self.target.encode("latin-1"),
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers],
            request,
            caller,
            self.client,
            self.scheme,
            self.prefix.encode("latin-1"),
            is_public=self.public,
        )

    def cancellation(self, request: str, caller: str) -> Asked:
        """Return the request that tells the function of the cancellation."""
        path, _, _ = self.target.partition("?")
        other = msgspec.structs.replace(self, method="POST", target=path.rstrip("/") + "/cancel")
        return other.asked(request, caller)


def kept(headers: Iterable[tuple[bytes, bytes]], *, public: bool) -> list[tuple[str, str]]:
    """Return the headers that are kept: no credentials, but those for a function that asks for its own."""
    return [
        (name.decode("latin-1"), (without_credentials_in(value) if name == b"referer" else value).decode("latin-1"))
        for name, value in headers
        if name not in _DROPPED and not is_ours(name) and (name != b"authorization" or (public and is_functions(value)))
    ]
