"""The credentials of a machine that has joined a server, below its state directory, and its requests to that server.

`ATOLL_HOME/node/joined.json` is the owner's alone (0600), and is written whole into a new file, which takes its place.
One process at a time runs the node: it holds the lock of `node/run.lock`, which has its pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from atoll import __version__, errors, ownership
from atoll.credentials import Credentials
from atoll.host.remote.server import Server, tls_failure
from atoll.server import versions
from atoll.terminal_text import printable

DIRECTORY, FILE, LOCK_FILE, LOG_FILE = "node", "joined.json", "run.lock", "node.log"
CERTIFICATES_FILE = "server-ca.pem"
MOST_BYTES = 64 << 10
SECONDS = 30.0
"""Seconds that the server may take to answer a node's request."""
LOOK_SECONDS = 5.0
"""Seconds for a question whose answer is not needed."""
JOIN_HINT = "`atoll nodes token` on the server gives a token: `atoll node join URL --token TOKEN`"


@dataclass(frozen=True)
class Joined:
    """What a machine keeps of the server that it has joined.

    Args:
        url: of the server.
        node: the opaque id, the first half of the credentials.
        secret: the second half.
        name: as the server knows the node.
        labels: for placement.
        ca_file: certificates to trust in place of the system's; empty for the system's.
    """

    url: str
    node: str
    secret: str = field(repr=False)
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ca_file: str = ""

    @property
    def server(self) -> NodeServer:
        """The server, as this node reaches it: by the proxies and certificates of this machine."""
        return NodeServer(_Node(self.url, self.node, self.secret, self.ca_file, reached=True))

    @property
    def authorization(self) -> str:
        """The value of the header `Authorization` of this node."""
        return f"Node {self.node}:{self.secret}"


class _Node(Credentials):
    @property
    def authorization(self) -> str:
        return f"Node {self.key_id}:{self.key_secret}" if self.key_id else ""


class NodeServer(Server):
    """A server and the credentials that it knows this machine by."""

    def _headers(self) -> dict[str, str]:
        least, most = versions.NODE_LOWEST, versions.NODE_HIGHEST
        found = super()._headers() | {"Atoll-Node-Protocol": f"{least}-{most}"}
        return {name: value for name, value in found.items() if value}

    def unreachable(self, error: Exception) -> errors.AtollError:
        """Return the named error for a failed connection."""
        if isinstance(error, ssl.SSLError):
            return tls_failure(self.url, error, "`--ca-file FILE`, or `SSL_CERT_FILE`")
        return super().unreachable(error)


def join(
    url: str, token: str, name: str, *, labels: Mapping[str, str], ca_file: str = "", replace: bool = False
) -> Joined:
    """Join a server by a token, and return the credentials, which the caller keeps.

    Args:
        url: in the form of `credentials.address_of`.

    Raises:
        AtollError: as the server answers, or it cannot be reached.
    """
    asked = {"token": token, "name": name, "labels": dict(labels), "replace": replace, "facts": first_facts()}
    answer = NodeServer(_Node(url, "", "", ca_file)).ask("POST", "/v1/nodes/join", asked, seconds=SECONDS)
    try:
        return Joined(url, answer["node"], answer["secret"], answer["name"], dict(answer["labels"]), ca_file)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.HostUnreachable(
            f"`{printable(url)}` answers as no server with nodes does", hint="have the server upgraded"
        ) from error


