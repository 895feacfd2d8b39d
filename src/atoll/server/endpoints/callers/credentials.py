"""Credentials of a request for an endpoint, in any of the forms that callers have used.

The page's cookie is none of them: another site's page could call in the name of its reader.
"""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import HTTPConnection


class Given(NamedTuple):
    """Credentials: a header `Authorization` with a key, or a token; both are empty for none."""

    header: str = ""
    token: str = ""


def authorization_of(connection: HTTPConnection) -> Given:
    """Return the credentials of a request: `Key ID:SECRET`, or `Basic` or `Bearer` with such a pair as plain text, a pair of
    headers, or a pair of query parameters; `fal_jwt_token` in the query, or `Bearer`, has a token.

    Clients of other services send what they call an API key as `Bearer`, the `openai` package for one.
    """
    headers, query = connection.headers, connection.query_params
    if "x-fal-key-id" in headers:
        return Given(f"Key {headers['x-fal-key-id']}:{headers.get('x-fal-key-secret', '')}")
    if given := ", ".join(headers.getlist("authorization")):
        kind, _, rest = given.partition(" ")
        kind, is_pair = kind.lower(), ":" in rest  # no token has a colon, no encoded pair either
        if kind == "bearer" and not is_pair:
            return Given(token=rest.strip())
        return Given(f"Key {rest.strip()}" if kind in ("basic", "bearer") and is_pair else given)
    if "fal_key_id" in query:
        return Given(f"Key {query['fal_key_id']}:{query.get('fal_key_secret', '')}")
    return Given(token=query.get("fal_jwt_token", ""))
