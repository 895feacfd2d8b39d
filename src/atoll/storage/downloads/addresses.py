"""Addresses of downloads: which are some, how they are spelled for a server, for people, and as names of files.

User, password and query may be secrets, and appear in no message and no name.
"""

from __future__ import annotations

import re
import urllib.parse

from atoll.terminal_text import printable

_NAME_BYTES = 200


def split(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address that one can download from.

    Raises:
        ValueError: it is malformed, or of another kind.
    """
    if not isinstance(url, str):
        raise TypeError("an address is a text")
    parts = urllib.parse.urlsplit(url)
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"`{shown(url)}` has a blank or a control character; write it as `%20`")
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError(f"`{shown(url)}` is not an address of `http:`, `https:` or `file:`")
    if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise ValueError(f"`{shown(url)}` names no file of this machine: write `file:///path`")
    if parts.scheme != "file" and not parts.hostname:
        raise ValueError(f"`{shown(url)}` has no host")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"`{shown(url)}` has a port that is no number") from None  # it may be a part of a password
    return parts


def quoted(url: str) -> str:
    """Spell an address in ASCII: names by IDNA, everything else by percent signs."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        name, colon, port = host.partition(":")
        host = name.encode("idna").decode("ascii") + colon + port
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~[]")
    return urllib.parse.urlunsplit((parts.scheme, host, path or "/", query, ""))


def address_of(url: str) -> str:
    """Return an address without user, password and fragment.

    Raises:
        ValueError: it is malformed.
    """
    parts = split(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def shown(url: str) -> str:
    """Return an address for messages: without user, password, and what its query says."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "the address"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else "", fragment="")
    return printable(urllib.parse.urlunsplit(bare))


def file_name(url: str) -> str:
    """Return a name for the file that an address leads to: the last part of its path, or `download`."""
    name = urllib.parse.unquote(split(url).path.rpartition("/")[2])
    name = re.sub(r"[\x00-\x1f\x7f/\ud800-\udfff]", "_", name)
    while len(name.encode()) > _NAME_BYTES:
        name = name[1:]  # the end has the suffix
    return name if name.strip(". ") else "download"


def host_name(url: str) -> str:
    """Return the host of an address as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", split(url).hostname or "file")[:100]