def first_facts() -> dict[str, Any]:
    """Return what a machine says about itself before its node runs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return {
        "version": __version__,
        "hostname": platform.node()[:255],
        "millicores": 1000 * cores,
        "memory_bytes": memory,
    }


def row(joined: Joined) -> dict[str, Any]:
    """Return this node's row at its server.

    Raises:
        AtollError: as the server answers, or it cannot be reached.
    """
    found: dict[str, Any] = joined.server.ask("GET", "/v1/nodes/self", seconds=SECONDS)
    return found


def is_removed(joined: Joined) -> bool:
    """Return whether the server says that it does not know this node any more."""
    server = NodeServer(_Node(joined.url, joined.node, joined.secret, joined.ca_file))
    try:
        server.ask("GET", "/v1/nodes/self", seconds=LOOK_SECONDS)
    except errors.NotAuthorized as error:
        return error.status in (401, 403)
    except errors.AtollError:
        pass
    return False


def leave(joined: Joined) -> None:
    """Remove this node at its server.

    Raises:
        AtollError: as the server answers, or it cannot be reached.
    """
    joined.server.ask("DELETE", "/v1/nodes/self", seconds=SECONDS)


# --- the file -----------------------------------------------------------------------------------------------------


def path(home: Path) -> Path:
    """Return the file of a state directory."""
    return home / DIRECTORY / FILE


def read(home: Path) -> Joined | None:
    """Return what a state directory keeps of the server that it has joined; None for none.

    Raises:
        StateUntrusted: another user can change the file.
        StateUnusable: others can read it, or it has another form.
    """
    file = path(home)
    shown = printable(str(file))
    try:
        with ownership.directory(file.parent) as directory, open(directory.open(FILE, os.O_RDONLY), "rb") as opened:
            mode, data = os.fstat(opened.fileno()).st_mode, opened.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise errors.StateUnusable(f"cannot read `{shown}`: {error.strerror}", hint="look at it") from error
    if mode & 0o077:
        raise errors.StateUnusable(f"`{shown}` holds a secret, and others can read it", hint=f"run `chmod 600 {shown}`")
    try:
        return Joined(**json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.StateUnusable(f"`{shown}` has another form", hint=f"remove it; {JOIN_HINT}") from error


def need(home: Path) -> Joined:
    """Return what a state directory keeps of the server that it has joined.

    Raises:
        StateUnusable: it has joined none; or as `read`.
    """
    found = read(home)
    if found is None:
        raise errors.StateUnusable(f"`{printable(str(home))}` has joined no server", hint=JOIN_HINT)
    return found


def prepare(home: Path) -> None:
    """Make the directory of the credentials, before a token is used up for them.

    Raises:
        StateUntrusted, StateUnusable: the state directory cannot be used.
    """
    try:
        with ownership.directory(home / DIRECTORY, make=True) as directory:
            name = f".{FILE}-{secrets.token_hex(8)}"
            os.close(directory.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            (home / DIRECTORY / name).unlink()
    except OSError as error:
        raise errors.StateUnusable(
            f"cannot write below `{printable(str(home))}`: {error.strerror}",
            hint="give another directory: `--home DIRECTORY`, or ATOLL_HOME",
        ) from error


def write(home: Path, joined: Joined) -> None:
    """Keep what a machine needs to run as a node, in place of what was kept before.

    Raises:
        StateUntrusted, StateUnusable: the state directory cannot be used.
    """
    _write(home, FILE, json.dumps({**asdict(joined), "labels": dict(joined.labels)}, indent=2).encode())


def write_certificates(home: Path, data: bytes) -> Path:
    """Keep the certificates that a machine trusts for its server, and return their file.

    Raises:
        StateUntrusted, StateUnusable: as `write`.
    """
    _write(home, CERTIFICATES_FILE, data)
    return home / DIRECTORY / CERTIFICATES_FILE


def _write(home: Path, name: str, data: bytes) -> None:
    temporary, place = f".{name}-{secrets.token_hex(8)}", home / DIRECTORY / name
    try:
        with ownership.directory(home / DIRECTORY, make=True) as directory:
            with open(directory.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(place.with_name(temporary), place)
    except OSError as error:
        with contextlib.suppress(OSError):
            place.with_name(temporary).unlink()
        if isinstance(error, errors.AtollError):
            raise
        raise errors.StateUnusable(
            f"cannot write `{printable(str(place))}`: {error.strerror}",
            hint="make room on the disk, or mount it to be written",
        ) from error


def forget(home: Path) -> None:
    """Remove what a state directory keeps of the server that it has joined."""
    path(home).unlink(missing_ok=True)


def open_log(home: Path) -> TextIO:
    """Open the log of a node that runs in the background, to add to it.

    Raises:
        StateUntrusted: another user can change it.
    """
    with ownership.directory(home / "logs", make=True) as directory:
        descriptor = directory.open(LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.close(descriptor)
    return open(home / "logs" / LOG_FILE, "a", encoding="utf-8")


# --- the one process ----------------------------------------------------------------------------------------------

_FLOCK = "hhqqi4x"
"""The kernel's `struct flock`: type, whence, start, length, pid."""


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the lock of the one process that runs a state directory's node.

    Raises:
        StateUnusable: another one runs it.
    """
    with ownership.directory(home / DIRECTORY, make=True) as directory:
        lock = directory.open(LOCK_FILE, os.O_RDWR | os.O_CREAT)
    with open(lock, "r+b", buffering=0) as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            raise errors.StateUnusable(
                f"the node of `{printable(str(home))}` runs already (pid {running(home) or 'unknown'})",
                hint="end that one first (`atoll node stop`), or give another `--home`",
            ) from None
        file.truncate()
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            file.write(str(os.getpid()).encode())
        try:
            yield
        finally:
            file.truncate(0)


def running(home: Path) -> int:
    """Return the pid of the process that runs a state directory's node; 0 for none. Takes no lock, so it hinders nobody."""
    try:
        with open(home / DIRECTORY / LOCK_FILE, "rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
            return int(file.read(32) or 0) if kind != fcntl.F_UNLCK else 0
    except (OSError, ValueError):
        return 0
