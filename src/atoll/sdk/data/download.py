"""`download`: a file of the network, on the volume, once.

Inside a function it works on `/data` itself. In the caller's process it is a call of a function without requirements,
so that the file lands in the volume of the host, by the host's network; a `file:` address of the caller's machine is
uploaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll import settings
from atoll.errors import DownloadError, SourceNotFound
from atoll.wire import nested

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.sdk.option_types import Network
    from atoll.storage.downloads.download import Kept, Request
    from atoll.storage.downloads.http import Origin

_SANDBOX = "/opt/atoll/"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
_MAX_CERTIFICATES_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20

_Path: type[pathlib.PurePath] = pathlib.PosixPath if os.name == "posix" else pathlib.PurePosixPath


def download(
    url: str,
    sha256: str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    headers: Mapping[str, str] | None = None,
    force: bool = False,
    max_bytes: int | None = None,
    timeout: float = 60.0,
    host: Host | None = None,
    network: Network | None = None,
) -> str:
    """Have a file of the network on the volume, downloaded once, and return its path there.

    However many calls ask for it at the same time, from whatever workers, one of them downloads and the others wait
    for it; when that one dies another goes on behind what has arrived. The file is there whole or not at all. When it
    is there already and is what was downloaded, it is returned without the network, for ever: pass `force` to download
    anew. Broken connections and a server's passing troubles are tried again, with growing pauses.

    Args:
        url: `https:`, `http:` or `file:`. A user and password in it are sent to its host only, and appear in no
            message, like the query of the address.
        sha256: the digest, in hexadecimal, that the content must have. A file at the place that has another one is
            replaced, and one that has it is taken whatever address it came from.
        path: the place, absolute and below `/data` or relative to it; by default a place below
            `/data/.cache/atoll/downloads` that is decided by the address. A file of yours that stands there is taken
            as it is where no `sha256` is given.
        headers: sent to the address's own host, not to those that it redirects to.
        force: download again; processes that have the old file open keep it.
        max_bytes: refuse a larger file.
        timeout: seconds that the server may be silent.
        host: whose volume; in the caller's process only; the local host's by default.
        network: of the function that downloads, in the caller's process only; see `isolated`.

    Returns:
        the absolute path inside a function.

    Raises:
        DownloadError: the file cannot be downloaded; an old one is unchanged.
        ChecksumMismatch: the content has another digest than `sha256`; the same.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; the same.
        ValueError: an address, digest, header or path is malformed.
    """
    from atoll.storage.client.volume import absolute

    asked = _Asked(url, path, {"sha256": sha256}, headers, force, max_bytes, timeout)
    kept = _have(asked, host, network)
    return absolute(kept.path)


class DownloadedFile(_Path):  # type: ignore[misc, valid-type]  # which class it is depends on the platform
    """The path of a downloaded file, with the attributes that `fal_serverless` had: `path`, `size` and digests."""

    size = 0
    checksum_sha256: str | None = None
    checksum_md5: str | None = None

    @property
    def path(self) -> pathlib.PurePath:
        """The path itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _downloaded, (str(self), self.size, self.checksum_sha256, self.checksum_md5)


def _downloaded(path: str, size: int, sha256: str | None, md5: str | None) -> DownloadedFile:
    file = DownloadedFile(path)
    file.size, file.checksum_sha256, file.checksum_md5 = size, sha256, md5
    return file


