"""The package index: the caller's settings, as variables and files of the builder's process. Pure.

The caller sends its settings as pairs: variables of uv, pip and conda (`settings.INDEX_VARIABLES`), under the names
`uv.toml` and `netrc` the contents of these files, under `certificates` the digest of certificates (`certificates`).
They may hold credentials, which go to the builder's process only. The repr of `Index` hides them.

`facts` is the key's input. Besides the addresses of packages, the *way of fetching* is in it: proxies, hosts whose
certificates are not checked, certificates, and whose credentials are used, as a digest keyed with a secret of this
machine. Two requests that fetch in different ways share neither an environment nor a cache, since the way decides what
comes, and who may have it. Where a request names none of these, the facts are those of the index alone.

Installing wheels runs no code of a package. Building sources does, and that code can read everything the builder can.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll.blake2 import blake2b
from atoll.environments.asked.credentials import (
    WITHHELD,
    configuration_lets_in,
    for_builds,
    host_of,
    indexes_of,
    netrc_of,
    shown_proxy,
    toml,
)
from atoll.environments.asked.operator_index import NO_INDEX, OperatorIndex, is_replaced
from atoll.environments.asked.redaction import redact, secrets_in, without_query
from atoll.environments.asked.requirements import Requirements
from atoll.model.mounts import Bind
from atoll.model.specs import digest

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PASSED = (
    "UV_INDEX_STRATEGY",
    "UV_OFFLINE",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "UV_INSECURE_HOST",
    "UV_HTTP_TIMEOUT",
    "UV_EXCLUDE_NEWER",
    "UV_PRERELEASE",
    *(name.upper() for name in _PROXIES),
    *_PROXIES,
)
PRIVATE = ("UV_CONFIG_FILE", "NETRC", "SSL_CERT_FILE")
"""The variables that point to files with contents of the caller."""

CERTIFICATES = ("SSL_CERT_FILE", "GIT_SSL_CAINFO", "PIP_CERT")
"""The variables by which uv, git and pip find the certificates to trust."""

_DECIDING = ("UV_INDEX_STRATEGY", "UV_EXCLUDE_NEWER", "UV_PRERELEASE")

Keyed = Callable[[str], str]
"""Gives a digest of a text that holds credentials: equal for equal texts on this machine, and worthless elsewhere."""


@dataclass(frozen=True)
class Index:
    """Settings with which the builder's process reaches packages.

    Args:
        variables: for its environment; may hold credentials.
        binds: local directories that hold packages, read-only.
        private: pairs of a variable and the text of the file that it must point to; may hold credentials.
        build_private: the same for the phase in which code of packages runs.
        complete: False where the text of its certificates is missing, so that nothing can be built.
        withholds: whether the program around the caller has credentials that are not in all of these.
        facts: the part that decides the result; credentials are in it as keyed digests.
        fetch: the part of the facts about the way of fetching; empty for the ordinary way.
        cache: names the cache of this way of fetching; empty for the ordinary one.
        secrets: texts that no log may hold.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    binds: tuple[Bind, ...] = ()
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    build_private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    complete: bool = True
    withholds: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    fetch: Mapping[str, Any] = field(default_factory=dict)
    cache: str = ""
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def certificates(self) -> str:
        """The certificates to trust, empty for the machine's."""
        return dict(self.private).get("SSL_CERT_FILE", "")


