"""Secrets on the disk: one file for each user, each value encrypted by AES-GCM.

Theory of operation. `secrets/USER.json` holds names, times and, for each value, the id of its key, a nonce and the
ciphertext; user and name are its associated data, so that a value put in another place does not decrypt. A file is
replaced as a whole under a lock. The key file is written first and once; a rotation writes the new key, then the values,
then removes the old key, so that a crash in between leaves everything readable.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.daemon.secrets import keys as key_files
from atoll.daemon.secrets.keys import Keys
from atoll.model.secret_values import (
    MOST_BYTES,
    MOST_SECRETS,
    NONE,
    SecretValues,
    check_name,
    check_value,
    sealed,
)
from atoll.settings import Settings
from atoll.work_threads import WorkThreads

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NONCE_BYTES = 12

Rows = dict[str, dict[str, Any]]


THREADS = 4
"""Reads and writes at a time, one of each user: the key may come from a command."""


class SecretStore:
    """The secrets of all users of a state directory; used by any thread.

    Args:
        options: returns the options as they are now.
    """

    def __init__(self, options: Callable[[], Settings]) -> None:
        self._options = options
        self._read: dict[str, tuple[tuple[int, ...], SecretValues]] = {}
        self._keys: tuple[object, Keys] | None = None
        self.threads = WorkThreads("secrets", THREADS)

    @property
    def directory(self) -> Path:
        return self._options().home / "secrets"

    @property
    def key_file(self) -> Path:
        """The file with the keys, where no command gives them."""
        named = self._options().secrets.key_file
        return Path(named) if named else self.directory / "key"

    def exist(self, user: str) -> bool:
        """Return whether a user may have secrets: cheap, asked before each new lease."""
        return os.path.exists(self._path(user))

    def values(self, user: str) -> SecretValues:
        """Return a user's secrets; read again where the file has changed.

        Raises:
            StateUnusable: they cannot be read or decrypted.
        """
        stamp = self._stamp(user)
        if stamp is None:
            self._read.pop(user, None)
            return NONE
        known = self._read.get(user)
        if known is not None and known[0] == stamp:
            return known[1]
        rows = self._rows(user)
        found = sealed((name, self._decrypted(user, name, row)) for name, row in rows.items())
        self._read[user] = stamp, found
        return found

    def list(self, user: str) -> list[dict[str, Any]]:
        """Return names, times of the last change and ids of keys, by name."""
        rows = self._rows(user)
        return [
            {"name": name, "changed_at": rows[name]["changed_at"], "key": rows[name]["key"]} for name in sorted(rows)
        ]

    def set(self, user: str, name: object, value: object) -> None:
        """Set a secret.

        Raises:
            ValueError: the name or the value cannot be one.
            ResourcesUnavailable: the user would have too many.
            StateUnusable: it cannot be kept.
        """
        checked, text = check_name(name), check_value(value)
        with self._locked():
            rows = self._rows(user)
            rows[checked] = self._encrypted(user, checked, text)
            size = sum(len(one) + int(row["bytes"]) for one, row in rows.items())
            if len(rows) > MOST_SECRETS or size > MOST_BYTES:
                raise errors.ResourcesUnavailable(
                    f"the secrets would be {len(rows)} with {size:,} bytes, and may be {MOST_SECRETS} with {MOST_BYTES:,}",
                    hint="delete some, or keep a large one in a file below `/data`",
                )
            self._write(user, rows)

    def delete(self, user: str, name: object) -> bool:
        """Delete a secret; return whether it was there."""
        with self._locked():
            rows = self._rows(user)
            if not isinstance(name, str) or rows.pop(name, None) is None:
                return False
            self._write(user, rows)
            return True

    def remove(self, user: str) -> None:
        """Delete all secrets of a user."""
        with self._locked():
            self._path(user).unlink(missing_ok=True)
            self._read.pop(user, None)

    def users(self) -> Sequence[str]:
        """Return the users who may have secrets."""
        return sorted(path.name.removesuffix(".json") for path in self.directory.glob("[!.]*.json"))

    def take(self, user: str, values: dict[str, str]) -> None:
        """Have these values in place of all that a user has.

        Raises:
            ValueError: a name or a value cannot be one.
            StateUnusable: they cannot be kept.
        """
        old = dict(self.values(user).pairs)
        with self._locked():
            kept = {name: row for name, row in self._rows(user).items() if old.get(name) == values.get(name)}
            fresh = {check_name(name): check_value(value) for name, value in values.items() if name not in kept}
            self._write(user, kept | {name: self._encrypted(user, name, text) for name, text in fresh.items()})

    def rotate(self) -> int:
        """Encrypt everything with a new key, or with the first one of the operator's command; return the number of values.

        Raises:
            StateUnusable: a value cannot be decrypted; then the older keys stay.
        """
        with self._locked():
            command = self._options().secrets.key_command
            if not command:
                key_files.write(self.key_file, self._all_keys().with_new(), replace=True)
                self._keys = None
            keys, count = self._all_keys(), 0
            for path in sorted(self.directory.glob("*.json")):
                user = path.name.removesuffix(".json")
                rows = self._rows(user)
                for name, row in rows.items():
                    if row["key"] != keys.current:
                        changed_at = row["changed_at"]
                        rows[name] = self._encrypted(user, name, self._decrypted(user, name, row)) | {
                            "changed_at": changed_at
                        }
                        count += 1
                self._write(user, rows)
            if not command:
                key_files.write(self.key_file, keys.only_current(), replace=True)
                self._keys = None
            return count

    # --- the files --------------------------------------------------------------------------------------------------

    def _path(self, user: str) -> Path:
        if not _USER.fullmatch(user):
            raise ValueError("a user's id has ASCII letters, digits, `_` and `-`")
        return self.directory / f"{user}.json"

    def _stamp(self, user: str) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path(user))
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _rows(self, user: str) -> Rows:
        path = self._path(user)
        try:
            data = json.loads(path.read_bytes())
            rows: Rows = data["secrets"]
            if not all(isinstance(row[part], kind) for row in rows.values() for part, kind in _PARTS):
                raise ValueError("a part is missing")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.StateUnusable(
                f"the secrets of `{path}` cannot be read: {type(error).__name__}",
                hint="put the file back from a backup, or remove it and set the secrets again",
            ) from None
        return rows

    def _write(self, user: str, rows: Rows) -> None:
        path = self._path(user)
        temporary = path.with_name(f".{user}-{os.urandom(4).hex()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"version": 1, "secrets": rows}, file)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
            key_files.sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        self._read.pop(user, None)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of all changes, whichever process makes them."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self.directory / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.StateUnusable(
                f"the secrets below `{self.directory}` cannot be changed: {error.strerror}",
                hint="mend the directory, or make room on the disk",
            ) from None

    # --- encryption -------------------------------------------------------------------------------------------------

    def _all_keys(self) -> Keys:
        """Return the keys; read once, and again where the file has changed."""
        command = self._options().secrets.key_command
        if command:
            if self._keys is None or self._keys[0] != command or self._keys_are_old():
                self._keys = command, key_files.of_command(command)
                self._asked = time.monotonic()
            return self._keys[1]
        found = key_files.read(self.key_file)
        if found is None:
            if any(self.directory.glob("*.json")):
                raise errors.StateUnusable(
                    f"the key file `{self.key_file}` is gone, and the secrets need it", hint="put it back from a backup"
                )
            with contextlib.suppress(FileExistsError):
                key_files.write(self.key_file, key_files.new(), replace=False)
            found = key_files.read(self.key_file)
            assert found is not None
        return found

    _asked = 0.0

    def _keys_are_old(self) -> bool:
        return time.monotonic() - self._asked > _COMMAND_KEEP_SECONDS

    def _encrypted(self, user: str, name: str, value: str) -> dict[str, Any]:
        keys, nonce, data = self._all_keys(), os.urandom(_NONCE_BYTES), value.encode()
        cipher = _cipher(keys[keys.current]).encrypt(nonce, data, _associated(user, name))
        return {
            "key": keys.current,
            "nonce": base64.b64encode(nonce).decode(),
            "value": base64.b64encode(cipher).decode(),
            "bytes": len(data),
            "changed_at": time.time(),
        }

    def _decrypted(self, user: str, name: str, row: dict[str, Any]) -> str:
        key = self._all_keys()[row["key"]]
        try:
            nonce, cipher = base64.b64decode(row["nonce"]), base64.b64decode(row["value"])
            found: bytes = _cipher(key).decrypt(nonce, cipher, _associated(user, name))
            return found.decode()
        except errors.AtollError:
            raise
        except Exception:
            raise errors.StateUnusable(
                f"the secret `{name}` cannot be decrypted: it was changed on the disk, or belongs to another place",
                hint=f"set it again: `atoll secrets set {name}`",
            ) from None


_PARTS = (("key", str), ("nonce", str), ("value", str), ("bytes", int), ("changed_at", float))
_COMMAND_KEEP_SECONDS = 300.0
"""Seconds for which the output of the operator's command is used again."""


def _associated(user: str, name: str) -> bytes:
    return f"atoll secret\0{user}\0{name}".encode()


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 30 ms, for those who have secrets
    except ImportError:
        raise errors.StateUnusable(
            "secrets need the package `cryptography`", hint="`pip install 'atoll[server]'`, then `atoll stop`"
        ) from None
    return AESGCM(key)
