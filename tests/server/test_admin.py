"""Administration: removal of users, quotas at the node, the audit, backups and their restoration."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, settings
from atoll.cli.main import run
from atoll.server.accounts.authentication import look_up
from atoll.server.accounts.bodies import AddedUser, NewUser
from atoll.server.accounts.direct import Direct
from atoll.server.admin import backup
from atoll.server.database.database import Database
from atoll.server.node import Node
from atoll.server.principal import Principal
from tests.conftest import Home, own_home
from tests.waiting import until

from .process import Server

VALUE = "hunter2"


def headers(added: AddedUser) -> dict[str, str]:
    assert added.key is not None
    return {"Authorization": f"Key {added.key.id}:{added.key.secret}", "Atoll-Protocol": "1"}


def ask(server: Server, request: str, by: AddedUser, /, **arguments: Any) -> tuple[int, Any]:
    return server.ask("POST", f"/v1/requests/{request}", json.dumps(arguments).encode(), headers(by))


def node_of(server: Server) -> Node:
    return Node(settings.load(server.home.path))


def test_quotas_of_users_reach_the_node(server: Server) -> None:
    """Set over HTTP or on the machine, a quota counts at once; the user sees it."""
    ann = server.add_user(NewUser("quota-ann"))
    body = json.dumps({"volume_bytes": 10**9, "volume_files": 1000, "workers": 2}).encode()
    assert server.ask("PUT", "/v1/users/quota-ann/quota", body)[0] == 200
    found = ask(server, "volume.quota", ann)[1]
    assert (found["bytes"], found["files"]) == (10**9, 1000)
    server.home.atoll("users", "set-quota", "quota-ann", "--bytes", "2GB", "--files", "1M")
    found = ask(server, "volume.quota", ann)[1]
    assert (found["bytes"], found["files"]) == (2 * 10**9, 10**6)
    assert ask(server, "quotas.set", ann, user=ann.user.id, bytes=0, files=0)[1]["error"]["code"] != ""
    assert ask(server, "volume.quota", ann)[1]["bytes"] == 2 * 10**9


@pytest.mark.parametrize("volume", ["keep", "delete"])
def test_a_removed_user_leaves_nothing_that_runs(server: Server, volume: str) -> None:
    """Keys, secrets and quota end; the volume is put aside or removed; the name may be given again."""
    name = f"gone-{volume}"
    gone = server.add_user(NewUser(name, volume_bytes=10**9))
    user = gone.user.id
    assert ask(server, "secrets.set", gone, name="TOKEN", value=VALUE)[0] == 200
    file = b"x" * 1000
    assert server.ask("PUT", "/v1/files/note.txt", file, headers(gone))[0] in (200, 201, 204)
    directory = server.home.path / "volumes" / user
    assert (directory / "data" / "note.txt").read_bytes() == file
    nothing = {"kind": "virtualenv", "requirements": ["missing-package", "--no-index"]}
    assert ask(server, "environments.lock", gone, environment=nothing)[1]["error"]["code"] == "environment_build"
    assert len(list((server.home.path / "environments" / "users").glob(user))) == 1
    status, answer = server.ask("DELETE", f"/v1/users/{name}?volume={volume}")
    assert (status, answer["volume"]) == (200, "kept" if volume == "keep" else "removed")
    assert ask(server, "secrets.list", gone)[0] == 401
    assert not directory.exists()
    assert not (server.home.path / "secrets" / f"{user}.json").exists()
    assert user not in (server.home.path / "quotas.json").read_text() if volume == "keep" else True
    assert [path for path in server.home.path.rglob(f"{user}*") if "removed" not in path.parts] == []
    kept = list((server.home.path / "removed").glob(f"{user}-*"))
    assert [(path / "data" / "note.txt").read_bytes() for path in kept] == ([file] if volume == "keep" else [])
    again = server.add_user(NewUser(name))
    assert again.user.id != user
    assert ask(server, "secrets.list", again)[1] == {"secrets": []}
    acts = server.ask("GET", "/v1/audit?act=user.remove")[1]["acts"]
    assert acts[0]["target"] == user
    assert server.ask("DELETE", f"/v1/users/{name}?volume=burn")[0] == 400


def test_users_do_not_remove_users(server: Server) -> None:
    """Neither over HTTP, nor by a request to the node, nor as the node's owner."""
    ann = server.add_user(NewUser("mean-ann"))
    bob = server.add_user(NewUser("mean-bob"))
    assert server.ask("DELETE", f"/v1/users/{bob.user.id}?volume=delete", headers=headers(ann))[0] == 403
    for name in ("users.remove", "calls.export"):
        status, found = ask(server, name, ann, user=bob.user.id, keep=False)
        assert status == 400
        assert found["error"]["code"] == "resources_unavailable"
    assert server.ask("GET", "/v1/audit", headers=headers(ann))[0] == 403
    with pytest.raises(errors.ProtocolMismatch):
        node_of(server).request(None, "users.remove", {"user": "../volumes"})