def read(
    settings: Mapping[str, str],
    requirements: Requirements,
    keyed: Keyed,
    certificates: Callable[[str], str],
    credentials: Iterable[str] = (),
    operator: OperatorIndex = NO_INDEX,
) -> Index:
    """Gather the caller's settings.

    Args:
        settings: as the caller sent them.
        requirements: their options come first.
        certificates: gives the text of certificates by their digest, empty where it is not here.
        credentials: other texts of the request that hold some.
        operator: counts where the caller names no default index.

    Raises:
        EnvironmentBuildError: the configuration of uv cannot be read.
    """

    def words(*names: str) -> list[str]:
        for name in names:
            if settings.get(name):
                text = settings[name]
                return (text.replace(",", " ") if name == "UV_FIND_LINKS" else text).split()
        return []

    result = {name: settings[name] for name in _PASSED if settings.get(name)}
    asked = requirements.values("--index-url")
    default = asked[-1:] or words("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")[:1]
    extra = requirements.values("--extra-index-url") + words("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    links = requirements.values("--find-links") + words("UV_FIND_LINKS", "PIP_FIND_LINKS")
    if extra and not settings.get("UV_INDEX") and not settings.get("UV_EXTRA_INDEX_URL"):
        # pip's options keep pip's meaning: all indexes are searched as one, and the best version wins
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    uv_file = settings.get("uv.toml", "")
    uv = toml(uv_file)
    if operator != NO_INDEX and not is_replaced(settings, requirements, uv):
        default = [operator.default] if operator.default else []
        extra, links = [*extra, *operator.extra], [*links, *operator.links]
    extra, links = list(dict.fromkeys(extra)), list(dict.fromkeys(links))

    for name, value in (("UV_DEFAULT_INDEX", default), ("UV_INDEX", extra), ("UV_FIND_LINKS", links)):
        if value:
            result[name] = ("," if name == "UV_FIND_LINKS" else " ").join(value)
    hosts = [host_of(address) for address in (*default, *extra, *links, *indexes_of(uv))]
    hosts += [host_of(package) for package in requirements.packages]
    netrc = netrc_of(settings.get("netrc", ""), hosts)
    trusted = settings.get("certificates", "")
    bundle = certificates(trusted) if trusted else ""
    secrets = {secret for text in (*result.values(), uv_file) for secret in secrets_in(text)}
    secrets |= {value for name, value in itertools.pairwise(netrc.split()) if name == "password" and len(value) > 2}
    texts = [text for text in (*default, *extra, *links, *requirements.packages) if _lets_in(text)]
    fetch = _fetch(result, requirements, [*texts, *credentials], netrc, trusted, keyed)
    facts: dict[str, Any] = {
        "default": [without_query(address) for address in default],
        "extra": [without_query(address) for address in extra],
        "links": [without_query(address) for address in links],
        "settings": [[name, result[name]] for name in _DECIDING if result.get(name)],
        "file": _digest_of(uv_file, keyed),
    }
    if fetch:  # without: the key of the ordinary way is that of versions that knew no other
        facts["fetch"] = fetch
    own = for_builds(uv, credentials=True)
    return Index(
        variables=result,
        binds=tuple(_local_directories([*default, *extra, *links])),
        private=_private(uv_file, netrc, bundle),
        build_private=_private(own, netrc, bundle),
        complete=bool(bundle) or not trusted,
        withholds=WITHHELD in settings,
        facts=facts,
        fetch=fetch,
        cache=digest({"fetch": fetch, "file": _digest_of(own, keyed)}) if fetch or own else "",
        secrets=frozenset(secrets),
    )


def _fetch(
    variables: Mapping[str, str],
    requirements: Requirements,
    credentials: Sequence[str],
    netrc: str,
    certificates: str,
    keyed: Keyed,
) -> dict[str, Any]:
    """Return the facts about the way of fetching, besides a `uv.toml`; empty for the ordinary way."""
    proxies = {name: value for name, value in variables.items() if name.lower() in _PROXIES}
    if all(name.lower() == "no_proxy" for name in proxies):
        proxies = {}
    insecure = {*re.split(r"[\s,]+", variables.get("UV_INSECURE_HOST", "")), *requirements.values("--trusted-host")}
    used = sorted({*credentials, *(value for value in proxies.values() if shown_proxy(value) != value)})
    system = any(_is_set(variables.get(name, "")) for name in ("UV_NATIVE_TLS", "UV_SYSTEM_CERTS"))
    found = {
        "proxies": sorted([name, shown_proxy(value)] for name, value in proxies.items()),
        "insecure": sorted(insecure - {""}),
        "certificates": certificates,
        "system certificates": system,
        "credentials": keyed(json.dumps([used, netrc])) if used or netrc else "",
    }
    return {name: value for name, value in found.items() if value}


def _lets_in(text: str) -> bool:
    """Return whether an address holds credentials; `git@` names none."""
    text = text.replace("://git@", "://")
    return redact(text) != text


def _is_set(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "false", "no", "off", "n", "f")


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest() if text else ""


def _digest_of(text: str, keyed: Keyed) -> str:
    """Return the digest of a `uv.toml`, keyed where it holds credentials."""
    return keyed(text) if configuration_lets_in(text) else _digest(text)


def _private(uv_file: str, netrc: str, certificates: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in zip(PRIVATE, (uv_file, netrc, certificates), strict=True) if text)


def _local_directories(addresses: list[str]) -> list[Bind]:
    binds = []
    for address in addresses:
        address = address.rpartition("=")[2] if "://" in address and "=" in address.split("://")[0] else address
        parts = urlsplit(address)
        path = unquote(parts.path) if parts.scheme == "file" else address if address.startswith("/") else ""
        if not path or not os.path.exists(path):
            continue
        path = path.rstrip("/")
        # the customary layout of an index on disk has its files beside `simple`, and links to them with `../`
        if os.path.basename(path) == "simple" and path.count("/") > 1:
            path = os.path.dirname(path)
        binds.append(Bind(path, path))
    return list(dict.fromkeys(binds))
