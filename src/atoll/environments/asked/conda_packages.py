"""Packages and channels of a conda environment, read into values. Pure.

Equivalent lists give equal values, so that they share one environment. The order of channels counts: a package comes
from the first channel that has it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from packaging.utils import canonicalize_name

from atoll.environments.asked import key
from atoll.environments.asked.redaction import redact, secrets_in, strip_credentials
from atoll.environments.asked.requirements import SATISFIED, Requirements
from atoll.errors import EnvironmentBuildError
from atoll.model.specs import digest

ALIAS = "https://conda.anaconda.org"
"""The server of channels that are given by name, as in every conda client."""

DEFAULT = ("conda-forge", "pytorch")
"""The channels of an environment that names none."""

_DEFAULTS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
"""The channels behind the name `defaults`."""

_TOKEN = re.compile(r"/t/([^/\s]+)(?=/|\s|$)")
"""The access token in an address, also at its end."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_OPERATOR = re.compile(r"\s*([<>=!~,|]+)\s*")
_REMOTE = ("http", "https")


@dataclass(frozen=True)
class CondaRequirements:
    """Packages, channels and pip requirements to install.

    Args:
        packages: match specs in conda's words, sorted, without repetition.
        channels: addresses in order of rank; they may hold credentials, see `shown_channel`.
        pip: requirements that pip names, installed over the packages.
    """

    packages: tuple[str, ...]
    channels: tuple[str, ...] = field(repr=False)
    pip: Requirements = field(default_factory=Requirements)

    @property
    def secrets(self) -> frozenset[str]:
        """The texts that no log may hold."""
        found: set[str] = set()
        for text in (*self.packages, *self.channels):
            found |= secrets_in(text)
            found |= {form for token in _TOKEN.findall(text) for form in (token, unquote(token)) if len(token) > 2}
        return frozenset(found)

    @property
    def local_channels(self) -> tuple[str, ...]:
        """The directories of this machine that are channels."""
        return tuple(unquote(urlsplit(channel).path) for channel in self.channels if channel.startswith("file:"))

    def shown(self) -> tuple[str, ...]:
        """Return lines for a record or a message: no credentials."""
        lines = [cleaned(package) for package in self.packages]
        lines += [f"channel {shown_channel(channel)}" for channel in self.channels]
        return (*lines, *(f"pip {line}" for line in self.pip.redacted()))


def parse(packages: Iterable[str], channels: Iterable[str], pip: Requirements) -> CondaRequirements:
    """Read packages and channels as a function's author writes them.

    Raises:
        EnvironmentBuildError: an entry is none that can be installed; the message names it.
    """
    specs = {spec for entry in packages if (spec := _package(entry))}
    addresses: list[str] = []
    for entry in channels:
        addresses += _addresses(entry)
    return CondaRequirements(
        tuple(sorted(specs)), tuple(dict.fromkeys(addresses or [f"{ALIAS}/{name}" for name in DEFAULT])), pip
    )


def _package(entry: str) -> str:
    """Return a match spec in its normal form, empty when the sandbox satisfies it."""
    text = " ".join(entry.split())
    if not text or canonicalize_name(re.split(r"[\s<>=!~\[]", text, maxsplit=1)[0]) in SATISFIED:
        return ""
    if any(ord(character) < 32 or ord(character) == 127 for character in entry.strip()):
        raise _bad("packages", entry, "it holds a control character")
    if text.startswith(("-", "/", ".", "~", "file:")):
        raise _bad("packages", entry, "it is not a package of a channel")
    if "[" in text or "://" in text or "::" in text:
        return text
    name = re.match(r"[A-Za-z0-9._-]+", text)
    end = name.end() if name else 0
    return text[:end].lower() + _OPERATOR.sub(r"\1", text[end:])


def _addresses(entry: str) -> list[str]:
    text = entry.strip()
    if not text or text == "nodefaults":
        return []
    if text == "defaults":
        return list(_DEFAULTS)
    if text.startswith("/"):
        return ["file://" + quote(posixpath.normpath(text))]
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise _bad("channels", entry, str(error).lower()) from error
    if parts.scheme in _REMOTE and parts.hostname and not re.search(r"\s", text):
        return [text.rstrip("/")]
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return ["file://" + quote(posixpath.normpath(unquote(parts.path)))]
    if _NAME.fullmatch(text) and ".." not in text.split("/"):
        return [f"{ALIAS}/{text}"]
    raise _bad("channels", entry, "it is neither a channel's name nor an address nor an absolute path")


