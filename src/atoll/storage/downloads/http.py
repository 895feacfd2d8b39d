"""The origin of a download: a `file:` or `http(s):` address, opened at an offset if the file there is unchanged.

Standard library only, because functions run this. Proxies come from the environment (`http_proxy` and the like),
certificates from the system, `SSL_CERT_FILE` or the caller.

Secrets of an address (user, password, and the query of a signed address) appear in no message. A redirect to another
host carries neither user, password nor the caller's headers.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import errno
import functools
import http.client
import io
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import DownloadError
from atoll.storage.downloads.addresses import address_of, quoted, shown, split
from atoll.storage.downloads.redirects import CheckedHttp, CheckedHttps, Redirects
from atoll.terminal_text import printable

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_ENCODING_SUFFIXES = {"gzip": (".gz", ".tgz"), "x-gzip": (".gz", ".tgz"), "br": (".br",), "zstd": (".zst",)}
_UNKNOWN_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_LONGEST_WAIT_SECONDS = 60.0
_SETTLED_SECONDS = 60.0
"""A time of modification proves a state of a file only when it is this much older than the answer (RFC 9110, 8.8.2.2)."""


@dataclass(frozen=True)
class Validators:
    """Validators of one state of a file at its origin; empty texts if the origin sends none.

    Args:
        etag: a strong entity tag.
        modified: time of modification, if old enough to prove a state.
        total: bytes in all; -1 where unknown.
    """

    etag: str = ""
    modified: str = ""
    total: int = -1

    @property
    def proof(self) -> str:
        """The value of `If-Range`; empty for none."""
        return self.etag or self.modified


def validators_of(headers: Any) -> Validators:
    """Return the reliable validators in the headers of an answer, without `total`."""
    etag = headers.get("ETag", "").strip()
    if not re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', etag):  # a weak one proves nothing about bytes
        etag = ""
    modified = headers.get("Last-Modified", "").strip()
    then, now = _moment(modified), _moment(headers.get("Date", ""))
    return Validators(etag, modified if then and now and now - then >= _SETTLED_SECONDS else "")


def _moment(text: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def range_of(text: str) -> tuple[int, int]:
    """Return start and total (-1: not told) of a `Content-Range` that goes to the end; (-1, -1) for any other."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text.strip())
    if found is None:
        return -1, -1
    total = number(found[3])
    return (int(found[1]), total) if total < 0 or int(found[2]) == total - 1 else (-1, -1)


def number(text: str | None) -> int:
    """Return a number of bytes or seconds; -1 for what is none."""
    return int(text) if text and re.fullmatch(r"\d{1,30}", text.strip()) else -1


def retry_after(text: str) -> float:
    """Return how many seconds `Retry-After` asks for; 0 where it does not say, and bounded."""
    seconds = number(text)
    return float(min(seconds, _LONGEST_WAIT_SECONDS)) if seconds > 0 else 0.0


