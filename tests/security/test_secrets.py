"""Secrets against those who look for them: other users, other processes, and readers of the state directory."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import LocalHost, errors, isolated
from atoll.daemon.secrets.store import SecretStore
from atoll.settings import SecretsSettings, Settings
from tests.conftest import Home, own_home
from tests.e2e.test_users import Users, on, users  # noqa: F401 - a fixture
from tests.waiting import until

VALUE = f"hunter2-{os.urandom(12).hex()}"


def token() -> str | None:
    return os.environ.get("TOKEN")


def wait(path: str) -> str:
    """Write a file into the volume, and wait until it is gone."""
    import time
    from pathlib import Path

    Path(path).write_text("")
    while Path(path).exists():
        time.sleep(0.01)
    return os.environ["TOKEN"][:7]


def processes_with(text: str) -> list[str]:
    """Return the files of /proc in which a text can be read that every process's owner, and root, can read."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if text.encode() in Path("/proc", pid, name).read_bytes():
                    found.append(f"/proc/{pid}/{name}")
    return found


def files_with(directory: Path, text: str) -> list[Path]:
    """Return the files below a directory that have a text, as it is, as JSON, or in base64."""
    forms = [text.encode(), base64.b64encode(text.encode())[:16], text.encode().hex().encode()]
    found = []
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and any(form in path.read_bytes() for form in forms):
                found.append(path)
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with own_home() as found:
        yield found


@pytest.fixture
def host(home: Home) -> Iterator[LocalHost]:
    made = LocalHost(home.path)
    made.request("secrets.set", {"name": "TOKEN", "value": VALUE})
    yield made
    made.close()


def test_a_value_is_in_no_file_and_no_process_list(home: Home, host: LocalHost) -> None:
    """Neither while calls run, attached and detached, nor after: logs, records, spools, status, `/proc`."""
    value = f"hunter2-{os.urandom(12).hex()}"  # no name of this program, all of which travel with a detached call
    host.request("secrets.set", {"name": "TOKEN", "value": value})
    f = isolated(host=host, network="none")(wait)
    attached, detached = f.submit("/data/attached"), f.spawn("/data/detached")
    data = home.path / "volumes" / "local" / "data"
    until(lambda: (data / "attached").exists() and (data / "detached").exists())
    assert processes_with(value) == []
    assert files_with(home.path, value) == []
    said = json.dumps([host.request("status", {}), host.request("calls.list", {})])
    (data / "attached").unlink()
    (data / "detached").unlink()
    assert (attached.result(60), detached.result(60)) == ("hunter2", "hunter2")
    until(lambda: host.request("calls.list", {})["calls"])
    said += json.dumps([host.request("status", {}), host.request("calls.list", {}), host.request("secrets.list", {})])
    said += home.atoll("logs").stdout + home.atoll("status", "--json").stdout
    assert value not in said
    assert files_with(home.path, value) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "PATH", "value": VALUE},
        {"name": "TOKEN", "value": f"{VALUE}\0"},
        {"name": "TOKEN", "value": [VALUE]},
        {"name": "TOKEN", "value": VALUE * 5000},
        {"name": "TOKEN", "value": f"{VALUE}\ud800"},
        {"name": f"{VALUE}-", "value": "x"},
        {"value": VALUE},
    ],
)
def test_an_error_does_not_show_the_value(home: Home, host: LocalHost, arguments: dict[str, Any]) -> None:
    """A refused secret is named by its fault alone, in the error and in the log."""
    with pytest.raises(errors.AtollError) as caught:
        host.request("secrets.set", arguments)
    assert VALUE not in f"{caught.value!s} {caught.value.details}"
    assert VALUE not in (home.path / "logs" / "daemon.log").read_text()


def test_users_have_secrets_of_their_own(users: Users) -> None:  # noqa: F811
    """Another user's calls, lists and changes do not reach them; nobody but the owner turns the key."""
    users.ann.request("secrets.set", {"name": "TOKEN", "value": VALUE})
    assert on(users.bob, token)() is None
    assert on(users.ann, token)() == VALUE
    assert users.bob.request("secrets.list", {}) == {"secrets": []}
    with pytest.raises(errors.SecretUnknown):
        users.bob.request("secrets.delete", {"name": "TOKEN"})
    with pytest.raises(errors.SecretUnknown):
        on(users.bob, token, secrets=["TOKEN"])()
    for name in ("secrets.rotate", "secrets.remove"):
        with pytest.raises(errors.ResourcesUnavailable, match="administrators"):
            users.bob.request(name, {"user": "ann"})
    assert on(users.ann, token)() == VALUE


def change(from_inside: LocalHost, name: str) -> Any:
    return from_inside.request(name, {"name": "TOKEN", "value": "x"})


@pytest.mark.parametrize("name", ["secrets.list", "secrets.set", "secrets.delete", "secrets.rotate"])
def test_functions_do_not_administer_secrets(host: LocalHost, name: str) -> None:
    """Code in a sandbox has the values of its call, and can neither list nor change those that there are."""
    with pytest.raises(errors.ResourcesUnavailable, match="cannot control"):
        isolated(host=host, network="none")(change)(host, name)


def made(path: Path) -> SecretStore:
    return SecretStore(lambda: Settings(path, secrets=SecretsSettings()))


def test_a_value_that_was_moved_or_changed_does_not_decrypt(tmp_path: Path) -> None:
    """Another user's file, another name, a changed byte: each is refused, and the error has no value."""
    kept = made(tmp_path)
    kept.set("ann", "TOKEN", VALUE)
    file = tmp_path / "secrets" / "ann.json"
    original = file.read_text()
    (tmp_path / "secrets" / "bob.json").write_text(original)
    moved, changed = json.loads(original), json.loads(original)
    moved["secrets"]["OTHER"] = moved["secrets"].pop("TOKEN")
    cipher = bytearray(base64.b64decode(changed["secrets"]["TOKEN"]["value"]))
    cipher[0] ^= 1
    changed["secrets"]["TOKEN"]["value"] = base64.b64encode(cipher).decode()
    for user, text in (("bob", None), ("ann", json.dumps(moved)), ("ann", json.dumps(changed)), ("ann", "{")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(errors.StateUnusable) as caught:
            made(tmp_path).values(user)
        assert VALUE not in str(caught.value)
    with pytest.raises(ValueError, match="id"):
        kept.values("../ann")


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """So is a symlink in its place, one with junk, and a missing one: a new key would open nothing."""
    made(tmp_path).set("ann", "TOKEN", VALUE)
    key = tmp_path / "secrets" / "key"
    content = key.read_text()
    key.chmod(0o640)
    with pytest.raises(errors.StateUnusable, match="open to others"):
        made(tmp_path).values("ann")
    key.chmod(0o600)
    key.write_text(content[:-9])
    with pytest.raises(errors.StateUnusable, match="no key") as caught:
        made(tmp_path).values("ann")
    assert content.split()[1][:20] not in str(caught.value)
    key.rename(tmp_path / "other")
    key.symlink_to(tmp_path / "other")
    with pytest.raises(errors.StateUnusable, match="cannot read"):
        made(tmp_path).values("ann")
    key.unlink()
    with pytest.raises(errors.StateUnusable, match="is gone"):
        made(tmp_path).set("ann", "OTHER", VALUE)
    assert made(tmp_path).list("ann")[0]["name"] == "TOKEN"
