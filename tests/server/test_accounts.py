"""Users, keys and authentication of a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atoll.server.accounts.bodies import NewUser

from ..waiting import PATIENCE_SECONDS
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


def test_the_command_line_logs_in_and_handles_keys(server: Server, tmp_path: Path) -> None:
    """A key on the standard input logs in; `key` and `users` then ask the server with it."""
    own = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "ATOLL_HOME": str(tmp_path / "home")}

    def atoll(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return run_atoll(arguments, own, typed)

    done = atoll("auth", "login", "--host", server.url, "--ca-file", str(server.ca_file), typed=":".join(server.key))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert server.key[1] not in done.stderr
    assert "operator at https://" in atoll("auth", "whoami").stdout
    made = atoll("key", "generate", "--scope", "API", "--alias", "two words").stdout
    key_id, secret = re.fullmatch(r"ATOLL_KEY_ID='(\w+)'\nATOLL_KEY_SECRET='(\S+)'\n", made).groups()  # type: ignore[union-attr]
    listed = json.loads(atoll("key", "list", "--json").stdout)
    assert [one["alias"] for one in listed if one["id"] == key_id] == ["two words"]
    assert secret not in json.dumps(listed)
    variables = {**own, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret}
    assert f"key {key_id}, scope API" in run_atoll(["auth", "whoami"], variables).stdout
    refused = run_atoll(["users", "list"], variables)
    assert (refused.returncode, "insufficient permissions" in refused.stderr) == (1, True)
    assert atoll("key", "revoke", key_id).returncode == 0
    assert "the key is not valid" in run_atoll(["auth", "whoami"], variables).stderr
    assert atoll("users", "add", "bob", "--no-key", "--workers", "3").returncode == 0
    (bob,) = [user for user in json.loads(atoll("users", "list", "--json").stdout) if user["name"] == "bob"]
    assert (bob["workers"], bob["operator"]) == (3, False)
    assert atoll("users", "set-quota", "bob", "--volume", "10GiB", "--workers", "0").stdout == "bob: volume 10.0 GiB\n"
    assert atoll("users", "remove", "bob").returncode == 2
    assert bob["id"] in atoll("users", "remove", "bob", "--yes").stderr
    assert atoll("auth", "logout").returncode == 0
    assert "not logged in" in atoll("auth", "whoami").stderr


def run_atoll(arguments: Sequence[str], variables: dict[str, str], typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line with nothing of the test's own environment that names a server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "FAL_"))}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())", *arguments],
        env=environment | variables,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
