"""Backups while calls run, of SQLite and PostgreSQL, restored as another server; and backups that were cut off."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import Host, errors, isolated
from atoll.cli.main import run
from atoll.server.accounts.bodies import AddedUser, NewUser
from atoll.server.admin import backup
from atoll.server.database.database import Database

from ..conftest import needs_outbound, own_home
from ..waiting import soak, until
from . import postgresql
from .process import Server, running

VALUE = "hunter2"


def headers(added: AddedUser) -> dict[str, str]:
    assert added.key is not None
    return {"Authorization": f"Key {added.key.id}:{added.key.secret}", "Atoll-Protocol": "1"}


def host_of(server: Server, user: AddedUser) -> Host:
    assert user.key is not None
    return Host(server.url, key_id=user.key.id, key_secret=user.key.secret, ca_file=str(server.ca_file))


@contextlib.contextmanager
def databases(kind: str) -> Iterator[tuple[list[str], list[str]]]:
    """Give the options of `--database` of a server, and of the one that is restored: an empty database of its own."""
    if kind == "sqlite":
        yield [], []
        return
    with postgresql.running() as first, postgresql.running() as second:
        yield ["--database", first], ["--database", second]


@needs_outbound
@pytest.mark.skipif(not soak(short=False, long=True), reason="two servers and databases take half a minute: SOAK=1")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_of_a_server_at_work_is_another_server(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, files and secrets work there as before; a call that ran meanwhile has its file as it was, and goes on here."""
    os.chmod(tmp_path, 0o711)
    key_file = tmp_path / "keys"
    with databases(kind) as (first, second), running(*first) as server, own_home() as other:
        settings = server.home.path / "settings.toml"
        text = settings.read_text() if settings.exists() else ""
        settings.write_text(f'{text}[secrets]\nkey_file = "{key_file}"\n')
        ann = server.add_user(NewUser("ann"))
        body = json.dumps({"name": "TOKEN", "value": VALUE}).encode()
        assert server.ask("POST", "/v1/requests/secrets.set", body, headers(ann))[0] == 200
        assert server.ask("PUT", "/v1/files/deep/note", b"kept" * 100_000, headers(ann))[0] == 201
        host = host_of(server, ann)

        def write(path: str) -> int:
            import os
            import time

            count = 0
            with open("/data/log", "ab", buffering=0) as file:
                while not os.path.exists(path):
                    file.write(b"%d\n" % count)
                    count += 1
                    time.sleep(0.005)
            return count

        call = isolated(host=host, network="none")(write).submit("/data/end")
        log = server.home.path / "volumes" / ann.user.id / "data" / "log"
        until(lambda: log.exists() and log.stat().st_size > 100)
        server.home.atoll("admin", "backup", str(tmp_path / "copy.tar"), *first)
        assert server.ask("PUT", "/v1/files/end", b"", headers(ann))[0] == 201
        count = call.result()
        host.close()
        assert log.read_bytes() == b"".join(b"%d\n" % number for number in range(count))
        monkeypatch.setenv("ATOLL_HOME", str(other.path))
        assert run(["admin", "restore", str(tmp_path / "copy.tar"), *second]) == 0
        restored = Server(other, server.authority)  # the database is remembered
        try:
            restored.start()
            check_restored(restored, ann, count)
        finally:
            assert restored.end() == 0
            restored.process.close()


def check_restored(restored: Server, ann: AddedUser, count: int) -> None:
    assert restored.ask("GET", "/v1/whoami", headers=headers(ann))[1]["name"] == "ann"
    assert restored.ask("GET", "/v1/files/deep/note", headers=headers(ann)) == (200, b"kept" * 100_000)
    status, lines = restored.ask("GET", "/v1/files/log", headers=headers(ann))
    assert status == 200
    whole = lines.splitlines()
    assert 0 < len(whole) <= count
    assert whole == [b"%d" % number for number in range(len(whole))]
    assert restored.ask("GET", "/v1/files/end", headers=headers(ann))[0] == 404
    host = host_of(restored, ann)

    def secret() -> tuple[str, int]:
        import os

        return os.environ["TOKEN"], os.path.getsize("/data/deep/note")

    assert isolated(host=host, network="none")(secret)() == (VALUE, 400_000)
    host.close()


