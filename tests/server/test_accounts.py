"""Users, keys and authentication of a real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atoll.server.accounts.bodies import NewUser

from .process import Server


def headers(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Key {key['id']}:{key['secret']}", "Atoll-Protocol": "1"}


def post(server: Server, path: str, body: Any, key: dict[str, str], method: str = "POST") -> tuple[int, Any]:
    return server.ask(method, path, json.dumps(body).encode(), key)


@pytest.fixture(scope="module")
def ada(server: Server) -> dict[str, str]:
    """The headers of a user without rights of an operator."""
    added = server.add_user(NewUser("ada"))
    assert added.key is not None
    return {"Authorization": f"Key {added.key.id}:{added.key.secret}", "Atoll-Protocol": "1"}


def test_a_key_names_its_user(server: Server, ada: dict[str, str]) -> None:
    """`/v1/whoami` tells user, key and rights; the user's id is not made of the name."""
    status, found = server.ask("GET", "/v1/whoami", headers=ada)
    assert (status, found["name"], found["scope"], found["operator"]) == (200, "ada", "ADMIN", False)
    assert "ada" not in found["user"]
    assert server.ask("GET", "/v1/whoami")[1]["operator"] is True


def test_keys_are_made_listed_and_revoked_at_once(server: Server, ada: dict[str, str]) -> None:
    """A new key works until it is revoked, and its secret is in no list."""
    status, made = post(server, "/v1/keys", {"scope": "API", "alias": "laptop"}, ada)
    assert status == 201
    assert server.ask("GET", "/v1/whoami", headers=headers(made))[1]["scope"] == "API"
    _, listed = server.ask("GET", "/v1/keys", headers=ada)
    assert made["secret"] not in json.dumps(listed)
    assert [(one["id"], one["alias"]) for one in listed["keys"]][-1] == (made["id"], "laptop")
    assert server.ask("DELETE", f"/v1/keys/{made['id']}", headers=ada)[0] == 200
    status, answer = server.ask("GET", "/v1/whoami", headers=headers(made))
    assert (status, answer["error"]["code"]) == (401, "not_authorized")
