"""A server as its clients reach it: connections over TLS and proxies, and an error with the next step for each failure."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from atoll import __version__, errors
from atoll.credentials import Credentials, address_hint
from atoll.host.remote import patience, proxies
from atoll.terminal_text import printable
from atoll.wire import line, websocket

VERSIONS = "1"
"""Versions of the protocol that this client speaks."""
CONNECT_SECONDS = 10.0
MOST_HEAD_BYTES = 64 << 10
MOST_ERROR_BYTES = 256 << 10
MOST_ANSWER_BYTES = 256 << 20
_RETRIED = (429, 502, 503, 504)


class Refused(Exception):
    """The server has refused a line.

    Args:
        status: of its answer.
        error: for the caller.
    """

    def __init__(self, status: int, error: errors.AtollError) -> None:
        super().__init__(status)
        self.status = status
        self.error = error

    @property
    def passes(self) -> bool:
        """True if another attempt may fare better."""
        return self.status in _RETRIED


class Upgraded(NamedTuple):
    """A connection that has become a WebSocket."""

    socket: Any
    session: str
    taken: int
    rest: bytes


class Server:
    """A server and the key that it knows this user by.

    Args:
        found: both.
    """

    def __init__(self, found: Credentials) -> None:
        parts = urlsplit(found.url)
        self.url = found.url
        self.key_id = found.key_id
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self._path = parts.path.rstrip("/")
        self._found = found
        self.reached = False
        """True once it has answered this program."""
        self._outage = patience.outage(self.shown)

    @property
    def shown(self) -> str:
        """The address for messages."""
        return f"`{printable(self.url)}`"

    @property
    def hides(self) -> bool:
        """True if masks must be real ones: bytes travel in the open, past machines that may take them for something else."""
        return not self.secure and not proxies.is_loopback(self.host)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        file = self._found.ca_file
        try:
            return ssl.create_default_context(cafile=file or None)
        except (OSError, ssl.SSLError) as error:
            raise errors.HostUnreachable(
                f"the certificates in `{printable(file)}` cannot be read: {error}",
                hint="give a file of certificates in PEM with `ca_file`, or leave it out",
            ) from error

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": self._found.authorization,
            "Atoll-Protocol": VERSIONS,
            "User-Agent": f"atoll/{__version__}",
        }

    # --- connections -------------------------------------------------------------------------------------------------

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        """Return an open connection; raises `OSError`."""
        proxy = proxies.proxy_of(self.host, self.port, secure=self.secure)
        host, port = (proxy.host, proxy.port) if proxy is not None else (self.host, self.port)
        connection = (
            http.client.HTTPSConnection(host, port, timeout=seconds, context=self._context)
            if self.secure
            else http.client.HTTPConnection(host, port, timeout=seconds)
        )
        if proxy is not None:
            connection.set_tunnel(self.host, self.port, proxy.headers)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def attempts(self, closing: threading.Event | None = None) -> patience.Attempts:
        """Return the attempts to connect: one where nothing says that there is such a server."""
        known = self.reached or self._found.reached or patience.is_asked_for()
        return patience.Attempts(self._outage, patience.seconds() if known else 0.0, closing)

    def wait_after(self, error: Exception, attempts: patience.Attempts) -> None:
        """Wait for the next attempt to connect, where a failure may pass: nothing has been sent.

        Raises:
            AtollError: it does not pass, or the time is over.
        """
        if isinstance(error, Refused):
            if not error.passes or not attempts.wait("refuses for now" if error.status == 429 else "is not ready"):
                raise error.error from None
            return
        lasts = isinstance(error, ssl.SSLCertVerificationError)
        if not self.reached:  # a name, a network or a kind of server that may be wrong
            lasts = lasts or not isinstance(error, ConnectionRefusedError | ConnectionResetError)
        if lasts or not attempts.wait("does not answer, as while it restarts"):
            raise self.unreachable(error) from error

    def _answers(self) -> None:
        self.reached = True
        self._outage.ends()

    def unreachable(self, error: Exception) -> errors.AtollError:
        """Return the named error for a failed connection."""
        proxy = proxies.proxy_of(self.host, self.port, secure=self.secure)
        way = "" if proxy is None else f" by the proxy `{proxy.host}:{proxy.port}`"
        if isinstance(error, errors.AtollError):
            return error
        if isinstance(error, ssl.SSLError):
            return tls_failure(self.url, error)
        if isinstance(error, socket.gaierror):
            return errors.HostUnreachable(
                f"no machine is called `{printable(self.host)}`{way}", hint="check the address and the network"
            )
        if isinstance(error, ConnectionRefusedError):
            return errors.HostUnreachable(
                f"nothing listens at {self.shown}{way}", hint="check the address, and that `atoll server` runs there"
            )
        if isinstance(error, TimeoutError):
            return errors.HostUnreachable(
                f"{self.shown} does not answer{way}", hint="check the network, and that a firewall lets you through"
            )
        hint = "check the address and the network"
        if not self.secure and isinstance(error, http.client.RemoteDisconnected | http.client.BadStatusLine):
            hint = "if the server speaks TLS, its address begins with `https://`"
        return errors.HostUnreachable(f"cannot reach {self.shown}{way}: {printable(str(error))}", hint=hint)

    def key_ended(self) -> errors.NotAuthorized:
        """Return the error of work that the end of the key has cut off."""
        return errors.NotAuthorized(
            f"the key for {self.shown} is not valid any more: it was revoked or has expired, or its user was removed",
            hint=f"run `atoll auth login --host {printable(self.url)}`, or ask the operator of the server for a key",
            status=401,
        )

    def open_line(self, seconds: float = CONNECT_SECONDS, resumed: str = "") -> Upgraded:
        """Return a WebSocket for a line.

        Args:
            resumed: the value of `Atoll-Resume`; empty for a new line.

        Raises:
            Refused: the server does not give one.
            OSError, http.client.HTTPException: it cannot be reached, or does not speak HTTP.
        """
        sock = self._connect(seconds).sock  # the connection is not used any further
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            key = base64.b64encode(os.urandom(16)).decode()
            fields = {
                "Host": self.host if self.port in (80, 443) else f"{_bracketed(self.host)}:{self.port}",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": key,
                "Sec-WebSocket-Protocol": line.PROTOCOL,
                **self._headers(),
                **({"Atoll-Resume": resumed} if resumed else {}),
            }
            text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            sock.sendall(f"GET {self._path}/v1/line HTTP/1.1\r\n{text}\r\n".encode("ascii"))
            status, headers, rest = _read_head(sock)
            if status != 101:
                body = _read_body(sock, headers, rest)
                raise Refused(status, self._refusal(status, headers, body))
            if headers.get("sec-websocket-accept") != websocket.accepted(key):
                raise Refused(status, self._stranger("its answer to the upgrade is another one's"))
            try:
                session, taken = line.read_session(headers["atoll-session"]), line.read_count(headers["atoll-taken"])
            except (KeyError, ValueError):
                raise Refused(status, self._stranger("it names no session")) from None
            sock.setblocking(False)
            self._answers()
            return Upgraded(sock, session, taken, rest)
        except BaseException:
            sock.close()
            raise

    def _connected(self, attempts: patience.Attempts, seconds: float) -> http.client.HTTPConnection:
        """Return an open connection, or wait for a server that restarts.

        Raises:
            AtollError: it cannot be reached.
        """
        while True:
            try:
                return self._connect(seconds)
            except (OSError, http.client.HTTPException) as error:
                self.wait_after(error, attempts)

    # --- requests ----------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, value: Any = None, *, seconds: float | None = None, most: int = 0) -> Any:
        """Make a request with a JSON body; return the JSON value of the answer.

        Args:
            most: bytes of an answer that is returned as it is; 0 for one of JSON.
            seconds: for the connection, and for each part of the answer; by default the answer has any time.

        Raises:
            AtollError: the server answers so, or cannot be reached.
        """
        body = None if value is None else json.dumps(value).encode()
        headers = {**self._headers(), **({"Content-Type": "application/json"} if body is not None else {})}
        attempts = self.attempts() if seconds is None else patience.Attempts(self._outage, 0.0)
        again = method == "GET" or path.rpartition("/")[2] in patience.READING
        while True:
            connection = self._connected(attempts, seconds or CONNECT_SECONDS)
            try:
                connection.sock.settimeout(seconds)
                connection.request(method, self._path + path, body, headers)
                answer = connection.getresponse()
                data = answer.read((most or MOST_ANSWER_BYTES) + 1)
            except (OSError, http.client.HTTPException) as error:
                if not again:
                    raise self.unreachable(error) from error
                self.wait_after(error, attempts)
                continue
            finally:
                connection.close()
            if 200 <= answer.status < 300:
                break
            found = {name.lower(): text for name, text in answer.getheaders()}
            refused = Refused(answer.status, self._refusal(answer.status, found, data[:MOST_ERROR_BYTES]))
            if not again or _described(data) is not None:
                raise refused.error
            self.wait_after(refused, attempts)  # a proxy does not reach the server behind it
        self._answers()
        return data if most else self._json(data)

    def put(self, path: str, body: BinaryIO | bytes, size: int, method: str = "PUT") -> Any:
        """Upload a file; return the JSON value of the answer.

        Raises:
            AtollError: the server answers so, or cannot be reached.
        """
        connection = self._connected(self.attempts(), CONNECT_SECONDS)
        try:
            try:
                connection.sock.settimeout(None)
                sent = {**self._headers(), "Content-Length": str(size)}
                with contextlib.suppress(ConnectionError, ssl.SSLError):  # one that refuses early answers, and closes
                    connection.request(method, self._path + path, body, sent)
                answer = connection.getresponse()
                data = answer.read(MOST_ANSWER_BYTES + 1)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            raise self.unreachable(error) from error
        if not 200 <= answer.status < 300:
            found = {name.lower(): text for name, text in answer.getheaders()}
            raise self._refusal(answer.status, found, data[:MOST_ERROR_BYTES])
        self._answers()
        return self._json(data)

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise self._stranger("its answer is not JSON") from None

    def _refusal(self, status: int, headers: dict[str, str], body: bytes) -> errors.AtollError:
        """Return the error that an answer other than success describes."""
        described = _described(body)
        if status == 404 and self._path and isinstance(described, errors.ProtocolMismatch):
            described = None  # a server's word for a path at which it has no lines
        if described is not None:
            return described
        if status in (502, 503, 504):
            return errors.HostUnreachable(
                f"{self.shown} answers {status}: the proxy does not reach the server behind it",
                hint="try again in a while",
            )
        if "atoll-protocol" in headers or status == 426:
            return errors.ProtocolMismatch(
                f"{self.shown} has answered {status} to a line",
                hint="a proxy between passes no WebSockets, or the server is too old: `deploy/` has recipes",
            )
        return self._stranger(f"it has answered {status}")

    def _stranger(self, why: str) -> errors.AtollError:
        return errors.HostUnreachable(
            f"{self.shown} is no Atoll server, or too old a one: {why}",
            hint=address_hint(self.url, "check the address, and have the server upgraded"),
        )


def tls_failure(
    url: str, error: ssl.SSLError, name_file: str = "`ca_file=` or `SSL_CERT_FILE`"
) -> errors.HostUnreachable:
    """Return the named error for TLS that fails; the hint has the way to name the certificates of an authority."""
    shown = f"`{printable(url)}`"
    if isinstance(error, ssl.SSLCertVerificationError):
        return errors.HostUnreachable(
            f"the certificate of {shown} is not one that this machine trusts: {error.verify_message}",
            hint=f"name the authority's file: {name_file}; nothing was sent",
        )
    return errors.HostUnreachable(
        f"{shown} does not speak TLS as expected: {error.reason or error}",
        hint=f"check the address: a server without TLS has one with `http://`, such as `http{printable(url)[5:]}`",
    )


def _described(body: bytes) -> errors.AtollError | None:
    """Return the error that a server has described; None for the answer of anything else."""
    try:
        error = json.loads(body)["error"]
        if error["code"] == "http" and error["message"] == "Not Found":  # of no route of a server
            return None
        return errors.from_data(error)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None


def _read_head(sock: Any) -> tuple[int, dict[str, str], bytes]:
    """Read the head of an answer; return status, headers and what follows."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = sock.recv(16 << 10)
        if not data:
            raise ConnectionResetError("the connection was closed before the answer")
        got += data
        if len(got) > MOST_HEAD_BYTES or not got.startswith(b"HTTP/1.1 "[: len(got)]):
            raise http.client.BadStatusLine("the answer is not HTTP")
    head, rest = got.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (text.partition(":") for text in lines)
    status = first.split(" ", 2)[1]
    if not re.fullmatch("[1-5][0-9][0-9]", status):
        raise http.client.BadStatusLine("the answer is not HTTP")
    return int(status), {name.strip().lower(): value.strip() for name, _, value in pairs}, rest


def _read_body(sock: Any, headers: dict[str, str], rest: bytes) -> bytes:
    """Read the body of a refusal, as far as it comes."""
    length = headers.get("content-length", "")
    most = min(int(length), MOST_ERROR_BYTES) if length.isascii() and length.isdigit() else MOST_ERROR_BYTES
    try:
        while len(rest) < most and (data := sock.recv(16 << 10)):
            rest += data
    except OSError:
        pass
    return rest[:most]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
