"""Credentials of nodes: tokens to join, and `Node ID:SECRET` afterwards; none of them opens anything of a user's.

Theory of operation. Purposes of the digests differ from those of keys, and so do the schemes of the header: a secret of
one kind, sent as one of another, is not found. A node's id ends in a tag, as a key's does, under a purpose of its own.
"""

from __future__ import annotations

import hmac
import re
import secrets

from atoll import errors
from atoll.server.accounts.tokens import MOST_TOKEN, Pepper

TOKEN_PREFIX = "atoll-join-"  # noqa: S105 - scanners of repositories find leaked tokens by it
SECRET_PREFIX = "atoll-node-"  # noqa: S105 - as above
SCHEME = "node"
TOKEN_PURPOSE, NODE_PURPOSE, _ID_PURPOSE = b"atoll node token", b"atoll node", b"atoll node id"
_TOKEN = re.compile(re.escape(TOKEN_PREFIX) + r"[A-Za-z0-9_-]{20,100}")
_SECRET = re.compile(re.escape(SECRET_PREFIX) + r"[A-Za-z0-9_-]{20,100}")
_ID = re.compile(r"node-[0-9a-f]{24}")
_TAG = 8


def new_token() -> str:
    """Return a fresh token to join, of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_digest(pepper: Pepper, token: str) -> bytes:
    """Return the digest to keep in place of a token.

    Raises:
        NotAuthorized: it has not the form of one.
    """
    if len(token) > MOST_TOKEN or not _TOKEN.fullmatch(token):
        raise refused("the token to join is not valid")
    return pepper.digest(TOKEN_PURPOSE, token)


def new_secret() -> str:
    """Return a fresh secret of a node, of 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def node_digest(pepper: Pepper, secret: str) -> bytes:
    """Return the digest to keep in place of a node's secret."""
    return pepper.digest(NODE_PURPOSE, secret)


def new_node_id(pepper: Pepper) -> str:
    """Return a fresh id of a node with its tag."""
    drawn = f"node-{secrets.token_hex(8)}"
    return drawn + _tag(pepper, drawn)


def made(pepper: Pepper, node_id: str) -> bool:
    """Return whether an id is one that this server has made."""
    return bool(_ID.fullmatch(node_id)) and hmac.compare_digest(_tag(pepper, node_id[:-_TAG]), node_id[-_TAG:])


def _tag(pepper: Pepper, drawn: str) -> str:
    return pepper.digest(_ID_PURPOSE, drawn).hex()[:_TAG]


def read_header(authorization: str) -> tuple[str, str] | None:
    """Return id and secret of the header `Authorization: Node ID:SECRET`; None where it has another form."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != SCHEME or len(given) > MOST_TOKEN:
        return None
    node_id, _, secret = given.partition(":")
    return (node_id, secret) if _ID.fullmatch(node_id) and _SECRET.fullmatch(secret) else None


def refused(reason: str) -> errors.NotAuthorized:
    """Return the error for a machine that may not join."""
    return errors.NotAuthorized(
        reason, hint="make a new token on the server: `atoll nodes token`, and join with it", status=401
    )