def _bad(option: str, entry: str, why: str) -> EnvironmentBuildError:
    hints = {
        "packages": 'write a name with an optional version, as in `"numpy>=2"`',
        "channels": 'write a name such as `"conda-forge"`, an address, or the path of a directory',
    }
    return EnvironmentBuildError(f"`{cleaned(entry)[:1000]}` in `{option}` cannot be read: {why}", hint=hints[option])


def refuse_host_paths(found: CondaRequirements) -> None:
    """Refuse local paths, for callers that may not see this machine's files; `pip` is not checked here.

    Raises:
        EnvironmentBuildError: an entry is something else; the message names it.
    """
    named = [channel for channel in found.channels if not channel.startswith(("http://", "https://"))]
    named += [spec for spec in found.packages if re.search(r"/|\\|\b(url|channel)\s*=|(?<!:):(?!:)", spec)]
    if named:
        raise EnvironmentBuildError(
            f"`{cleaned(named[0])}` names a place, which a call from inside a sandbox cannot do",
            hint="call the function once from the program itself, or use a channel of the network",
        )


def cleaned(text: str) -> str:
    """Return `text` as a record, a log or a message may show it: no credentials in the addresses in it."""
    return _TOKEN.sub("/t/****", redact(text))


def shown_channel(address: str) -> str:
    """Return a channel's address without credentials, by its name where it has one."""
    text = cleaned(address)
    return text.removeprefix(f"{ALIAS}/") if text.startswith(f"{ALIAS}/") and "/t/" not in text else text


def facts(
    found: CondaRequirements,
    *,
    python: str,
    platform: str,
    virtual: Mapping[str, str],
    pip_facts: Mapping[str, Any],
    fetch: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the facts whose digest is the key.

    Args:
        python: the version that was asked for, as the solver gets it.
        platform: of this machine, with its C library.
        virtual: the caller's overrides of the machine's abilities (`CONDA_OVERRIDE_…`).
        pip_facts: `key.pip_facts` of the pip requirements.
        fetch: `index.Index.fetch`; in the facts where it is not empty.
    """
    return {
        "builder": key.BUILDER_VERSION,
        "kind": "conda",
        "packages": [_TOKEN.sub("", strip_credentials(package)) for package in found.packages],
        "channels": [_TOKEN.sub("", strip_credentials(channel)) for channel in found.channels],
        "pip": dict(pip_facts),
        "python": python,
        "platform": platform,
        "virtual": dict(virtual),
        **({"fetch": dict(fetch)} if fetch else {}),
    }


def key_of(data: Mapping[str, Any]) -> str:
    """Return the environment's key: 32 hexadecimal digits."""
    return digest(dict(data))


# --- locks ------------------------------------------------------------------------------------------------------


def lock_text(found: CondaRequirements, packages: Iterable[tuple[str, str, str, str]], pip: Iterable[str]) -> str:
    """Return an `env_yml` that pins the environment's packages.

    Args:
        packages: names, versions, builds and SHA-256 digests (hexadecimal, or empty) of the packages.
        pip: `name==version` of the packages that pip installed.
    """
    lines = ["channels:", *(f"  - {shown_channel(channel)}" for channel in found.channels), "dependencies:"]
    for name, version, build, sha256 in sorted(packages):
        lines.append(f'  - "{name}=={version}={build}' + (f'[sha256={sha256}]"' if sha256 else '"'))
    on_top = sorted(pip)
    if on_top:
        lines += ["  - pip:", *(f'    - "{line}"' for line in on_top)]
    return "".join(f"{line}\n" for line in lines)


def pinned(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the packages and the pip requirements of a lock."""
    return (
        tuple(re.findall(r'^  - "([^"]+)"$', text, re.MULTILINE)),
        tuple(re.findall(r'^    - "([^"]+)"$', text, re.MULTILINE)),
    )
