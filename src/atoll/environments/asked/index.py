"""The package index: the caller's settings, as variables and files of the builder's process.

Settings of pip count where uv has none of the same meaning. Variables, netrc and `uv.toml` may hold credentials: they
go to the builder's process only. The repr of `Index` hides them, and `facts`, the key's input, has none.

Installing wheels runs no code of a package. Building sources does, and that code can read everything the builder can.
A function that asks for an environment could choose the sources, so such a build gets none of the owner's credentials.
If the function names addresses of its own, the whole request gets none: a wheel's dependencies can name variables in
their addresses, and uv expands them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll.environments.asked.credentials import for_builds, host_of, indexes_of, netrc_of
from atoll.environments.asked.requirements import INDEX_OPTIONS, Requirements, redact, secrets_in, without_query
from atoll.errors import EnvironmentBuildError
from atoll.model.mounts import Bind

CONFIGURATION = "/opt/atoll-configuration"
"""The build sandbox's directory of files about proxies and certificates."""

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
PRIVATE = ("UV_CONFIG_FILE", "NETRC")
"""The variables that point to files which may hold credentials."""

_DECIDING = ("UV_INDEX_STRATEGY", "UV_EXCLUDE_NEWER", "UV_PRERELEASE")


@dataclass(frozen=True)
class Index:
    """Settings with which the builder's process reaches packages.

    Args:
        variables: for its environment; may hold credentials.
        binds: certificates, and local directories that hold packages, read-only.
        private: pairs of a variable and the text of the file that it must point to; may hold credentials.
        withholds: whether the owner has credentials that are not in all of these.
        build_variables, build_private: the same for the phase in which code of packages runs.
        facts: the part that decides the result, without credentials.
        secrets: texts that no log may hold.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    binds: tuple[Bind, ...] = ()
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    build_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    build_private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    withholds: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)


def read(
    variables: Mapping[str, str],
    requirements: Requirements,
    *,
    home: Path,
    configuration: Path,
    system: Path,
    nested: bool = False,
) -> Index:
    """Gather the caller's settings.

    Args:
        variables: those of `settings.INDEX_VARIABLES` that the caller has.
        requirements: their options come first.
        home, configuration: the user's home directory (netrc, `.pip/pip.conf`) and configuration directory.
        system: `/etc`.
        nested: a function asks; it must not get at the owner's credentials.

    Raises:
        EnvironmentBuildError: the configuration of uv cannot be read.
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
        # pip's options keep pip's meaning: all indexes are searched as one, and the best version wins
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    extra, links = list(dict.fromkeys(extra)), list(dict.fromkeys(links))

    for name, value in (("UV_DEFAULT_INDEX", default), ("UV_INDEX", extra), ("UV_FIND_LINKS", links)):
        if value:
            result[name] = ("," if name == "UV_FIND_LINKS" else " ").join(value)
    binds = _local_directories([*default, *extra, *links])
    binds += _certificates(variables, pip, result)
    uv = _toml(uv_file)
    hosts = [host_of(address) for address in (*default, *extra, *links, *indexes_of(uv))]
    hosts += [host_of(package) for package in requirements.packages]
    netrc = netrc_of(_first_text([Path(variables["NETRC"])] if variables.get("NETRC") else [home / ".netrc"]), hosts)
    secrets = {secret for text in (*result.values(), uv_file) for secret in secrets_in(text)}
    secrets |= {value for name, value in itertools.pairwise(netrc.split()) if name == "password" and len(value) > 2}
    withholds = False
    open_variables, open_private = (
        _without_credentials(result, requirements),
        _private(for_builds(uv, credentials=False)),
    )
    build_variables, build_private = result, _private(for_builds(uv, credentials=True), netrc)
    full_variables, full_private = result, _private(uv_file, netrc)
    if nested:
        withholds = bool(secrets)
        build_variables, build_private = open_variables, open_private
        if requirements.names_addresses:
            full_variables, full_private = open_variables, open_private
    facts = {
        "default": [without_query(address) for address in default],
        "extra": [without_query(address) for address in extra],
        "links": [without_query(address) for address in links],
        "settings": [[name, result[name]] for name in _DECIDING if result.get(name)],
        "file": hashlib.blake2b(uv_file.encode(), digest_size=16).hexdigest() if uv_file else "",
    }
    return Index(
        variables=full_variables,
        binds=tuple(binds),
        private=full_private,
        build_variables=build_variables,
        build_private=build_private,
        withholds=withholds,
        facts=facts,
        secrets=frozenset(secrets),
    )


def _private(uv_file: str, netrc: str = "") -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in zip(PRIVATE, (uv_file, netrc), strict=True) if text)


def _without_credentials(variables: Mapping[str, str], requirements: Requirements) -> dict[str, str]:
    """Return the variables with no credentials but those of the requirements themselves."""
    own = {value for name, value in requirements.options if name in INDEX_OPTIONS}
    cleaned = {}
    for name, text in variables.items():
        if name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS"):
            between = "," if name == "UV_FIND_LINKS" else " "
            cleaned[name] = between.join(word if word in own else redact(word) for word in text.split(between))
        elif "proxy" in name.lower():
            cleaned[name] = redact(text) if "://" in text else text.rpartition("@")[2]
        else:
            cleaned[name] = text
    return cleaned


def _toml(text: str) -> dict[str, Any]:
    if not text:
        return {}
    import tomllib  # most users have no `uv.toml`: 4 ms of the daemon's start

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EnvironmentBuildError(f"uv's configuration is not TOML: {error}", hint="mend your `uv.toml`") from error


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
        text = _first_text([path])
        if not text:
            continue
        import configparser  # most users have no `pip.conf`

        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
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
