"""Certificates of requests, by their digests.

A request names its certificates by a digest, which is all that an environment's key needs. Their text comes beside the
request, and is kept for the builds of later requests that name the same.
"""

from __future__ import annotations

from atoll.blake2 import blake2b
from atoll.errors import EnvironmentBuildError

MAX_BYTES = 512 << 10
"""Of the certificates of one request: a machine's own are about 300 KiB."""

KEPT = 16
_DIGITS = frozenset("0123456789abcdef")


def digest_of(text: str) -> str:
    """Return the name of these certificates."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


class Certificates:
    """The certificates of the last requests."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and digest in self._texts

    def learn(self, text: str) -> None:
        """Keep certificates, in place of those that were learned first."""
        digest = digest_of(text)
        self._texts[digest] = self._texts.pop(digest, text)
        while len(self._texts) > KEPT:
            del self._texts[next(iter(self._texts))]

    def text(self, digest: str) -> str:
        """Return the certificates of this name, empty where they are not here.

        Raises:
            EnvironmentBuildError: it is no name of certificates.
        """
        if len(digest) != 32 or not _DIGITS.issuperset(digest):
            raise EnvironmentBuildError("a request names its certificates by no digest", hint="upgrade the older side")
        return self._texts.get(digest, "")
