"""Keys that encrypt secrets: a file of mode 0600, or the output of the operator's command.

Each line is `ID KEY`: an id of letters and digits, and 32 bytes in URL-safe base64. The first key encrypts; the others
still decrypt, until `atoll admin rotate-key` has encrypted everything anew.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from atoll import errors, process, settings

KEY_BYTES = 32
COMMAND_SECONDS = 30.0
MOST_KEYS = 100
_ID = re.compile(r"[A-Za-z0-9]{1,32}")


class Keys:
    """The keys by id, in order: the first one encrypts."""

    def __init__(self, found: Sequence[tuple[str, bytes]]) -> None:
        self._found = dict(found)
        self.current = found[0][0]

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._found)})"

    def __getitem__(self, key_id: str) -> bytes:
        """Return a key.

        Raises:
            StateUnusable: it is not among them.
        """
        try:
            return self._found[key_id]
        except KeyError:
            raise errors.StateUnusable(
                f"a secret is encrypted with the key `{key_id}`, which is not here",
                hint="put that key back, or delete the secret and set it again",
            ) from None

    def lines(self) -> str:
        """Return the text of a key file."""
        return "".join(f"{name} {base64.urlsafe_b64encode(key).decode()}\n" for name, key in self._found.items())

    def with_new(self) -> Keys:
        """Return these keys behind a new one."""
        return Keys([(os.urandom(4).hex(), os.urandom(KEY_BYTES)), *self._found.items()])

    def only_current(self) -> Keys:
        """Return the first key alone."""
        return Keys([(self.current, self._found[self.current])])


def new() -> Keys:
    """Return one new key."""
    return Keys([(os.urandom(4).hex(), os.urandom(KEY_BYTES))])


def parse(text: str, where: str) -> Keys:
    """Return the keys of a text; errors name its place and never its content.

    Raises:
        StateUnusable: it is no list of keys.
    """
    found: list[tuple[str, bytes]] = []
    for number, line in enumerate((line for line in text.splitlines() if line.strip()), 1):
        name, _, encoded = line.strip().partition(" ")
        key = b""
        with contextlib.suppress(binascii.Error, ValueError):
            key = base64.urlsafe_b64decode(encoded.strip())
        if not _ID.fullmatch(name) or len(key) != KEY_BYTES or number > MOST_KEYS or name in dict(found):
            raise _unusable(f"line {number} of {where} is no key", "a line is `ID KEY`, the key 32 bytes in base64")
        found.append((name, key))
    if not found:
        raise _unusable(f"{where} has no key", "put the key file back; without it no secret can be read")
    return Keys(found)


def read(path: Path) -> Keys | None:
    """Return the keys of a file that is its owner's alone; None where there is none.

    Raises:
        StateUnusable: it cannot be read, is open to others, or holds no keys.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(f"cannot read the key file `{path}`: {error}", "mend its permissions") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in (os.geteuid(), 0):
            raise _unusable(
                f"the key file `{path}` is open to others (mode {found.st_mode & 0o7777:04o}, uid {found.st_uid})",
                f"chmod 600 {path}",
            )
        return parse(file.read(1 << 16).decode("ascii", "replace"), f"the key file `{path}`")


def write(path: Path, keys: Keys, *, replace: bool) -> None:
    """Write a key file, whole or not at all.

    Args:
        replace: a file that is there is replaced; else that is a `FileExistsError`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(keys.lines())
            file.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Have a directory's names survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def of_command(command: Sequence[str]) -> Keys:
    """Return the keys that a command prints.

    Raises:
        StateUnusable: it fails, or prints no keys.
    """
    try:
        variables = settings.environment_with({})
        done = process.check(command, env=variables, timeout_seconds=COMMAND_SECONDS, stderr=process.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "it takes too long"
        raise _unusable(f"`secrets.key_command` failed: {reason}", "see `settings.toml`") from None
    if done.status:
        raise _unusable(f"`secrets.key_command` ended with status {done.status}", "run it by hand")
    return parse(done.output[: 1 << 16], "the output of `secrets.key_command`")


def _unusable(message: str, hint: str) -> errors.StateUnusable:
    return errors.StateUnusable(message, hint=hint)
