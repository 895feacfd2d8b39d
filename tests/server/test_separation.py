"""Means to keep users apart that a server's machine lacks: its operator is told, and its users are told to tell one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from atoll import errors, settings
from atoll.sandbox import programs
from atoll.server.accounts import separation

from ..conftest import own_home
from .certificates import Authority
from .process import Server

INSTALL = "sudo apt install passt"


@pytest.fixture
def no_pasta(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> settings.Settings:
    """A machine without pasta, whose packages are Debian's: the options of a state directory there."""
    monkeypatch.setattr(programs, "_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    return settings.load(tmp_path)


def test_a_server_of_several_users_refuses_and_names_the_package(no_pasta: settings.Settings) -> None:
    """One user is served without pasta; two are not, and the package is named."""
    separation.check(no_pasta, 1)
    with pytest.raises(errors.SandboxUnavailable, match="2 users need networks of their own: `pasta`") as caught:
        separation.check(no_pasta, 2)
    assert INSTALL in caught.value.hint


@pytest.mark.parametrize(
    ("count", "lost"), [(0, "a second user is not served"), (2, "2 users, and the server serves one")]
)
def test_warnings_name_the_loss_and_the_package(no_pasta: settings.Settings, count: int, lost: str) -> None:
    """Functions without a network, or a user who is not served: each with the command that mends it."""
    (line,) = [line for line in separation.warnings(no_pasta, count) if "pasta" in line]
    assert lost in line
    assert INSTALL in line


def test_one_user_who_shares_the_network_is_not_warned_of(no_pasta: settings.Settings) -> None:
    """`users.share_network` needs no pasta."""
    (no_pasta.home / "settings.toml").write_text("[users]\nshare_network = true\n")
    assert separation.warnings(settings.load(no_pasta.home), 1) == []


def test_operator_and_user_are_told_what_the_machine_lacks() -> None:
    """The start and `users add` warn; the user is told to tell the operator, whose log has the cause; no start after it."""
    with own_home() as home, tempfile.TemporaryDirectory(prefix="atoll-tls-") as directory:
        (home.path / "settings.toml").write_text(
            '[sandbox]\npasta = "/nowhere"\n[users]\nshare_uid = true\n'  # a plain user's node is refused for pasta alone
        )
        server = Server(home, Authority(Path(directory)), tls=False)
        try:
            server.start()
            assert any("/nowhere" in line and "second user" in line for line in _warnings(server.log.read_text()))
            assert server.ask("POST", "/v1/requests/status", b"{}")[0] == 200
            done = home.atoll("users", "add", "bob", "--json")
            added = json.loads(done.stdout)
            assert ["/nowhere" in line for line in added["warnings"]] == [True]
            (line,) = _warnings(home.atoll("users", "add", "cid").stderr)
            assert "/nowhere" in line
            assert "3 users" in line
            key = {"Authorization": f"Key {added['key']['id']}:{added['key']['secret']}", "Atoll-Protocol": "1"}
            status, found = server.ask("POST", "/v1/requests/status", b"{}", key)
            assert (status, found["error"]["code"]) == (503, "sandbox_unavailable")
            assert found["error"]["message"].startswith("the server's machine is not ready: ")
            assert found["error"]["hint"].startswith("tell the server's operator: ")
            events = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
            (event,) = [event for event in events if event["event"] == "machine_not_ready"]
            assert "/nowhere" in event["cause"]
            assert any(event["event"] == "users_not_kept_apart" and "/nowhere" in event["cause"] for event in events)
            assert server.end() == 0
            refused = home.atoll("server", "--listen", "127.0.0.1:0", check=False)
            assert refused.returncode == 1
            assert "3 users need networks of their own" in refused.stderr
        finally:
            server.process.close()


def _warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: ")]
