"""Settings of package indexes that name places of this machine, for a server: uploaded, or refused by name.

A directory of packages is uploaded; an index in a directory is not, since it has too much and no list. A request without
requirements needs neither: it goes without them, and says so to the server (`asked.credentials.LOCAL`), which refuses
functions that are called from there and have requirements.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from atoll.environments.asked import credentials
from atoll.environments.asked.credentials import LOCAL, Pairs
from atoll.environments.asked.uploaded import LINKS_SETTINGS, SCHEME
from atoll.errors import EnvironmentBuildError
from atoll.host.remote import package_uploads
from atoll.host.remote.local_packages import index_refused
from atoll.host.remote.package_directories import packages_in, path_of
from atoll.terminal_text import printable

_MOST_SHOWN = 300
_LISTS = ("index-url", "extra-index-url", "index")


def travelling(host: Any, index: Pairs, python_version: str) -> Pairs:
    """Return the settings of a request with requirements, with names of uploads in place of directories.

    Args:
        host: has `server` and `identity`.
        python_version: of the function.

    Raises:
        EnvironmentBuildError: an index is a directory of this machine, or a directory cannot be uploaded.
    """
    found = dict(index)
    directories: list[str] = []
    if text := found.get("uv.toml"):
        found["uv.toml"], directories = _configuration(text)
    for name, text in list(found.items()):
        for word in _words(name, text):
            path = _path_of(name, word)
            if path is not None and name not in LINKS_SETTINGS:
                raise index_refused(name, path)
    links = next((name for name in LINKS_SETTINGS if name in found), LINKS_SETTINGS[0])  # the first one counts
    words = [_uploaded(host, links, word, python_version) for word in _words(links, found.get(links, ""))]
    words += [_uploaded(host, "find-links", one, python_version) for one in directories]
    for name in LINKS_SETTINGS:
        found.pop(name, None)
    if words:
        found[links] = ("," if links == "UV_FIND_LINKS" else " ").join(dict.fromkeys(words))
    return tuple(sorted((name, text) for name, text in found.items() if text))


def left_out(index: Pairs) -> Pairs:
    """Return the settings of a request without requirements: without places of this machine, which they name."""
    kept: dict[str, str] = {}
    first = ""
    for name, text in index:
        if name == "uv.toml":
            data = credentials.toml(text)
            local = next((one for one in credentials.indexes_of(data, explicit=False) if path_of(one) is not None), "")
            first = first or (f"`uv.toml`: `{local}`" if local else "")
            kept[name] = "" if local else text
            continue
        words = _words(name, text)
        local = next((word for word in words if _path_of(name, word) is not None), "")
        first = first or (f"`{name}`: `{local}`" if local else "")
        kept[name] = " ".join(word for word in words if _path_of(name, word) is None) if local else text
    if first:
        kept[LOCAL] = first[:_MOST_SHOWN]
    return tuple(sorted((name, text) for name, text in kept.items() if text))


def _words(name: str, text: str) -> list[str]:
    """Return the addresses and paths of a setting; none for one that has no such."""
    if not credentials.INDEX.fullmatch(name):
        return []
    return (text.replace(",", " ") if name == "UV_FIND_LINKS" else text).split()


def _path_of(name: str, word: str) -> str | None:
    if name in ("UV_INDEX", "UV_DEFAULT_INDEX"):
        word = re.sub(r"^[\w-]+=", "", word)  # an index may have a name
    return None if word.startswith(SCHEME) else path_of(word)


def _uploaded(host: Any, source: str, word: str, python_version: str) -> str:
    path = _path_of(source, word)
    if path is None:
        return word
    return SCHEME + package_uploads.send_directory(host, packages_in(path, source, python_version))


def _configuration(text: str) -> tuple[str, list[str]]:
    """Return a `uv.toml` without its directories of packages, and these.

    Raises:
        EnvironmentBuildError: it names an index on this machine.
    """
    data = credentials.toml(text)
    if all(path_of(address) is None for address in credentials.indexes_of(data, explicit=False)):
        return text, []
    kept, directories = _table(data)
    if isinstance(data.get("pip"), dict):
        kept["pip"], more = _table(data["pip"])
        directories += more
    return credentials.index_settings(kept), directories


def _table(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    for address in credentials.indexes_of({name: table.get(name) for name in _LISTS}, explicit=False):
        if (path := path_of(address)) is not None:
            raise index_refused("uv.toml", path)
    links = table.get("find-links")
    listed = [one for one in links if isinstance(one, str)] if isinstance(links, list) else []
    local = [one for one in listed if path_of(one) is not None]
    for one in local:
        if not os.path.isabs(one) and not one.lower().startswith("file:"):
            raise EnvironmentBuildError(
                f"`find-links` in `uv.toml` names the relative path `{printable(one)}`", hint="give it from the root on"
            )
    rest = {**table, "find-links": [one for one in listed if one not in local]} if local else dict(table)
    return rest, local
