"""Logging in to the page at an issuer: a code, questions until the person has confirmed, then a session."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from atoll import settings
from atoll.server.accounts import part, rows
from atoll.server.app import make_app
from atoll.server.login.device import Begun
from atoll.server.node import Node
from atoll.server.pages import install
from atoll.server.state import ServerState

SITE = {"sec-fetch-site": "same-origin", "origin": "http://testserver"}


class Logins:
    """A login that is confirmed at the second question."""

    def __init__(self, state: ServerState) -> None:
        self._accounts = state.parts["accounts"]
        self.asked: list[str] = []

    async def begin(self, _address: str, alias: str) -> tuple[str, Begun]:
        """Begin it."""
        page = "https://id.example/device"
        return "token-of-login", Begun("code", "ABCD-<b>", page, "", 5.0, 0.0, 99.0, (), alias)

    async def poll(self, token: str, _address: str) -> Any:
        """Return the key at the second question."""
        self.asked.append(token)
        if len(self.asked) < 2:
            return 5.0

        def key(connection: Any) -> Any:
            user = rows.add_user(connection, "carol")
            return rows.add_key(connection, self._accounts.pepper, user, scope="ADMIN")

        return await self._accounts.database.run(key)


def test_a_login_at_an_issuer(tmp_path: Path) -> None:
    """The token of the login stays in a cookie; forms need theirs; the session begins when the person has confirmed."""
    tmp_path.chmod(0o700)
    state = ServerState(Node(settings.load(tmp_path)))
    part.install(state)
    install.install(state)
    logins = state.parts["logins"] = Logins(state)
    state.parts["issuer_name"] = "https://id.example"
    with TestClient(make_app(state), follow_redirects=False, headers=SITE) as client:
        page = client.get("/login").text
        assert "Continue with https://id.example" in page
        found = re.search(r'name="token" value="([0-9a-f]+)"', page)
        assert found is not None
        fields = {"token": found[1], "next": "/keys"}
        assert client.post("/login/oidc", data={"token": "x"}).status_code == 403
        begun = client.post("/login/oidc", data=fields)
        assert "ABCD-&lt;b&gt;" in begun.text
        assert 'href="https://id.example/device"' in begun.text
        assert "token-of-login" not in begun.text
        hostile = {**fields, "code": "ABCD", "address": "javascript:alert(1)"}
        waits = client.post("/login/oidc/check", data=hostile)
        assert (waits.status_code, "javascript:" in waits.text) == (200, False)
        done = client.post("/login/oidc/check", data=fields)
        assert (done.status_code, done.headers["location"]) == (303, "/keys")
        assert logins.asked == ["token-of-login"] * 2
        assert "carol" in client.get("/keys").text