def test_the_audit_tells_who_did_what_and_no_values(server: Server) -> None:
    """Acts over HTTP have their operator, acts on the machine `machine`; JSON and a table."""
    body = json.dumps({"name": "audit-ann"}).encode()
    added = server.ask("POST", "/v1/users", body)[1]
    acts = json.loads(server.home.atoll("admin", "audit", "--json", "--act", "user.add").stdout)
    assert acts[0]["target"] == added["user"]["id"]
    assert acts[0]["actor_name"] == "operator"
    assert any(act["actor"] == "machine" for act in acts)
    text = json.dumps(acts) + server.home.atoll("admin", "audit").stdout
    assert added["key"]["secret"] not in text
    assert server.key[1] not in text
    first = server.ask("GET", "/v1/audit?limit=1")[1]["acts"]
    older = server.ask("GET", f"/v1/audit?limit=1&before={first[0]['id']}")[1]["acts"]
    assert older[0]["id"] < first[0]["id"]
    assert server.ask("GET", "/v1/audit?limit=x")[0] == 400


def test_commands_name_the_state_they_change(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A home without a server has no backup and no list; a first user there is said to be in no server's."""
    monkeypatch.setenv("ATOLL_HOME", str(server.home.path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["users", "add", "named-ann"]) == 0
    told = capsys.readouterr()
    assert f"to `{server.home.path}` ({server.url})" in told.err
    assert told.out.startswith("export ATOLL_KEY_ID='")
    other = tmp_path / "other"
    monkeypatch.setenv("ATOLL_HOME", str(other))
    for words in (["admin", "backup", str(tmp_path / "copy")], ["users", "list"]):
        assert run(words) != 0
        assert f"run in `{other}`" in capsys.readouterr().err
    assert not other.exists()
    assert not (tmp_path / "copy").exists()
    assert run(["users", "add", "ada"]) == 0
    assert f"to `{other}` (no server has run there yet)" in capsys.readouterr().err
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    (other / "run").mkdir(mode=0o700, exist_ok=True)
    (other / "run" / "server.json").write_text(json.dumps({"pid": ended.pid, "url": "https://lab.example"}))
    assert run(["users", "add", "bob"]) == 0
    assert f"to `{other}` (no server runs there now)" in capsys.readouterr().err


def test_commands_take_the_state_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--home` names the server's directory for users, keys and administration, whatever ATOLL_HOME is."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = ["--home", str(server.home.path)]
    assert server.key

    def said(*words: str) -> str:
        assert run([*words, *home]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    said("users", "add", "home-ann")
    assert "home-ann" in [one["name"] for one in json.loads(said("users", "list", "--json"))]
    assert (
        said("users", "set-quota", "home-ann", "--bytes", "1GB", "--files", "10")
        == "home-ann: volume 954 MiB, 10 files\n"
    )
    key = json.loads(said("key", "generate", "--user", "home-ann", "--json"))["id"]
    assert key in said("key", "list", "--user", "home-ann")
    said("key", "revoke", key)
    assert key not in said("key", "list", "--user", "home-ann")
    assert run(["key", "list", *home]) == 2
    assert run(["users", "list", *home, "--host", server.url]) == 2
    assert "--user NAME" in capsys.readouterr().err
    said("users", "remove", "home-ann", "--yes")
    assert "user.remove" in said("admin", "audit")
    said("admin", "usage")
    assert "values anew" in said("admin", "rotate-key")
    assert not (tmp_path / "other").exists()


def test_commands_that_read_make_no_accounts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory or database of no server stays as it is, also where `--database` names it."""
    home, file = tmp_path / "home", tmp_path / "database.db"
    file.touch()
    monkeypatch.setenv("ATOLL_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    others = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(others)) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    tables = [file.read_bytes(), others.read_bytes()]
    commands = (
        ("users", "list"),
        ("users", "remove", "ann", "--yes"),
        ("users", "set-quota", "ann", "--workers", "1"),
        ("key", "list", "--user", "ann"),
        ("key", "generate", "--user", "ann"),
        ("key", "revoke", "0" * 32, "--here"),
        ("admin", "audit"),
        ("admin", "usage"),
        ("admin", "backup", str(tmp_path / "copy")),
    )
    for words in commands:
        places = [["--home", str(home)], ["--database", f"sqlite:///{tmp_path / 'missing.db'}"]]
        places += [["--database", f"sqlite:///{one}"] for one in (file, others)]
        for place in places:
            assert run([*words, *place]) == 1, (words, place)
            told = capsys.readouterr().err
            assert "no server has run in" in told or "there is no database" in told or "no tables" in told, (
                words,
                place,
            )
    assert [file.read_bytes(), others.read_bytes()] == tables
    assert not home.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["database.db", "other.db"]
    assert run(["users", "list", "--database", f"sqlite:///{server.home.path}/server/server.db"]) == 0
    assert not home.exists()


# --- backups --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backed_up(server: Server) -> Iterator[tuple[Path, AddedUser]]:
    """A backup of a running server, with a user who has a file and a secret."""
    user = server.add_user(NewUser("backup-ann"))
    assert server.ask("PUT", "/v1/users/backup-ann/quota", b'{"volume_bytes": 1000000000}')[0] == 200
    assert ask(server, "secrets.set", user, name="TOKEN", value=VALUE)[0] == 200
    assert server.ask("PUT", "/v1/files/below/note.txt", b"kept", headers(user))[0] in (200, 201, 204)
    place = Path(tempfile.mkdtemp(prefix="atoll-backup-", dir="/tmp"))
    done = server.home.atoll("admin", "backup", str(place / "first"))
    assert "backed up" in done.stdout
    yield place / "first", user
    shutil.rmtree(place)


@pytest.fixture
def fresh() -> Iterator[Home]:
    with own_home() as home:
        yield home


def test_a_restored_server_is_the_one_of_before(
    backed_up: tuple[Path, AddedUser], fresh: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users with their keys, secrets, quotas, files and ids are in a fresh state directory; its node serves them."""
    source, user = backed_up
    assert stat.S_IMODE(source.stat().st_mode) == 0o700
    assert VALUE not in "".join(path.read_text("latin-1") for path in source.glob("secrets/*"))
    monkeypatch.setenv("ATOLL_HOME", str(fresh.path))
    assert run(["admin", "restore", str(source)]) == 0
    node = Node(settings.load(fresh.path))
    principal = Principal(user.user.id, user.user.name)
    assert [one["name"] for one in node.request(principal, "secrets.list", {})["secrets"]] == ["TOKEN"]
    assert node.request(principal, "volume.quota", {})["bytes"] == 10**9
    note = fresh.path / "volumes" / user.user.id / "data" / "below" / "note.txt"
    assert note.read_bytes() == b"kept"
    with Direct(fresh.path) as direct:
        assert "backup-ann" in [one.name for one in direct.list_users().users]
        assert user.key is not None
        assert user.key.id in [key.id for key in direct.list_keys("backup-ann").keys]
    with Database(fresh.path) as database, database.reading() as connection:
        assert look_up(connection, user.key.id) is not None
    for name in ("server/pepper", "identities.json", "secrets/key"):
        if (source / name).exists():
            assert (fresh.path / name).read_bytes() == (source / name).read_bytes()
            assert stat.S_IMODE((fresh.path / name).stat().st_mode) == 0o600
    with pytest.raises(errors.StateUnusable, match="a state already"):
        backup.restore(source, fresh.path, lambda: Database(fresh.path), lambda _: None)


def test_damaged_and_half_backups_are_refused(backed_up: tuple[Path, AddedUser], tmp_path: Path) -> None:
    """A changed part, a missing one, no manifest, another schema: nothing is restored."""
    source, _ = backed_up
    target = tmp_path / "home"

    def refused(match: str, **change: Any) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(source, copy, symlinks=True)
        for name, text in change.items():
            path = copy / name.replace("__", ".").replace("_in_", "/")
            path.unlink() if text is None else path.write_text(text)
        with pytest.raises(errors.StateUnusable, match=match):
            backup.restore(copy, target, lambda: Database(target), lambda _: None)
        assert not target.exists()
        shutil.rmtree(copy)

    refused("no whole backup", manifest__json=None)
    refused("is damaged: database", database__jsonl="")
    refused("no whole backup", server_in_pepper=None)
    manifest = json.loads((source / "manifest.json").read_text())
    refused("has the schema `0000`", manifest__json=json.dumps(manifest | {"schema": "0000"}))
    refused("no whole backup", manifest__json=json.dumps(manifest | {"digests": {"../outside": "x"}})[:-1])
    with pytest.raises(errors.StateUnusable, match="is there already"):
        backup.back_up(Node(settings.load(tmp_path)), None, source, lambda _: None)  # type: ignore[arg-type]


def test_a_backup_in_one_file(server: Server, backed_up: tuple[Path, AddedUser], fresh: Home) -> None:
    """`.tar` is the same; snapshots that were taken for backups are gone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        target = Path(place) / "all.tar"
        server.home.atoll("admin", "backup", str(target))
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert os.listdir(place) == ["all.tar"]
        assert server.ask("GET", "/v1/audit?act=backup.make")[1]["acts"][0]["target"] == str(target)
        fresh.atoll("admin", "restore", str(target))
    assert (fresh.path / "server" / "pepper").exists()
    assert not list(server.home.path.glob("volumes/*/snapshots/trees/backup-*"))


def test_rotating_the_key_is_an_act(server: Server) -> None:
    """`atoll admin rotate-key` encrypts anew and is in the audit."""
    user = server.add_user(NewUser("rotate-ann"))
    ask(server, "secrets.set", user, name="TOKEN", value=VALUE)
    before = (server.home.path / "secrets" / "key").read_text()
    assert "values anew" in server.home.atoll("admin", "rotate-key").stdout
    assert (server.home.path / "secrets" / "key").read_text() != before
    assert server.ask("GET", "/v1/audit?act=secrets.rotate_key")[1]["acts"]
    assert until(lambda: ask(server, "secrets.list", user)[0] == 200)
