"""Requirements as records, logs and messages may show them: addresses without credentials. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

_USER = r"[^/\s?#\"'<>]*"
"""Name and password before the last `@` of an address: a password may hold an `@` that its author has not quoted."""


def strip_credentials(text: str) -> str:
    """Return `text` with the user information of every address in it removed."""
    return re.sub(rf"(?<=://){_USER}@", "", text)


def redact(text: str) -> str:
    """Return `text` as a record, a log or a message may show it: addresses without user information and query."""
    text = strip_credentials(text)
    if "://" not in text or "?" not in text:
        return text
    return "".join("#".join(map(_without_query, word.split("#"))) for word in re.split(r"(\s+)", text))


def _without_query(part: str) -> str:
    start = part.find("://")
    end = part.find("?", start) if start >= 0 else -1
    return part if end < 0 else part[:end]


def secrets_in(text: str) -> set[str]:
    """Return the passwords, tokens and names that the addresses in `text` carry."""
    found: set[str] = set()
    for user_information in re.findall(rf"://({_USER})@", text):
        name, _, password = user_information.partition(":")
        for secret in (password, unquote(password), *(() if password else (name, unquote(name)))):
            if len(secret) > 2:
                found.add(secret)
    return found - {"git"}


def without_query(address: str) -> str:
    """Return an index's address as the key knows it: where it is, not how one is let in."""
    parts = urlsplit(address)
    if not parts.scheme:
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
