"""Where packages come from: the caller's settings, in the words that the builder's process understands.

Settings of pip count where uv has none of the same meaning. What may hold credentials (variables, netrc, `uv.toml`)
goes to the builder's process only: `Index` does not show it, and `facts`, which the key is made of, has none.
"""

from __future__ import annotations

import configparser
import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll.environments.requirements import Requirements, secrets_in, without_query
from atoll.model.places import Bind

CONFIGURATION = "/opt/atoll-configuration"
"""Where the build sandbox has the files that decide how to connect."""

_PASSED = (
    "UV_INDEX_STRATEGY",
    "UV_OFFLINE",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "UV_INSECURE_HOST",
    "UV_HTTP_TIMEOUT",
    "UV_EXCLUDE_NEWER",
    "UV_PRERELEASE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
)
_DECIDING = ("UV_INDEX_STRATEGY", "UV_EXCLUDE_NEWER", "UV_PRERELEASE")


@dataclass(frozen=True)
class Index:
    """How the builder's process reaches packages.

    Args:
        variables: for its environment; may hold credentials.
        binds: certificates, and local directories that hold packages, read-only.
        private: pairs of a variable and the text of the file that it must point to; may hold credentials.
        facts: what of it decides the result, without credentials.
        secrets: texts that no log may hold.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    binds: tuple[Bind, ...] = ()
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)


def read(
    variables: Mapping[str, str], requirements: Requirements, *, home: Path, configuration: Path, system: Path
) -> Index:
    """Gather the caller's settings.

    Args:
        variables: those of `settings.INDEX_VARIABLES` that the caller has.
        requirements: their options come first.
        home, configuration: the user's home directory (netrc, `.pip/pip.conf`) and configuration directory.
        system: `/etc`.
    """
    uv_file = _first_text(
        [Path(variables["UV_CONFIG_FILE"])]
        if variables.get("UV_CONFIG_FILE")
        else [configuration / "uv" / "uv.toml", system / "uv" / "uv.toml"]
    )
    pip = {} if uv_file else _pip([system / "pip.conf", home / ".pip" / "pip.conf", configuration / "pip" / "pip.conf"])

    def words(*names: str, pip_name: str) -> list[str]:
        for name in names:
            if variables.get(name):
                text = variables[name]
                return (text.replace(",", " ") if name == "UV_FIND_LINKS" else text).split()
        return pip.get(pip_name, "").split()

    result = {name: variables[name] for name in _PASSED if variables.get(name)}
    asked = requirements.values("--index-url")
    default = asked[-1:] or words("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", pip_name="index-url")[:1]
    extra = requirements.values("--extra-index-url")
    extra += words("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL", pip_name="extra-index-url")
    links = requirements.values("--find-links")
    links += words("UV_FIND_LINKS", "PIP_FIND_LINKS", pip_name="find-links")
    if extra and not variables.get("UV_INDEX") and not variables.get("UV_EXTRA_INDEX_URL"):
        # pip's own words mean what they mean to pip: the indexes are one, and the best version of all wins
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    extra, links = list(dict.fromkeys(extra)), list(dict.fromkeys(links))

    for name, value in (("UV_DEFAULT_INDEX", default), ("UV_INDEX", extra), ("UV_FIND_LINKS", links)):
        if value:
            result[name] = ("," if name == "UV_FIND_LINKS" else " ").join(value)
    binds = _local_directories([*default, *extra, *links])
    binds += _certificates(variables, pip, result)
    private: list[tuple[str, str]] = []
    secrets = {secret for text in result.values() for secret in secrets_in(text)}
    if uv_file:
        private.append(("UV_CONFIG_FILE", uv_file))
        secrets |= secrets_in(uv_file)
    netrc = _first_text([Path(variables["NETRC"])] if variables.get("NETRC") else [home / ".netrc"])
    if netrc:
        private.append(("NETRC", netrc))
        fields = netrc.split()
        secrets |= {value for name, value in itertools.pairwise(fields) if name == "password" and len(value) > 2}
    facts = {
        "default": [without_query(address) for address in default],
        "extra": [without_query(address) for address in extra],
        "links": [without_query(address) for address in links],
        "settings": [[name, result[name]] for name in _DECIDING if result.get(name)],
        "file": hashlib.blake2b(uv_file.encode(), digest_size=16).hexdigest() if uv_file else "",
    }
    return Index(result, tuple(binds), tuple(private), facts, frozenset(secrets))


def _first_text(paths: list[Path]) -> str:
    for path in paths:
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _pip(paths: list[Path]) -> dict[str, str]:
    """Return pip's options of the files that there are, later ones first in rank."""
    options: dict[str, str] = {}
    for path in paths:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                options.update({name.replace("_", "-"): value for name, value in parser.items(section)})
    return options


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


def _certificates(variables: Mapping[str, str], pip: Mapping[str, str], result: dict[str, str]) -> list[Bind]:
    binds = []
    file = variables.get("SSL_CERT_FILE") or variables.get("REQUESTS_CA_BUNDLE") or pip.get("cert", "")
    if file and os.path.isfile(file):
        target = f"{CONFIGURATION}/certificates.pem"
        binds.append(Bind(os.path.realpath(file), target))
        result["SSL_CERT_FILE"] = result["GIT_SSL_CAINFO"] = result["PIP_CERT"] = target
    directory = variables.get("SSL_CERT_DIR", "")
    if directory and os.path.isdir(directory):
        target = f"{CONFIGURATION}/certificates"
        binds.append(Bind(os.path.realpath(directory), target))
        result["SSL_CERT_DIR"] = target
    return binds
