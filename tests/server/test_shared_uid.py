"""Several users of a plain user's server: refused, unless it was started with the consent to a shared host uid."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from atoll.server.accounts.bodies import AddedUser, NewUser

from ..conftest import find_tool, own_home
from .certificates import Authority
from .process import Server

FLAG = "--share-uid-between-users"


def headers(by: AddedUser) -> dict[str, str]:
    assert by.key is not None
    return {"Authorization": f"Key {by.key.id}:{by.key.secret}", "Atoll-Protocol": "1"}


def status(server: Server, by: AddedUser) -> tuple[int, Any]:
    return server.ask("POST", "/v1/requests/status", b"{}", headers(by))


@pytest.mark.skipif(find_tool("pasta") is None, reason="needs `pasta`")
@pytest.mark.as_user
def test_several_users_need_a_host_uid_each_or_the_consent(tmp_path: Path) -> None:
    """A plain user's server serves both while it has the flag, also if its node is older; root's needs none."""
    plain = os.geteuid() != 0
    with own_home() as home, tempfile.TemporaryDirectory(prefix="atoll-tls-") as directory:
        server = Server(home, Authority(Path(directory)), tls=False)
        try:
            server.start()
            ann, bob = (server.add_user(NewUser(name)) for name in ("ann", "bob"))
            assert status(server, ann)[0] == 200
            assert server.ask("PUT", "/v1/files/note", b"x", headers(ann))[0] == 201
            code, found = status(server, bob)
            if plain:
                assert (code, found["error"]["code"]) == (503, "sandbox_unavailable"), found
                assert FLAG in found["error"]["hint"]
            else:
                assert code == 200
            for options, served in (((FLAG,), True), ((), not plain)):
                assert server.end() == 0
                server.options = options
                server.start()
                assert {status(server, one)[0] == 200 for one in (ann, bob)} == {served}
                warned = [line for line in server.log.read_text().splitlines() if line.startswith("warning: ")]
                assert any(("one host uid" if options else "2 users, and") in line for line in warned) == plain
        finally:
            server.process.close()
