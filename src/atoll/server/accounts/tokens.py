"""Keys and cookies as the server knows them: keyed digests, never the secrets themselves.

Theory of operation. Secrets are random, of 256 bits, so one fast hash is enough: nobody can guess them, whatever a guess
costs. The hash is keyed by the pepper, a file beside the database, so a copy of the database alone proves nothing.
A key's id ends in a tag that only the pepper's owner can make: ids that were made up are refused without a question to
the database.
"""

from __future__ import annotations

import hmac
import re
import secrets
from pathlib import Path

from atoll import errors
from atoll.blake2 import blake2b
from atoll.server.accounts import secret_file
from atoll.server.database.database import DIRECTORY

PEPPER_FILE = "pepper"
PEPPER_BYTES = 32
SECRET_PREFIX = "atoll_"  # noqa: S105 - scanners of repositories find leaked keys by it
_TAG = 8
_KEY_ID = re.compile(r"[0-9a-f]{24}[0-9a-f]{8}")
_SECRET = re.compile(r"[\x21-\x7e]{16,200}")
MOST_TOKEN = 400
"""The most characters of `ID:SECRET`."""


class Pepper:
    """The key of the server's digests.

    Args:
        value: its bytes; they appear in no representation.
    """

    def __init__(self, value: bytes) -> None:
        self._value = value

    def digest(self, purpose: bytes, secret: str) -> bytes:
        """Return the digest to keep in place of a secret.

        Args:
            purpose: at most 16 bytes: digests of one purpose are none of another.
        """
        return blake2b(secret.encode("utf-8", "replace"), digest_size=32, key=self._value, person=purpose).digest()

    def new_key_id(self) -> str:
        """Return a fresh key id with its tag."""
        drawn = secrets.token_hex(12)
        return drawn + self._tag(drawn)

    def made(self, key_id: str) -> bool:
        """Return whether an id is one that this server has made."""
        return bool(_KEY_ID.fullmatch(key_id)) and hmac.compare_digest(self._tag(key_id[:-_TAG]), key_id[-_TAG:])

    def _tag(self, drawn: str) -> str:
        return self.digest(b"atoll key id", drawn).hex()[:_TAG]


def new_secret() -> str:
    """Return a fresh secret of 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def read_key(authorization: str) -> tuple[str, str] | None:
    """Return id and secret of the header `Authorization: Key ID:SECRET`; None where it has another form.

    Bounded and ASCII alone: no other text comes further than here.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "key" or len(token) > MOST_TOKEN:
        return None
    key_id, _, secret = token.partition(":")
    return (key_id, secret) if _KEY_ID.fullmatch(key_id) and _SECRET.fullmatch(secret) else None


def read_pepper(home: Path, *, make: bool = True) -> Pepper:
    """Return the state directory's pepper.

    Args:
        make: whether one is made where there is none.

    Raises:
        StateUntrusted: another user can change it.
        StateUnusable: others can read it, it is no pepper, or it is missing and not to be made.
    """
    path = home / DIRECTORY / PEPPER_FILE
    if not make and not path.exists():
        raise errors.StateUnusable(
            f"there is no `{path}`, so no key would be valid", hint="name the server's state directory by `--home`"
        )
    lost = "restore it from a backup: without it no key is valid"
    return Pepper(secret_file.read(path, PEPPER_BYTES, lost))
