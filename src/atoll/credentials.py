"""Servers and keys of this user: from arguments, variables of the environment, and a file of logins.

Theory of operation. An address comes from the first that names one: the argument, `ATOLL_HOST`, `FAL_HOST`, the login
that was made last. A key comes from the first that has both of its halves: the arguments, `ATOLL_KEY_ID` with
`ATOLL_KEY_SECRET`, `FAL_KEY_ID` with `FAL_KEY_SECRET`, the login at that address. Halves of two sources are never
joined, and a stored key is never sent to another address than its own.

The file is below the platform's directory for options. It is written whole into a new file, which takes the old one's
place, and is refused when other users can read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atoll import settings
from atoll.errors import NotAuthorized, StateUntrusted, StateUnusable
from atoll.terminal_text import printable

MOST_FILE_BYTES = 1 << 20
FILE_NAME = "servers.json"

_ID = re.compile(r"[A-Za-z0-9_.|-]{1,128}")
_SECRET = re.compile(r"[\x21-\x7e]{1,512}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True)
class Credentials:
    """A server's address, and the key that it knows the user by.

    Args:
        url: such as `https://lab.example:8443`, without a slash at the end.
        key_id, key_secret: the halves of the key.
        ca_file: a file of certificates to trust in place of the system's; empty for the system's.
        reached: this user has logged in at the address, which a server has answered.
    """

    url: str
    key_id: str
    key_secret: str
    ca_file: str = ""
    reached: bool = field(default=False, compare=False)

    def __repr__(self) -> str:  # the secret is in no traceback and no log
        return f"Credentials(url={self.url!r}, key_id={self.key_id!r})"

    @property
    def authorization(self) -> str:
        """The value of the header `Authorization`."""
        return f"Key {self.key_id}:{self.key_secret}"


def find(url: str = "", key_id: str = "", key_secret: str = "", ca_file: str = "") -> Credentials | None:
    """Return the server to use and its key; None where nothing names a server.

    Raises:
        NotAuthorized: a server is named, and no key for it is known; or half a key, or one that no server makes.
        ValueError: the address is none.
        StateUntrusted, StateUnusable: the file of logins can be read by others, or by nobody.
    """
    variable = settings.variable
    address = named(url)
    trusted = ca_file or variable("ATOLL_CA_FILE")
    for key, secret, source in (
        (key_id, key_secret, "the arguments `key_id` and `key_secret`"),
        (variable("ATOLL_KEY_ID"), variable("ATOLL_KEY_SECRET"), "`ATOLL_KEY_ID` and `ATOLL_KEY_SECRET`"),
        (variable("FAL_KEY_ID"), variable("FAL_KEY_SECRET"), "`FAL_KEY_ID` and `FAL_KEY_SECRET`"),
    ):
        if address and not (key or secret) and "`ATOLL_" in source and settings.is_empty("ATOLL_KEY_ID"):
            raise NotAuthorized(  # a command that should have made the key has failed: the login is somebody else's
                f"{source} are set, and empty", hint="set them to a key, or unset them to use the stored login"
            )
        if bool(key) != bool(secret):
            raise NotAuthorized(f"half a key: of {source} one is set", hint="set both, or neither")
        if key:
            check_key(key, secret)
            if address:  # the file is not needed, so its mistakes do not matter
                return Credentials(address, key, secret, trusted)
            default = _login("")
            return (
                None
                if default is None
                else Credentials(default.url, key, secret, trusted or default.ca_file, reached=True)
            )
    stored = _login(address)
    if stored is None:
        if not address:
            return None
        raise NotAuthorized(
            f"no key for `{printable(address)}` is known", hint=f"run `atoll auth login --host {printable(address)}`"
        )
    return Credentials(stored.url, stored.key_id, stored.key_secret, trusted or stored.ca_file, reached=True)


def named(url: str = "") -> str:
    """Return the address that the argument or the environment names; empty for none.

    Raises:
        ValueError: it is none.
    """
    variable = settings.variable("ATOLL_HOST")
    if not url and variable == "local":  # this machine, for all that need no server
        return ""
    found = url or variable or _fal_address()
    return address_of(found) if found else ""


def address_of(text: str) -> str:
    """Return a server's address in its one form: scheme, host in lower case, port if it is not the scheme's.

    Raises:
        ValueError: it is none, or has a name, a password, a query or a fragment.
    """
    if not isinstance(text, str):
        raise TypeError(f"the address of a server is a text, is `{printable(repr(text)[:80])}`")
    given = text.strip()
    wrong = f"`{printable(text)}` is no address of a server; one is `https://lab.example`"
    if not given.isascii() and given.isprintable():
        raise ValueError(f"{wrong}; a name has ASCII letters: another is written as in DNS, `xn--…`")
    if not given.isascii() or not given.isprintable() or " " in given:
        raise ValueError(wrong)
    try:
        parts = urlsplit(given if "://" in given else f"https://{given}")
        port = parts.port
        host = parts.hostname or ""
    except ValueError as error:
        raise ValueError(wrong) from error
    if parts.scheme not in ("https", "http") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(wrong)
    host = f"[{host}]" if ":" in host else host
    if not _HOST.fullmatch(host) or port == 0:
        raise ValueError(wrong)
    usual = {"https": 443, "http": 80}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, usual) else f':{port}'}{parts.path.rstrip('/')}"


def address_hint(url: str, otherwise: str) -> str:
    """Return the hint for an address at which no server answers: without its path, one may."""
    path = urlsplit(url).path
    return f"leave `{printable(path)}` out of the address" if path else otherwise


def _fal_address() -> str:
    host, port = settings.variable("FAL_HOST"), settings.variable("FAL_PORT")
    return f"{host}:{port}" if host and port and "://" not in host and ":" not in host else host


def check_key(key_id: str, key_secret: str) -> None:
    """Check that a key has the form of one.

    Raises:
        NotAuthorized: it has not.
    """
    if not _ID.fullmatch(key_id) or not _SECRET.fullmatch(key_secret):
        raise NotAuthorized("the key is not one that a server makes", hint="it is `ID:SECRET`, of ASCII characters")


# --- the file ---------------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Return the platform's directory for Atoll's options of this user."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "atoll"
    if sys.platform == "win32":
        return Path(settings.variable("APPDATA") or Path.home() / "AppData" / "Roaming") / "atoll"
    return settings.user_config_directory() / "atoll"


def path() -> Path:
    """Return the path of the file of logins."""
    return directory() / FILE_NAME


def logins() -> list[Credentials]:
    """Return all logins; the first is the default."""
    found = _read()
    chosen = found["default"]
    return sorted(found["servers"].values(), key=lambda one: (one.url != chosen, one.url))


def store(login: Credentials, *, default: bool = True) -> Path:
    """Keep a login, in place of an earlier one at its address; return the file's path.

    Args:
        default: it is the one to use where none is named.

    Raises:
        StateUntrusted, StateUnusable: the file that is there can be read by others, or by nobody.
        NotAuthorized: the key is none.
    """
    check_key(login.key_id, login.key_secret)
    url = address_of(login.url)
    found = _read()
    found["servers"][url] = Credentials(url, login.key_id, login.key_secret, login.ca_file)
    if default or not found["default"]:
        found["default"] = url
    return _write(found)


def forget(url: str = "") -> Credentials | None:
    """Remove the login at an address (default: the one in use) from the file, and return it; None if there is none.

    Raises:
        StateUntrusted, StateUnusable: as `store`.
    """
    found = _read()
    gone: Credentials | None = found["servers"].pop(address_of(url) if url else found["default"], None)
    if gone is not None:
        if found["default"] == gone.url:
            found["default"] = min(found["servers"], default="")
        _write(found)
    return gone


def _login(address: str) -> Credentials | None:
    found = _read()
    login: Credentials | None = found["servers"].get(address or found["default"])
    return login


def _read() -> dict[str, Any]:
    file = path()
    unusable = f"cannot read the logins in `{printable(str(file))}`"
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return {"default": "", "servers": {}}
    except OSError as error:
        raise StateUnusable(f"{unusable}: {error.strerror}", hint="mend or remove the file") from error
    with open(descriptor, "rb") as opened:
        _check_private(os.fstat(descriptor), file)
        data = opened.read(MOST_FILE_BYTES + 1)
    try:
        if len(data) > MOST_FILE_BYTES:
            raise ValueError("it is too large")
        value = json.loads(data)
        servers = {
            address_of(url): Credentials(
                address_of(url), str(one["key_id"]), str(one["key_secret"]), str(one.get("ca_file", ""))
            )
            for url, one in value["servers"].items()
        }
        for one in servers.values():
            check_key(one.key_id, one.key_secret)
        return {"default": str(value.get("default", "")), "servers": servers}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, NotAuthorized) as error:
        raise StateUnusable(f"{unusable}: it has another form", hint="remove it, and log in again") from error


def _check_private(found: os.stat_result, file: Path) -> None:
    """Refuse a file that other users can read or have made; Windows keeps others out of the user's directory."""
    if sys.platform == "win32":
        return
    shown = printable(str(file))
    if not stat.S_ISREG(found.st_mode):
        raise StateUntrusted(f"`{shown}` is no ordinary file", hint="look at it, and remove it")
    own: int = os.geteuid()
    if found.st_uid not in (0, own):
        raise StateUntrusted(f"`{shown}` belongs to another user", hint="remove it, and log in again")
    if found.st_mode & 0o077:
        raise StateUntrusted(
            f"`{shown}` holds keys, and other users can read it (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"run `chmod 600 {shown}`, and make new keys if somebody may have read it",
        )


def _write(found: dict[str, Any]) -> Path:
    file = path()
    servers = {
        url: {"key_id": one.key_id, "key_secret": one.key_secret, "ca_file": one.ca_file}
        for url, one in sorted(found["servers"].items())
    }
    text = json.dumps({"default": found["default"], "servers": servers}, indent=2) + "\n"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=file.parent)  # mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as new:
                new.write(text)
                new.flush()
                os.fsync(descriptor)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise StateUnusable(
            f"cannot write the logins in `{printable(str(file))}`: {error.strerror}", hint="look at the directory"
        ) from error
    return file
