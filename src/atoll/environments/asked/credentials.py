"""The caller's credentials that a build may see: pure.

Code of packages runs while sources are built, and can read its builder's files. So a build never gets whole files, but
extracts: from a netrc the entries of the hosts in use, from a `uv.toml` the settings that installing needs. A function's
own requests get none of its program's credentials: they would install what only these let in, and show it to the
function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from atoll.environments.asked.redaction import redact, strip_credentials
from atoll.errors import EnvironmentBuildError

Pairs = tuple[tuple[str, str], ...]

WITHHELD = "withheld"
"""The name of the pair that `without_credentials` adds, so that a failed build's hint can tell of them."""

LOCAL = "local"
"""The name of the pair of a program whose settings name a place of its machine, which no server reads."""

_PYTHONS = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL")
INDEX = re.compile(r"(UV|PIP)_(.*_)?(INDEX|INDEX_URL|LINKS)")
"""The variables with addresses of packages."""

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
_INDEX_SETTINGS = frozenset(
    {
        "index",
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "index-strategy",
        "prerelease",
        "resolution",
        "exclude-newer",
        "no-binary",
        "only-binary",
        "no-binary-package",
        "allow-insecure-host",
        "native-tls",
        "system-certs",
    }
)
_FIELDS = ("login", "user", "account", "password")


@lru_cache(maxsize=32)
def without_credentials(pairs: Pairs) -> Pairs:
    """Return settings (see `index`) without their credentials; the same where they have none.

    Credentials are names, passwords and queries in addresses, and netrc entries.

    Raises:
        EnvironmentBuildError: the configuration of uv cannot be read.
    """
    cleaned = {name: _cleaned(name, text) for name, text in pairs if name != "netrc"}
    if tuple(cleaned.items()) == pairs:
        return pairs
    return tuple(sorted({**cleaned, WITHHELD: "1"}.items()))


def _cleaned(name: str, text: str) -> str:
    if name == "uv.toml":
        return for_builds(toml(text), credentials=False) if configuration_lets_in(text) else text
    if "proxy" in name.lower():
        return shown_proxy(text)
    between = r"(\s+|,(?=[\w.+-]+:|/))" if name == "UV_FIND_LINKS" else r"(\s+)"
    return "".join(redact(word) for word in re.split(between, strip_credentials(text))) if "://" in text else text


def shown_proxy(text: str) -> str:
    """Return a proxy's address, which may have no scheme, without credentials."""
    return redact(text) if "://" in text else text.rpartition("@")[2]


def configuration_lets_in(text: str) -> bool:
    """Return whether a `uv.toml` holds credentials.

    Raises:
        EnvironmentBuildError: it is not TOML.
    """
    if "@" not in text and "?" not in text:
        return False
    data = toml(text)
    return redact(text) != text or for_builds(data, credentials=True) != for_builds(data, credentials=False)


def refuse_host_paths(pairs: Pairs, *, needed: bool) -> Pairs:
    """Return settings as callers may have them that name no files of this machine.

    A `uv.toml` is reduced to the settings about indexes, since others name paths that uv writes to. A source of Pythons
    is left out, since the daemon runs what it installs to learn its version.

    Args:
        needed: whether the request has requirements; otherwise local indexes are left out, too.

    Raises:
        EnvironmentBuildError: a setting names a local path; the message names it.
    """
    kept = []
    for name, text in pairs:
        named = _local_path(text) if INDEX.fullmatch(name) else ""
        if name == "uv.toml":
            named = next((local for one in indexes_of(toml(text), explicit=False) if (local := _local_path(one))), "")
        if named and needed:
            raise EnvironmentBuildError(
                f"`{name}` names the local path `{redact(named)[:200]}`, which is not for this user",
                hint="use an index of the network",
            )
        if not named and name not in _PYTHONS:
            kept.append((name, index_settings(toml(text)) if name == "uv.toml" else text))
    return tuple(pair for pair in kept if pair[1])


def _local_path(text: str) -> str:
    """Return the first word that is no address of the network."""
    for word in re.split(r"[\s,]+", text.strip()):
        address = word.rpartition("=")[2] if "=" in word.split("://")[0] else word  # an index may have a name
        if not address.lower().startswith(("https://", "http://")):
            return address
    return ""


def toml(text: str) -> dict[str, Any]:
    """Return a `uv.toml` as data.

    Raises:
        EnvironmentBuildError: it is not TOML.
    """
    if not text:
        return {}
    import tomllib  # most users have no `uv.toml`: 4 ms of the daemon's start

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise EnvironmentBuildError(f"uv's configuration is not TOML: {error}", hint="mend your `uv.toml`") from error


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


def indexes_of(configuration: Mapping[str, Any], *, explicit: bool = True) -> list[str]:
    """Return the addresses that a `uv.toml` takes packages from.

    Args:
        explicit: those too that only packages take which ask for them by name; here none does.
    """
    found: list[str] = []
    for table in (configuration, configuration.get("pip")):
        if isinstance(table, dict):
            values = [table.get("index-url"), *_list(table.get("extra-index-url")), *_list(table.get("find-links"))]
            indexes = [one for one in _list(table.get("index")) if isinstance(one, dict)]
            values += [one.get("url") for one in indexes if explicit or one.get("explicit") is not True]
            found += [value for value in values if isinstance(value, str)]
    return found


def index_settings(configuration: Mapping[str, Any]) -> str:
    """Return a `uv.toml` with only the settings of another that choose packages and their source."""
    kept = {name: value for name, value in configuration.items() if name in _INDEX_SETTINGS}
    table = configuration.get("pip")
    if isinstance(table, dict):
        kept["pip"] = {name: value for name, value in table.items() if name in _INDEX_SETTINGS}
    return for_builds(kept, credentials=True)


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
        text = json.dumps(value if credentials else _without(value), ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _without(value: str) -> str:
    return redact(value) if "://" in value else re.sub(r"^[^\s/@]*:[^\s/]*@", "", value)  # a proxy needs no scheme


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