# --- cut off ----------------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from atoll.server.admin import backup
at, count, names = int(sys.argv[1]), 0, ("_copy_file", "_copy_volume", "_write", "_run", "_sync")
def counted(function):
    def call(*arguments):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
for name in names:
    setattr(backup, name, counted(getattr(backup, name)))
from atoll.cli.main import run
sys.exit(run(["admin", "backup", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def user(server: Server) -> AddedUser:
    """A user with files."""
    added = server.add_user(NewUser("restore-ann"))
    for name in ("a", "b"):
        assert server.ask("PUT", f"/v1/files/{name}", os.urandom(300_000), headers(added))[0] == 201
    return added


def is_refused(source: Path, home: Path) -> bool:
    """Return whether nothing comes of a backup; where it is whole, the pepper is there."""
    try:
        backup.restore(source, home, lambda: Database(home), lambda _: None)
    except errors.StateUnusable:
        assert not (home / "server" / "pepper").exists()
        return True
    assert (home / "server" / "pepper").exists()
    return False


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_a_backup_that_was_killed_is_none(server: Server, user: AddedUser, tmp_path: Path, suffix: str) -> None:
    """SIGKILL at any step leaves a whole backup, or nothing that can be restored; the next backup removes its snapshot."""
    steps = soak((5,), tuple(range(1, 40)))
    for step in steps:
        target = tmp_path / f"copy-{step}{suffix}"
        command = [sys.executable, "-c", _KILLED, str(step), str(target)]
        environment = server.home.environment()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        home = tmp_path / f"home-{step}"
        refused = is_refused(target, home)
        assert not (refused and done.returncode == 0), step
        if not refused:  # a backup is whole from the moment when its manifest is written
            data = server.home.path / "volumes" / user.user.id / "data"
            restored = home / "volumes" / user.user.id / "data"
            assert [(restored / name).read_bytes() == (data / name).read_bytes() for name in "ab"] == [True, True]
    server.home.atoll("admin", "backup", str(tmp_path / "whole"))
    assert not list(server.home.path.glob("volumes/*/snapshots/trees/atoll-backup-*"))
    assert not is_refused(tmp_path / "whole", tmp_path / "home")


@pytest.mark.root
def test_a_backup_for_which_the_disk_is_too_small_is_none(server: Server, user: AddedUser, tmp_path: Path) -> None:
    """A full disk is a named error, and the half backup is removed, so that it takes no space."""
    for name in ("copy", "copy.tar"):
        with tempfile.TemporaryDirectory(dir=tmp_path) as place:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", place], check=True)
            try:
                done = server.home.atoll("admin", "backup", f"{place}/{name}", check=False)
                assert done.returncode == 1
                assert "No space left" in done.stderr
                assert os.listdir(place) == []
            finally:
                subprocess.run(["umount", place], check=True)


def test_a_copy_of_a_backup_that_was_cut_off_is_refused(server: Server, user: AddedUser, tmp_path: Path) -> None:
    """A file that is missing or short in a volume is noticed, as is the end of a `.tar`; the message names the part."""
    server.home.atoll("admin", "backup", str(tmp_path / "copy"))
    file = tmp_path / "copy" / "volumes" / user.user.id / "data" / "a"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(errors.StateUnusable, match=f"damaged: volume {user.user.id}"):
        backup.checked(tmp_path / "copy")
    file.unlink()
    assert is_refused(tmp_path / "copy", tmp_path / "home")
    server.home.atoll("admin", "backup", str(tmp_path / "copy.tar"))
    with open(tmp_path / "copy.tar", "r+b") as packed:
        packed.truncate(packed.seek(0, 2) // 2)
    assert is_refused(tmp_path / "copy.tar", tmp_path / "home")


def test_one_backup_at_a_time(server: Server, tmp_path: Path) -> None:
    """A second one says that the first is under way."""
    with backup._only_one(server.home.path):
        done = server.home.atoll("admin", "backup", str(tmp_path / "copy"), check=False)
    assert (done.returncode, "is under way" in done.stderr) == (1, True)
    assert not (tmp_path / "copy").exists()
