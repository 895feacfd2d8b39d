"""Host uids of users on a file system that many machines share: the same number for a user on each of them.

Theory of operation. A claim is a file, `uids/numbers/UID` and `uids/users/NAME`, that holds both. It gets its names by
links, which are atomic on every file system, so that no lock is needed and a machine that dies holds up no other. The
number is claimed first: of two machines that assign one at a time, the second takes the next. Then the user: of two that
assign one to the same user, the second gives its number back and takes that of the first. A number is never used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from atoll.errors import StateUnusable, VolumesUnavailable
from atoll.linux import sync_directory, write_all


class SharedUids:
    """The uids of the users of one shared file system; any number of processes and machines may ask at a time.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers, self._users = root / "uids" / "numbers", root / "uids" / "users"

    def find(self, name: str) -> int | None:
        """Return the uid of a user; None for one without.

        Raises:
            VolumesUnavailable: the file system does not tell.
            StateUnusable: the user's claim is damaged.
        """
        path = self._users / quote(name, safe="")
        try:
            data = json.loads(path.read_bytes())
            if data["user"] != name or type(data["uid"]) is not int:
                raise ValueError("it is of another user")
            return int(data["uid"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StateUnusable(f"`{path}` holds no user's uid: {error}", hint="restore the file") from error

    def assign(self, name: str, free: Iterable[int]) -> int | None:
        """Return the uid of a user; one without gets the first of `free` that nobody has, and None if all have one.

        Raises:
            VolumesUnavailable: the file system cannot be written.
            StateUnusable: the user's claim is damaged.
        """
        found = self.find(name)
        if found is not None:
            return found
        try:
            for directory in (self._numbers, self._users):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = set(os.listdir(self._numbers))
            for uid in free:
                if str(uid) not in taken and (claimed := self._claim(name, uid)):
                    return claimed
        except OSError as error:
            raise self._unavailable(error) from error
        return None

    def _claim(self, name: str, uid: int) -> int:
        """Claim a number for a user; return the user's, or 0 if another user has got this one meanwhile."""
        staged = self._root / "uids" / f".claim-{secrets.token_hex(8)}"
        number = self._numbers / str(uid)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                write_all(descriptor, json.dumps({"user": name, "uid": uid}).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(staged, number)
            except FileExistsError:
                return 0
            try:
                os.link(staged, self._users / quote(name, safe=""))
            except FileExistsError:
                number.unlink()  # nobody has seen it in use
                return self.find(name) or 0
            for directory in (self._numbers, self._users):
                sync_directory(str(directory))
            return uid
        finally:
            with contextlib.suppress(FileNotFoundError):
                staged.unlink()

    def _unavailable(self, error: OSError) -> VolumesUnavailable:
        return VolumesUnavailable(
            f"the uids of users on `{self._root}` cannot be read or written: {error.strerror or error}",
            hint="`atoll data filesystem status` looks at the shared file system",
        )
