"""Backups of a server while it runs, and their restoration into a fresh state directory.

Theory of operation. A backup is a directory of its own, the owner's alone, or the same in one `.tar`: all tables as lines
of JSON, read in one transaction; the files that keys and ids are in; the records of calls; and each volume, copied from a
snapshot that is taken for it. The manifest is written last, with the digests of all but the volumes, and the number of
files and bytes of these: a directory without one is no backup, and neither is one of which a part is missing. Restoration
writes the pepper last: a state directory without it has no server's accounts, so a half one serves nobody. Whoever reads a backup can act as the server: it has the pepper, and the key of secrets unless that
is kept elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atoll import __version__, errors, process, settings
from atoll.node.shared import preparation
from atoll.server.accounts.audit import MACHINE, audit
from atoll.server.admin import table_dump
from atoll.server.database import schema
from atoll.server.database.database import Database
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.storage.client.volume import VolumeClient
from atoll.wire.channel import Channel

MANIFEST, DUMP = "manifest.json", "database.jsonl"
FILES = ("server/pepper", "server-key", "identities.json", "quotas.json", "settings.toml", "environments/.secret")
"""Files of the state directory that a backup has, besides those below `secrets/`."""
COPY_SECONDS = 86400.0
PEPPER = "server/pepper"
_SNAPSHOT = re.compile(r"atoll-backup-[0-9a-f]{12}")

Tell = Callable[[str], None]


def back_up(node: Node, database: Database, target: Path, tell: Tell) -> dict[str, Any]:
    """Make a backup, and return its manifest.

    Args:
        target: a directory or `.tar` that is not there yet.
        tell: takes a line for each part.

    Raises:
        StateUnusable: the target is there, or a part cannot be read or written.
    """
    if target.exists():
        raise errors.StateUnusable(f"`{target}` is there already", hint="give a new name for each backup")
    with _only_one(node.options.home):
        make = _packed if target.suffix == ".tar" else _into
        manifest = make(node, database, target, tell)
        with database.writing() as connection:
            audit(connection, MACHINE, "backup.make", str(target)[-256:], {"volumes": len(manifest["volumes"])})
        return manifest


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the lock of the one backup under way: snapshots of earlier ones, which were killed, are nobody's then."""
    with open(home / "server" / "backup.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.StateUnusable(f"a backup of `{home}` is under way", hint="wait for its end") from None
        yield


def _packed(node: Node, database: Database, target: Path, tell: Tell) -> dict[str, Any]:
    partial = target.with_name(f".{target.name}-{os.urandom(4).hex()}")
    packed = partial.with_name(f"{partial.name}.tar")
    try:
        manifest = _into(node, database, partial, tell)
        packed.touch(0o600)
        _run(["tar", "--numeric-owner", "--sparse", "--xattrs", "-C", str(partial), "-cf", str(packed), "."])
        _sync(packed)
        os.rename(packed, target)
        _sync(target.parent)
        return manifest
    finally:
        packed.unlink(missing_ok=True)
        _remove(partial)


def _into(node: Node, database: Database, target: Path, tell: Tell) -> dict[str, Any]:
    home = node.options.home
    try:
        target.mkdir(mode=0o700, parents=False)
    except OSError as error:
        raise _not_made(error) from error
    try:
        digests = {DUMP: table_dump.dump(database, target / DUMP)}
        tell("database")
        for name, path in _files(home):
            digests[name] = _copy_file(path, target / name)
        tell("keys and options")
        if (home / "records" / "calls.db").exists():
            digests["records/calls.db"] = _copy_database(home / "records" / "calls.db", target / "records" / "calls.db")
            tell("records of calls")
        volumes = {}
        with preparation.mounted(node.options) as root:
            for directory in sorted((root / "volumes").glob("*")):
                if directory.is_dir() and not directory.is_symlink():
                    volumes[directory.name] = _copy_volume(node, directory, target / "volumes" / directory.name)
                    tell(f"volume {directory.name}")
        manifest = {
            "version": 1,
            "atoll": __version__,
            "schema": schema.newest(),
            "made_at": time.time(),
            "digests": digests,
            "volumes": volumes,
        }
        _run(["sync", "-f", "--", str(target)])  # what the manifest promises is on the disk before it
        _write(target / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(target)
    except BaseException as error:
        _remove(target)
        if isinstance(error, OSError) and not isinstance(error, errors.AtollError):
            raise _not_made(error) from error
        raise
    return manifest


def _not_made(error: OSError) -> errors.AtollError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(f"the backup cannot be made: {error}", hint="make room, or choose another disk")
    return errors.StateUnusable(f"the backup cannot be made: {error}", hint="choose another directory")


def _sync(path: Path) -> None:
    """Have a file or directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(home: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of keys and options, with their names in a backup; those of secrets under their lock."""
    for name in FILES:
        if (home / name).is_file():
            yield name, home / name
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):
            lock = stack.enter_context(open(home / "secrets" / ".lock", "rb"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        for path in sorted((home / "secrets").glob("[!.]*")):
            if path.is_file():
                yield f"secrets/{path.name}", path


def _copy_file(source: Path, target: Path) -> str:
    data = source.read_bytes()
    _write(target, data)
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _copy_database(source: Path, target: Path) -> str:
    """Copy a database of SQLite that others write to meanwhile."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.touch(0o600)
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30.0)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        try:
            old.backup(new)
        except sqlite3.Error as error:
            raise errors.StateUnusable(f"`{source}` cannot be copied: {error}", hint="look at it") from error
    return _digest(target)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_volume(node: Node, source: Path, target: Path) -> dict[str, Any]:
    """Copy a volume from a snapshot; from its present state where the user's quota has no room for one."""
    owner = None if source.name == "local" else Principal(source.name, source.name)
    note: dict[str, Any] = {"snapshot": True}
    with _client(node, owner) as client:
        for one in client.snapshots():
            if _SNAPSHOT.fullmatch(one.name):  # of a backup that was killed
                client.remove_snapshot(one.name)
        name = f"atoll-backup-{os.urandom(6).hex()}"
        tree = source / "snapshots" / "trees" / name
        try:
            client.snapshot(name)
        except (errors.QuotaExceeded, errors.DiskFull):
            note["snapshot"], tree = False, source / "data"
        try:
            target.mkdir(mode=0o700, parents=True)
            _run(["cp", "-a", "--reflink=auto", "--", str(tree), str(target / "data")])
        finally:
            if note["snapshot"]:
                client.remove_snapshot(name)
    return note | _extent(target / "data")


def _extent(directory: Path) -> dict[str, int]:
    """Return how many entries a directory has with all below it, and the bytes of its files."""
    entries = size = 0
    for place, directories, files in os.walk(directory):
        entries += len(directories) + len(files)
        for name in files:
            found = os.lstat(os.path.join(place, name))
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return {"entries": entries, "bytes": size}


@contextlib.contextmanager
def _client(node: Node, owner: Principal | None) -> Iterator[VolumeClient]:
    channel = node.open(owner, {"type": "storage"})
    try:
        header = channel.receive().header
        if header.get("type") == "failed":
            raise errors.from_data(header.get("error") or {})
        (descriptor,) = channel.take_descriptors(1)
        with VolumeClient(Channel(socket.socket(fileno=descriptor))) as client:
            yield client
    finally:
        channel.close()


def _run(command: list[str]) -> None:
    try:
        done = process.check(command, env={"PATH": os.defpath, "LC_ALL": "C"}, timeout_seconds=COPY_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.StateUnusable(f"`{command[0]}` cannot run: {error}", hint="try again") from error
    if done.status:
        raise errors.StateUnusable(f"`{command[0]}` failed: {done.output[-500:].strip()}", hint="look at the disk")


def _remove(path: Path) -> None:
    with contextlib.suppress(errors.StateUnusable):
        _run(["rm", "-rf", "--one-file-system", "--", str(path)])


# --- restoration ------------------------------------------------------------------------------------------------------


def restore(source: Path, home: Path, open_database: Callable[[], Database], tell: Tell) -> dict[str, Any]:
    """Restore a backup into a fresh state directory, and return its manifest.

    Args:
        source: the directory or `.tar`.
        home: has neither users nor volumes, and no server runs there.
        open_database: opens the database to fill; its tables are empty.

    Raises:
        StateUnusable: the backup is damaged or of another schema, or the state directory is in use.
    """
    if source.suffix != ".tar":
        return _from(source, home, open_database, tell)
    unpacked = home.with_name(f".{home.name}-{os.urandom(4).hex()}")
    unpacked.mkdir(mode=0o700)
    try:
        _run(["tar", "--numeric-owner", "--xattrs", "-C", str(unpacked), "-xpf", str(source)])
        return _from(unpacked, home, open_database, tell)
    finally:
        _remove(unpacked)


def _from(source: Path, home: Path, open_database: Callable[[], Database], tell: Tell) -> dict[str, Any]:
    manifest = checked(source)
    taken = [name for name in ("server/pepper", "volumes", "secrets", "identities.json") if (home / name).exists()]
    if taken:
        raise errors.StateUnusable(
            f"`{home}` has a state already: {', '.join(taken)}", hint="restore into a fresh state directory"
        )
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        (home / "volumes").mkdir(mode=0o711)
        for user in manifest["volumes"]:
            (home / "volumes" / user).mkdir(mode=0o700)
            data = home / "volumes" / user / "data"
            _run(["cp", "-a", "--reflink=auto", "--", str(source / "volumes" / user / "data"), str(data)])
            shutil.copystat(data, data.parent)
            if os.geteuid() == 0:
                found = data.stat()
                os.chown(data.parent, found.st_uid, found.st_gid)
            data.parent.chmod(0o700)
            tell(f"volume {user}")
        for name in manifest["digests"]:
            if name not in (DUMP, PEPPER):
                _copy_file(source / name, home / name)
        tell("options and records")
        with contextlib.closing(open_database()) as database:
            rows = table_dump.load(database, source / DUMP)
        tell(f"database, {rows} rows")
        _run(["sync", "-f", "--", str(home)])
        _copy_file(source / PEPPER, home / PEPPER)
        _sync((home / PEPPER).parent)
        tell("keys")
        if settings.usable(home).storage.is_shared:
            tell(f"volumes are in {home / 'volumes'}: copy them to the shared file system that `settings.toml` names")
    except OSError as error:
        if isinstance(error, errors.AtollError):
            raise
        raise errors.StateUnusable(f"the restoration failed: {error}", hint="remove the state directory") from error
    return manifest


def checked(source: Path) -> dict[str, Any]:
    """Return the manifest of a whole backup of this version's schema.

    Raises:
        StateUnusable: it is none, or a part is missing or damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_bytes())
        digests: dict[str, str] = manifest["digests"]
        damaged = [name for name in digests if ".." in name or _digest(source / name) != digests[name]]
        if PEPPER not in digests:
            raise ValueError("no pepper")
        for user, note in manifest["volumes"].items():
            data = source / "volumes" / user / "data"
            known = {name: note[name] for name in ("entries", "bytes") if name in note}
            if not data.is_dir() or (known and _extent(data) != known):
                damaged.append(f"volume {user}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.StateUnusable(
            f"`{source}` is no whole backup: {type(error).__name__ if source.exists() else 'there is no such file'}",
            hint="give a directory or .tar of `atoll admin backup`",
        ) from error
    if damaged:
        raise errors.StateUnusable(f"the backup is damaged: {', '.join(damaged)}", hint="take an earlier one")
    if manifest["schema"] != schema.newest():
        raise errors.StateUnusable(
            f"the backup has the schema `{manifest['schema']}`, and this version `{schema.newest()}`",
            hint=f"restore it with atoll {manifest.get('atoll', '')}, then upgrade",
        )
    return manifest
