"""Redirects of a download, and the connections that follow them.

A server decides where a redirect leads, so a redirect gets less than the caller's own address: no secrets at another
host, no weaker transport without a digest, and no address that only this machine reaches. A cloud's metadata service
gives credentials to everyone who asks from the machine, and the file lands on a volume that functions read.
"""

from __future__ import annotations

import http.client
import ipaddress
import urllib.parse
import urllib.request
from typing import IO, Any

from atoll.errors import DownloadError
from atoll.storage.downloads.addresses import quoted, shown, split
from atoll.terminal_text import printable

_PORTABLE_HEADERS = frozenset({"user-agent", "accept", "accept-encoding", "range", "if-range"})

NEAR_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "127.0.0.0/8", "::/127"),  # this machine
            *("169.254.0.0/16", "fe80::/10"),  # its link, with the metadata services of most clouds
            *("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),  # Alibaba, Azure, Oracle
            *("fd00:ec2::/32", "fd20:ce::254/128"),  # Amazon and Google over IPv6
        ),
    )
)
"""Networks that a redirect from elsewhere does not lead to."""


def is_near(address: str) -> bool:
    """Return whether an IP address is the machine's own, one of its link, or that of a cloud's metadata service."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return any((mapped or found) in network for network in NEAR_NETWORKS)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the redirects of one download.

    Args:
        shown_origin: the address of the download, for messages.
        verified: the caller checks the content's digest.
    """

    max_redirections = 10

    def __init__(self, shown_origin: str, *, verified: bool) -> None:
        self._shown = shown_origin
        self._verified = verified
        self._near = False

    def check_peer(self, request: urllib.request.Request, peer: str) -> None:
        """Check the IP address that a request has been connected to, before it is sent.

        Raises:
            DownloadError: a redirect has led from elsewhere to this machine or its link.
        """
        if not request.unverifiable:  # the caller's own address
            self._near = is_near(peer)
        elif is_near(peer) and not self._near:
            raise DownloadError(
                f"`{self._shown}` leads to `{shown(request.full_url)}`, an address of this machine or its link",
                hint="give that address itself if you trust it",
            )

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            scheme = urllib.parse.urlsplit(headers.get("Location", "") or headers.get("URI", "")).scheme
            if scheme not in ("", "http", "https"):  # the base class would show the whole address, with its query
                raise DownloadError(
                    f"`{self._shown}` leads to an address of the kind `{printable(scheme[:20])}:`",
                    hint="use another address",
                )
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            fp.close()
            text = f"`{self._shown}` leads to an address that cannot be used"
            raise DownloadError(text, hint="ask the server's operator") from error
        except DownloadError:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), split(newurl)
        if (old.scheme, new.scheme) == ("https", "http") and not self._verified:
            raise DownloadError(
                f"`{self._shown}` leads to `{shown(newurl)}`, where anybody on the way could change it",
                hint="give `sha256`, so that the content is verified",
            )
        bare = new._replace(netloc=new.netloc.rpartition("@")[2], fragment="")
        next_ = super().redirect_request(req, fp, code, msg, headers, quoted(urllib.parse.urlunsplit(bare)))
        fp.close()  # or the base class reads the answer's body, of any length, into memory
        if next_ is not None and (old.scheme, old.hostname, old.port) != (new.scheme, new.hostname, new.port):
            for kept in (next_.headers, next_.unredirected_hdrs):
                for name in [name for name in kept if name.lower() not in _PORTABLE_HEADERS]:
                    del kept[name]
        return next_


class CheckedHttp(http.client.HTTPConnection):
    """A connection for `http:` whose peer the redirects check."""

    def __init__(self, redirects: Redirects, request: urllib.request.Request, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._redirects = redirects
        self._request = request

    def connect(self) -> None:
        super().connect()
        if urllib.parse.unquote(urllib.parse.urlsplit(self._request.full_url).netloc) == self._request.host:
            self._redirects.check_peer(self._request, self.sock.getpeername()[0])  # else the peer is a proxy


class CheckedHttps(CheckedHttp, http.client.HTTPSConnection):
    """A connection for `https:` whose peer the redirects check."""
