"""Packages of this machine in requirements, uploaded to a server: wheels, source trees built into wheels, directories.

What cannot be uploaded is refused by name: a server reads no path of its clients, and nothing is left out in silence.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from atoll.environments.asked.uploaded import SCHEME
from atoll.errors import EnvironmentBuildError
from atoll.host.remote import local_wheels, package_uploads
from atoll.host.remote.package_directories import packages_in, path_of
from atoll.model.specs import EnvironmentSpec
from atoll.terminal_text import printable

_LINKS = ("-f", "--find-links")
_INDEXES = ("-i", "--index-url", "--default-index", "--extra-index-url", "--index")
_NAMED = re.compile(r"(?P<name>[\w.-]+)\s*(?P<extras>\[[^\]]*\])?\s*@\s*(?P<address>(git\+)?file:.*)", re.DOTALL)


def has_any(spec: EnvironmentSpec) -> bool:
    """Return whether a spec names packages or places of this machine."""
    named = any(_reads(entry) for entry in (*spec.requirements, *spec.pip))
    return named or any(_is_place(text) for text in (*spec.packages, *spec.channels))


def _reads(entry: str) -> bool:
    text = entry.strip()
    if text.startswith(("-e", "--editable", "file:", "git+file:")) or os.path.isabs(text):
        return True
    return _option(text) is not None or _NAMED.match(text) is not None


def uploaded(host: Any, spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return the spec with names of uploads in place of paths, which are on the server by then.

    Args:
        host: has `server` and `identity`.

    Raises:
        EnvironmentBuildError: a package cannot be uploaded; the message names it.
    """
    for text in filter(_is_place, (*spec.packages, *spec.channels)):
        raise EnvironmentBuildError(
            f"`{printable(text)}` is a place of conda packages on this machine, which a server cannot read",
            hint="serve the channel over HTTP, or name packages of a channel of the network",
        )
    return replace(
        spec,
        requirements=tuple(_entry(host, one, spec) for one in spec.requirements),
        pip=tuple(_entry(host, one, spec) for one in spec.pip),
    )


def _is_place(text: str) -> bool:
    return re.search(r"(^|[\s=\[])(file:|/|\.{1,2}/|~/|[A-Za-z]:\\)", text) is not None


def _entry(host: Any, entry: str, spec: EnvironmentSpec) -> str:
    if not _reads(entry):
        return entry
    text = re.sub(r"\s#.*$", "", entry.strip())  # a stamp of the path's contents
    if (option := _option(text)) is not None:
        name, path = option
        if name not in _LINKS:
            raise index_refused(name, path)
        packages = packages_in(path, name, spec.python_version)
        return f"--find-links {SCHEME}{package_uploads.send_directory(host, packages)}"
    text = re.sub(r"^(-e|--editable)[ =]\s*", "", text)
    text, semicolon, marker = text.partition(" ;")
    extras = ""
    if named := _NAMED.match(text):
        text, extras = named["address"], named["extras"] or ""
    if text.startswith("git+"):
        raise EnvironmentBuildError(
            f"`{printable(entry)}` in `requirements` is a git repository of this machine, which a server cannot read",
            hint="name its working tree, which is uploaded, or an address of the network",
        )
    if text.startswith("file:"):
        path = unquote(urlsplit(text).path)
        path = path[1:] if re.match(r"/[A-Za-z]:", path) else path
    else:
        bare, bracket, rest = text.removesuffix("]").rpartition("[")
        path, extras = (
            (bare, f"[{rest}]") if bracket and text.endswith("]") and not os.path.exists(text) else (text, "")
        )
    package = local_wheels.wheel_of(path, entry, spec)
    return f"{SCHEME}{package_uploads.send_file(host, package)}/{package.name}{extras}{semicolon}{marker}"


def _option(text: str) -> tuple[str, str] | None:
    """Return an option for places of packages, and the path of this machine that it names; None for anything else."""
    if not text.startswith(("-f", "-i", "--")):
        return None
    with contextlib.suppress(ValueError):
        name, *values = shlex.split(text)
        name, equals, value = name.partition("=")
        if name in (*_LINKS, *_INDEXES) and (equals or len(values) == 1):
            address = value if equals else values[0]
            if name == "--index":
                address = re.sub(r"^[\w-]+=", "", address)
            path = None if address.startswith(SCHEME) else path_of(address)
            return None if path is None else (name, path)
    return None


def index_refused(source: str, path: str) -> EnvironmentBuildError:
    """Return the error of an index in a directory of this machine.

    Args:
        source: the setting or option that names it.
    """
    pip = f" (pip reads no file with `PIP_CONFIG_FILE={os.devnull}`)" if source.startswith("PIP_") else ""
    return EnvironmentBuildError(
        f"`{source}` names `{printable(path)[:300]}`, an index on this machine, which a server cannot read",
        hint="name the packages with `--find-links DIRECTORY`, which are uploaded, or use the server's own index: leave "
        f"the setting out{pip}",
    )
