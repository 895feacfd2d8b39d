"""The owner's credentials that a build may see: pure.

Code of packages runs while sources are built, and can read its builder's files. So a build never gets the files of the
owner's home, but extracts: from a netrc the entries of the hosts in use, from a `uv.toml` the settings that installing
needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from atoll.environments.asked.requirements import redact

_NOT_FOR_BUILDS = frozenset(
    {
        "publish-url",
        "check-url",
        "trusted-publishing",
        "python-install-mirror",
        "pypy-install-mirror",
        "python-downloads-json-url",
    }
)
_FIELDS = ("login", "user", "account", "password")


def host_of(address: str) -> str:
    """Return the host that an address names, which may have an index's name before it (`own=https://…`); else ``."""
    _, separator, rest = address.partition("://")
    words = rest.split()
    try:
        return (urlsplit(f"any://{words[0]}").hostname or "") if separator and words else ""
    except ValueError:
        return ""


def netrc_of(text: str, hosts: Iterable[str]) -> str:
    """Return the lines of a netrc that `hosts` need; an entry for all hosts becomes one for each that has none."""
    entries = dict(_entries(text))
    everyone = entries.pop("", ())
    lines = []
    for host in sorted(set(hosts) - {""}):
        fields = entries.get(host, everyone)
        if fields:
            lines.append(f"machine {host} {' '.join(fields)}\n")
    return "".join(lines)


def _entries(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give each entry's host (empty for the default) and its fields as they are written; the last one of a host counts."""
    host, fields = "", list[str]()
    words = _words(text)
    for word in words:
        if word in ("machine", "default"):
            if fields:
                yield host, tuple(fields)
            host, fields = (next(words, "").strip('"').lower() if word == "machine" else ""), []
        elif word in _FIELDS:
            fields += [word, next(words, '""')]
    if fields:
        yield host, tuple(fields)


def _words(text: str) -> Iterator[str]:
    macro = False
    for line in text.splitlines():
        macro = macro and bool(line.strip())  # a macro ends with an empty line
        if macro or line.lstrip().startswith("#"):
            continue
        for word in re.findall(r'"(?:[^"\\]|\\.)*"|\S+', line):
            if word == "macdef":
                macro = True
                break
            yield word


def indexes_of(configuration: Mapping[str, Any]) -> list[str]:
    """Return the addresses that a `uv.toml` takes packages from."""
    found: list[str] = []
    for table in (configuration, configuration.get("pip")):
        if isinstance(table, dict):
            values = [table.get("index-url"), *_list(table.get("extra-index-url")), *_list(table.get("find-links"))]
            values += [index.get("url") for index in _list(table.get("index")) if isinstance(index, dict)]
            found += [value for value in values if isinstance(value, str)]
    return found


def for_builds(configuration: Mapping[str, Any], *, credentials: bool) -> str:
    """Return a `uv.toml` with the settings of another that installing needs, without comments.

    Args:
        credentials: whether the addresses in it keep theirs.
    """
    return "".join(f"{json.dumps(name)} = {text}\n" for name, text in _pairs(configuration, credentials))


def _pairs(table: Mapping[str, Any], credentials: bool) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if name not in _NOT_FOR_BUILDS:
            yield name, _toml(value, credentials)


def _toml(value: Any, credentials: bool) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(name)} = {text}" for name, text in _pairs(value, credentials))
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        # an index that is for packages that ask for it by name is not in use here
        used = [item for item in value if not (isinstance(item, dict) and item.get("explicit") is True)]
        return "[" + ", ".join(_toml(item, credentials) for item in used) + "]"
    if isinstance(value, str):
        text = json.dumps(value if credentials else redact(value), ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
