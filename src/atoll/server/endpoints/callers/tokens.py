"""Short-lived tokens, with which a browser calls some endpoints and sees no key.

A token is a JSON Web Token of this server's own. The key that asked for it must still be valid: a revoked key's tokens
are worth nothing.
"""

from __future__ import annotations

import base64
import json
import time
from typing import NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from atoll import errors
from atoll.server.accounts.tokens import Pepper

MOST_SECONDS = 3600
MOST_APPS = 50
_PURPOSE = b"atoll app token"
_ALGORITHM = "HS256"


class Claims(NamedTuple):
    """What a token says.

    Args:
        key: the id of the key that asked for it.
        apps: aliases, or `OWNER/ALIAS`, that it is for.
    """

    key: str
    apps: tuple[str, ...]

    def allows(self, owner: str, alias: str) -> bool:
        """Return whether it is for an endpoint."""
        return alias in self.apps or f"{owner}/{alias}" in self.apps


class Tokens:
    """Makes and reads tokens."""

    def __init__(self, pepper: Pepper) -> None:
        self._key = OctKey.import_key(pepper.digest(_PURPOSE, ""))

    def make(self, key: str, apps: tuple[str, ...], seconds: float) -> str:
        """Return a token.

        Raises:
            CallerError: it is for nothing, for too much, or for too long.
        """
        if not key:
            raise errors.CallerError("a session of the page makes no tokens", hint="ask with a key")
        if not 0 < len(apps) <= MOST_APPS or any(not one or len(one) > 130 for one in apps):
            raise errors.CallerError(f"a token is for 1 to {MOST_APPS} endpoints", hint="name their aliases")
        if not 0 < seconds <= MOST_SECONDS:
            raise errors.CallerError(f"a token lasts for 1 to {MOST_SECONDS} seconds", hint="ask for another one later")
        now = int(time.time())
        claims = {"kid": key, "apps": list(apps), "iat": now, "exp": now + int(seconds)}
        return jwt.encode({"alg": _ALGORITHM}, claims, self._key)

    @staticmethod
    def is_one(text: str) -> bool:
        """Return whether a text is a token of a server's by its claims, valid or not."""
        try:
            claims = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "==")) if text.count(".") == 2 else {}
        except (ValueError, RecursionError):
            return False
        return isinstance(claims, dict) and {"kid", "apps"} <= claims.keys()

    def read(self, text: str) -> Claims:
        """Return what a token says.

        Raises:
            NotAuthorized: it is none of this server's, or no longer valid.
        """
        try:
            if len(text) > 8192:
                raise ValueError
            found = jwt.decode(text, self._key, algorithms=[_ALGORITHM]).claims
            if not float(found["exp"]) > time.time():
                raise ValueError
            return Claims(str(found["kid"]), tuple(map(str, found["apps"])))
        except (JoseError, ValueError, KeyError, TypeError, UnicodeError):
            raise errors.NotAuthorized("the token is not valid", hint="ask for another one with a key") from None
