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
    """Return the credentials of a request: `Key ID:SECRET`, `Basic ID:SECRET` as plain text, a pair of headers, or a pair of
    query parameters; `fal_jwt_token` in the query, or `Bearer`, has a token.
    """
    headers, query = connection.headers, connection.query_params
    if "x-fal-key-id" in headers:
        return Given(f"Key {headers['x-fal-key-id']}:{headers.get('x-fal-key-secret', '')}")
    if given := ", ".join(headers.getlist("authorization")):
        kind, _, rest = given.partition(" ")
        if kind.lower() == "bearer":
            return Given(token=rest.strip())
        return Given(f"Key {rest}" if kind.lower() == "basic" and ":" in rest else given)
    if "fal_key_id" in query:
        return Given(f"Key {query['fal_key_id']}:{query.get('fal_key_secret', '')}")
    return Given(token=query.get("fal_jwt_token", ""))