def download_file(
    url: str,
    check_location: str | os.PathLike[str] | None = None,
    checksum_sha256: str | None = None,
    checksum_md5: str | None = None,
    force: bool = False,
    *,
    target_dir: str | os.PathLike[str] | None = None,
    request_headers: Mapping[str, str] | None = None,
    filesize_limit: int | None = None,
    host: Host | None = None,
) -> DownloadedFile:
    """Download to a place of one's own, as `download` does, by the names that programs for `fal_serverless` use.

    Args:
        url, force: see `download`.
        check_location: the path of the file; relative to `/data`, or absolute and below it. One that ends in `/` is a
            directory.
        checksum_sha256, checksum_md5: digests that the content must have.
        target_dir: a directory instead; the file in it has the name that the address ends in.
        request_headers: see `headers` of `download`.
        filesize_limit: in MiB.

    Raises:
        see `download`.
    """
    from atoll.storage.client.volume import absolute
    from atoll.storage.downloads.addresses import file_name

    location = target_dir if check_location is None else check_location
    if location is None or (check_location is not None and target_dir is not None):
        raise TypeError("`download_file` needs either `check_location`, the path of the file, or `target_dir`")
    place = os.fspath(location)
    if target_dir is not None or place.endswith("/"):
        place = f"{place.rstrip('/')}/{file_name(url)}"
    most = None if filesize_limit is None else filesize_limit << 20
    digests = {"sha256": checksum_sha256, "md5": checksum_md5}
    kept = _have(_Asked(url, place, digests, request_headers, force, most), host, None)
    return _downloaded(absolute(kept.path), kept.size, kept.digests.get("sha256"), kept.digests.get("md5"))


def download_weights(
    url: str,
    checksum_sha256: str | None = None,
    checksum_md5: str | None = None,
    force: bool = False,
    *,
    request_headers: Mapping[str, str] | None = None,
    host: Host | None = None,
) -> DownloadedFile:
    """Download to the place that `fal_serverless` gave to an address, `/data/.fal/downloads/` and a digest of it.

    See `download_file`.
    """
    place = f"/data/.fal/downloads/{hashlib.sha256(url.encode()).hexdigest()}"
    return download_file(url, place, checksum_sha256, checksum_md5, force, request_headers=request_headers, host=host)


# --- the common path ------------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """The arguments of the public functions."""

    url: str
    path: str | os.PathLike[str] | None
    digests: Mapping[str, str | None]
    headers: Mapping[str, str] | None
    force: bool
    max_bytes: int | None
    timeout: float = 60.0


def _have(asked: _Asked, host: Host | None, network: Network | None) -> Kept:
    """Download, in the sandbox or process that can, unless the file exists already."""
    from atoll.storage.downloads.download import Request
    from atoll.storage.downloads.http import Origin

    sums = {name: _checked(name, digest) for name, digest in asked.digests.items() if digest is not None}
    if (asked.max_bytes is not None and asked.max_bytes < 0) or not asked.timeout > 0:
        raise ValueError("`max_bytes` cannot be negative, and `timeout` must be a number of seconds")
    wanted = Request(_place(asked.url, asked.path), sums, bool(asked.force), asked.max_bytes)
    origin = Origin(asked.url, dict(asked.headers or {}), float(asked.timeout), _certificates(), bool(sums))
    if inside():
        if host is not None or network is not None:
            raise ValueError("`host` and `network` are for the caller's process; a function works on its own `/data`")
        return _on_this_volume(origin, wanted, _terminal())
    if asked.url.startswith("file:"):
        return _upload(origin, wanted, host)
    from atoll.sdk.decorator import isolated

    proxies = {name: value for name, value in settings.index_variables().items() if name in _PROXIES}
    function = isolated(_on_this_volume).on(host=host, network=network, env=proxies)
    kept: Kept = function(origin, wanted, _terminal())
    return kept


def inside() -> bool:
    """Return True in a sandbox: in a worker, or a process that a function has started."""
    return nested.inside() or __file__.startswith(_SANDBOX)


def _on_this_volume(origin: Origin, wanted: Request, terminal: bool) -> Kept:
    """Download to `/data` of this sandbox."""
    from atoll.storage.downloads.download import Downloads

    with _progress(terminal, wanted.path) as progress:
        return Downloads("/data", progress).get(origin, wanted)


