"""The operator's index: where packages of a server's users come from, in place of PyPI.

A user who names a default index, or none at all (`--no-index`), has that instead; further indexes and directories of a
user come before the operator's. Users share environments of it, as those of PyPI. It holds no credentials: code of
packages, which users choose, runs in some builds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from atoll.environments.asked.requirements import Requirements
from atoll.model.options.environments import EnvironmentsSettings

_DEFAULTS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")


@dataclass(frozen=True)
class OperatorIndex:
    """Addresses of the operator's choice; directories are `file:` addresses.

    Args:
        default: takes the place of PyPI; empty for PyPI itself.
        extra: asked before it, in order: the first index that has a package gives it.
        links: directories or pages of packages.
    """

    default: str = ""
    extra: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


NO_INDEX = OperatorIndex()


def of_settings(options: EnvironmentsSettings) -> OperatorIndex:
    """Return the index that settings name."""
    extra, links = (tuple(map(_address, one)) for one in (options.users_extra_index_urls, options.users_find_links))
    return OperatorIndex(_address(options.users_index_url), extra, links)


def _address(text: str) -> str:
    return f"file://{quote(text)}" if text.startswith("/") else text


def missing(operator: OperatorIndex) -> str:
    """Return the first directory that is not there; empty where all are."""
    for address in (operator.default, *operator.extra, *operator.links):
        path = unquote(urlsplit(address).path) if address.startswith("file:") else ""
        if path and not os.path.isdir(path):
            return path
    return ""


def is_replaced(settings: Mapping[str, str], requirements: Requirements, configuration: Mapping[str, Any]) -> bool:
    """Return whether a request names a default index of its own, or none.

    Args:
        settings: as the caller sent them.
        configuration: the caller's `uv.toml`.
    """
    if any(settings.get(name) for name in _DEFAULTS):
        return True
    if any(name in ("--index-url", "--no-index") for name, _ in requirements.options):
        return True
    for table in (configuration, configuration.get("pip")):
        if isinstance(table, dict):
            if table.get("index-url") or table.get("no-index"):
                return True
            listed = table.get("index")
            indexes = listed if isinstance(listed, list) else []
            if any(isinstance(one, dict) and one.get("default") is True for one in indexes):
                return True
    return False