class Transient(Exception):
    """A failure that another attempt may cure.

    Args:
        reason: text for people.
        wait_seconds: seconds that the server asks to wait; 0 for none.
        anew: the received part cannot be continued.
        status: of the server's answer, if there was one.
    """

    def __init__(
        self, reason: str, wait_seconds: float = 0.0, *, anew: bool = False, status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.wait_seconds = wait_seconds
        self.anew = anew


@dataclass
class Content:
    """An open download.

    Args:
        offset: start of the content: the requested offset, or 0.
        validators: of the state that is being read.
        stream: gives the bytes.
        complete: nothing follows the requested offset.
    """

    offset: int
    validators: Validators
    stream: Any
    complete: bool = False

    def read(self, size: int) -> bytes:
        """Return received bytes, at most `size`; none at the end.

        Raises:
            Transient: the connection broke.
        """
        try:
            piece: bytes = self.stream.read1(size)
        except http.client.IncompleteRead as error:
            raise Transient("the connection ended early") from error
        except (OSError, http.client.HTTPException) as error:
            raise Transient(_reason(error)) from error
        return piece

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.stream.close()


@dataclass
class Origin:
    """An address to download from.

    Args:
        url: `http:`, `https:` or `file:`.
        headers: sent with the request to this host.
        timeout_seconds: longest silence of the server.
        certificates: PEM texts to trust instead of the system's.
        verified: the caller checks the content's digest, so unproven content is acceptable.

    Raises:
        ValueError: the address or a header is malformed.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 60.0
    certificates: str = ""
    verified: bool = False

    def __post_init__(self) -> None:
        parts = split(self.url)
        self._scheme = parts.scheme
        self._path = urllib.parse.unquote(parts.path)
        self._headers = {"User-Agent": "atoll", "Accept": "*/*", "Accept-Encoding": "identity"}
        for name, value in self.headers.items():
            if not isinstance(name, str) or not isinstance(value, str) or re.search(r"[\r\n\0]", name + value):
                raise ValueError("`headers` must be texts by name, without line breaks")
            if name.lower() in ("range", "if-range", "accept-encoding"):
                raise ValueError(f"the header `{printable(name)}` is the download's own")
            self._headers[name.title()] = value
        if parts.username is not None and "Authorization" not in self._headers:
            secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode("ascii")
        self.address = address_of(self.url)
        """The address without user and password."""
        self.shown = shown(self.url)
        """The address for messages."""
        self.private = parts.username is not None or bool(self.headers)
        """True if other callers may get a different answer."""

    def open(self, offset: int, validators: Validators) -> Content:
        """Open the content from `offset` on if it still matches `validators`, else from its start.

        Raises:
            Transient: trying again may help.
            DownloadError: trying again cannot help.
        """
        if self._scheme == "file":
            return self._open_file(offset, validators)
        headers = dict(self._headers)
        if offset and (validators.proof or self.verified):
            headers["Range"] = f"bytes={offset}-"
            if validators.proof:
                headers["If-Range"] = validators.proof
        request = urllib.request.Request(quoted(self.address), headers=headers)  # noqa: S310  # `split` has checked
        try:
            response = self._opener().open(request, timeout=self.timeout_seconds)
        except DownloadError:  # of a redirect
            raise
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                if error.code == 416 and offset:
                    return self._beyond(error, offset, validators)
                failure = self._refused(error)
            raise failure from None  # the answer may name a signed address, and cannot be pickled
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, DownloadError):  # of a redirect's connection
                raise reason from None
            if isinstance(reason, Exception):
                raise self._unreachable(reason) from reason
            raise DownloadError(f"cannot download `{self.shown}`: {reason}", hint="check the address") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        try:
            return self._answered(response, offset if "Range" in headers else 0, validators)
        except BaseException:
            response.close()
            raise

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, response: Any, asked: int, validators: Validators) -> Content:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        named = self._path.lower().endswith(_ENCODING_SUFFIXES.get(encoding, ()))
        if encoding not in ("", "identity") and not named and not self.verified:
            raise DownloadError(
                f"`{self.shown}` is answered with the encoding `{printable(encoding)}`, which was not asked for",
                hint="give `sha256` of the bytes as they are sent, or ask the server's operator",
            )
        found = validators_of(response.headers)
        if response.status == 206:
            start, total = range_of(response.headers.get("Content-Range", ""))
            same = found.etag in ("", validators.etag) and validators.total in (-1, total)
            if start != asked or not asked or not same:
                raise Transient("the server answered with another part than was asked for", anew=True)
            return Content(asked, Validators(validators.etag, validators.modified, total), response)
        length = number(response.headers.get("Content-Length"))
        if response.headers.get("Transfer-Encoding"):
            length = -1
        return Content(0, Validators(found.etag, found.modified, length), response)

    def _beyond(self, error: urllib.error.HTTPError, offset: int, validators: Validators) -> Content:
        """Return an empty rest if the part is complete, or raise if the file has changed."""
        total = number(error.headers.get("Content-Range", "").rpartition("/")[2])
        found = validators_of(error.headers)
        if total == offset and found.etag in ("", validators.etag):
            return Content(offset, Validators(validators.etag, validators.modified, total), io.BytesIO(), complete=True)
        raise Transient("the file has changed at its origin", anew=True)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        reason = f"HTTP status {error.code} ({printable(str(error.reason))})"
        if error.code in _RETRIED:
            return Transient(reason, retry_after(error.headers.get("Retry-After", "")), status=error.code)
        hint = {
            401: "pass the credentials, as in `headers={'Authorization': 'Bearer …'}`",
            403: "pass the credentials, as in `headers={'Authorization': 'Bearer …'}`, or renew the signed address",
            404: "check the address",
            410: "check the address",
        }.get(error.code, "check the address and what the server expects")
        return DownloadError(f"cannot download `{self.shown}`: {reason}", hint=hint, status=error.code)

    def _unreachable(self, error: Exception) -> Exception:
        if isinstance(error, (socket.gaierror, OSError)) and not isinstance(error, ssl.SSLError) and shut_in():
            return DownloadError(
                f"cannot download `{self.shown}`: this function has no network",
                hint='give it `network="outbound"`, or call `download` in your program before the function',
                reason="no_network",
            )
        if isinstance(error, socket.gaierror) and error.errno in _UNKNOWN_HOST:
            return DownloadError(
                f"cannot download `{self.shown}`: there is no such host",
                hint="check the address, and that this machine's network works",
                reason="no_host",
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return DownloadError(
                f"cannot download `{self.shown}`: the server's certificate is not trusted: {error.verify_message}",
                hint="name the certificates of its authority in `SSL_CERT_FILE`",
                reason="certificate",
            )
        return Transient(_reason(error))

    # --- opening -------------------------------------------------------------------------------------------------------

    def _opener(self) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        redirects = Redirects(self.shown, verified=self.verified)
        for handler in (
            urllib.request.ProxyHandler(),
            _Http(redirects),
            _Https(redirects, self.certificates),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            redirects,
        ):
            opener.add_handler(handler)
        return opener

    def _open_file(self, offset: int, validators: Validators) -> Content:
        try:
            if not os.path.isfile(self._path) and os.path.exists(self._path):
                raise OSError(errno.EINVAL, "not an ordinary file")
            stream = open(self._path, "rb")
        except OSError as error:
            hint = "inside a function only its own files are seen: `/data`, and the directories that `mounts` names"
            raise DownloadError(f"cannot read `{self.shown}`: {_reason(error)}", hint=hint) from error
        info = os.fstat(stream.fileno())
        found = Validators(f"{info.st_ino}-{info.st_ctime_ns}", "", info.st_size)
        if offset and (offset > info.st_size or found != validators):
            offset = 0
        stream.seek(offset)
        return Content(offset, found, stream)


class _Http(urllib.request.HTTPHandler):
    """Opens `http:`."""

    def __init__(self, redirects: Redirects) -> None:
        super().__init__()
        self._redirects = redirects

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(CheckedHttp, self._redirects, request), request)


class _Https(urllib.request.AbstractHTTPHandler):
    """Opens `https:`; the system's certificates are read when there is such an address only, which takes a while."""

    def __init__(self, redirects: Redirects, certificates: str) -> None:
        super().__init__()
        self._redirects = redirects
        self._certificates = certificates

    def https_open(self, request: urllib.request.Request) -> Any:
        context = ssl.create_default_context(cadata=self._certificates or None)
        connection = functools.partial(CheckedHttps, self._redirects, request, context=context)
        return self.do_open(connection, request)

    https_request = urllib.request.AbstractHTTPHandler.do_request_


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or errno.errorcode.get(error.errno or 0, "an error")).lower()
    return f"the server's answer cannot be read ({type(error).__name__})"


def shut_in() -> bool:
    """Tell if this process has only a loopback device, as in a sandbox with `network="none"`."""
    try:
        return [name for _, name in socket.if_nameindex()] == ["lo"]
    except (OSError, AttributeError):
        return False