def _upload(origin: Origin, wanted: Request, host: Host | None) -> Kept:
    """Put a file of the caller's machine on the volume, unless it is there."""
    from dataclasses import replace

    from atoll.sdk.decorator import isolated
    from atoll.storage.client.volume import VolumeClient
    from atoll.storage.downloads.download import Request, mismatch
    from atoll.storage.downloads.note import digests_of

    if host is None:
        from atoll.host.default import default_host

        host = default_host()
    local_path = urllib.parse.unquote(urllib.parse.urlsplit(origin.address).path)
    if not os.path.isfile(local_path):
        raise DownloadError(
            f"there is no file `{local_path}`", hint="a `file:` address is one of the machine that the program runs on"
        )
    try:
        found = digests_of(local_path, {"sha256", *wanted.digests})
        for name, digest in wanted.digests.items():
            if found[name] != digest:
                raise mismatch(origin.shown, name, digest, found[name])
        exact = Request(wanted.path, {"sha256": found["sha256"], **wanted.digests}, wanted.force, wanted.max_bytes)
        there = isolated(_standing).on(host=host)
        kept: Kept | None = there(origin, exact)
        if kept is None:
            with VolumeClient(host.open_storage()) as volume, open(local_path, "rb") as file:
                volume.write(wanted.path, _pieces(file))
            kept = there(origin, replace(exact, force=False))
    except FileNotFoundError as error:
        raise SourceNotFound(f"`{local_path}` is gone", hint="mend the path") from error
    if kept is None:
        raise DownloadError(f"`{local_path}` changed while it was read", hint="try again when it is complete")
    return kept


def _standing(origin: Origin, wanted: Request) -> Kept | None:
    from atoll.storage.downloads.download import Downloads

    return None if wanted.force else Downloads("/data").find(wanted, origin.url)


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


# --- arguments ------------------------------------------------------------------------------------------------------


def _checked(name: str, digest: str) -> str:
    length = {"sha256": 64, "md5": 32}[name]
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", digest):
        raise ValueError(f"a {name} digest has {length} hexadecimal digits, not `{digest}`")
    return digest.lower()


def _place(url: str, path: str | os.PathLike[str] | None) -> str:
    """Return where the file goes, relative to the volume's root."""
    from atoll.storage.client.volume import volume_path
    from atoll.storage.downloads.addresses import address_of, file_name, host_name
    from atoll.storage.downloads.note import SHELF

    if path is None:
        key = hashlib.sha256(address_of(url).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{SHELF}/{host_name(url)}-{key}/{file_name(url)}"
    place = volume_path(path)
    if not place or os.fspath(path).endswith("/"):
        raise ValueError("`path` must name a file below `/data`")
    return place


def _certificates() -> str:
    """Return the caller's own bundle of certificates, which the function that downloads does not see."""
    named = settings.index_variables()
    path = named.get("SSL_CERT_FILE") or named.get("REQUESTS_CA_BUNDLE") or ""
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(_MAX_CERTIFICATES_BYTES)


# --- progress -------------------------------------------------------------------------------------------------------


def _terminal() -> bool:
    try:
        return sys.stderr.isatty() and settings.terminal()[0]
    except (AttributeError, ValueError):
        return False


@contextlib.contextmanager
def _progress(terminal: bool, path: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a download is on the last line of the caller's terminal."""
    if not terminal:
        yield lambda _done, _total: None
        return
    import time

    from atoll.storage.protocol.progress import size_text
    from atoll.terminal_text import printable

    name, began, last = printable(path.rpartition("/")[2])[-40:], time.monotonic(), [0.0, -1.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if last[1] < 0:
            last[1] = done
        if now - last[0] < 0.1:
            return
        last[0] = now
        rate = (done - last[1]) / max(now - began, 1e-3)
        of = f"/{size_text(total)} ({100 * done // max(total, 1)} %)" if total >= 0 else ""
        sys.stderr.write(f"\rdownloading {name}: {size_text(done)}{of}, {size_text(rate)}/s\x1b[K")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if last[0]:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
