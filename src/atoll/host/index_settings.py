"""The caller's settings about package indexes: variables, and the contents of the files that they name.

The caller opens its own files, with its own rights, and sends the parts that a build needs: of a netrc the entries of
hosts that a setting or requirement names, of certificates the certificates, which travel beside the request. So the
daemon opens no file of a caller, and its own configuration serves nobody. pip's settings count where uv has none of
the same meaning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from atoll import file_stamp, settings
from atoll.errors import EnvironmentBuildError
from atoll.file_stamp import Stamp
from atoll.wire import nested

if TYPE_CHECKING:
    from atoll.environments.asked.certificates import Certificates

MAX_FILE_BYTES = 128 << 10
SYSTEM = "/etc"
"""The machine's configuration, for every user of it."""

_COMMENTED_BYTES = 8 << 20
"""Of one file of certificates, with the comments that are not sent."""

_CERTIFICATE = r"(?s)-----BEGIN ([A-Z0-9 ]*CERTIFICATE)-----.*?-----END \1-----"
_ADDRESS = r"://[^\s\"',]+"
"""Compiled where one is needed: few callers have these files."""
PIP = {"PIP_INDEX_URL": "index-url", "PIP_EXTRA_INDEX_URL": "extra-index-url", "PIP_FIND_LINKS": "find-links"}
"""pip's variables and the options of its files with the same meaning."""

_read: dict[str, tuple[Stamp, str]] = {}


def collect(requirements: Iterable[str], *, for_calls: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the settings for a request, sorted; without requirements no file is read.

    Inside a sandbox there are none: a function's request has its program's.

    Args:
        for_calls: the function may call others that have requirements, so files are read in any case.

    Raises:
        EnvironmentBuildError: a file is too large to be sent.
    """
    if nested.inside():
        return ()
    found = settings.index_variables()
    files = {name: found.pop(name, "") for name in settings.INDEX_FILE_VARIABLES}
    texts = list(requirements)
    if not texts and not for_calls:
        return tuple(sorted(found.items()))
    home, configuration = os.path.expanduser("~"), os.fspath(settings.user_config_directory())
    given = files["UV_CONFIG_FILE"]
    uv = _first([given] if given else [f"{configuration}/uv/uv.toml", f"{SYSTEM}/uv/uv.toml"])
    pip: dict[str, str] = {}
    if not uv and files["PIP_CONFIG_FILE"] != os.devnull:  # pip's own way to read none
        paths = [f"{path}/pip.conf" for path in (SYSTEM, f"{home}/.pip", f"{configuration}/pip")]
        paths += [files["PIP_CONFIG_FILE"]] if files["PIP_CONFIG_FILE"] else []
        pip = _pip(*(_text(path, MAX_FILE_BYTES) for path in paths))
    for variable, option in PIP.items():
        if pip.get(option) and variable not in found:
            found[variable] = pip[option]
    contents = {
        "uv.toml": uv,
        "netrc": _netrc(files["NETRC"] or f"{home}/.netrc", [*texts, *found.values(), uv]),
        "certificates": _certificates_of(
            files["SSL_CERT_FILE"] or files["REQUESTS_CA_BUNDLE"] or pip.get("cert", ""), files["SSL_CERT_DIR"]
        ),
    }
    return tuple(sorted({**found, **{name: text for name, text in contents.items() if text}}.items()))


def _netrc(path: str, texts: Iterable[str]) -> str:
    text = _text(path, MAX_FILE_BYTES)
    if not text:
        return ""
    from atoll.environments.asked.credentials import host_of, netrc_of  # most callers have no netrc

    return netrc_of(text, (host_of(address) for one in texts for address in re.findall(_ADDRESS, one)))


def certificates(digest: str) -> str:
    """Return the certificates that a request of this process names."""
    return _known().text(digest)


def learn(text: str) -> None:
    """Let requests of this process name certificates that another program has read."""
    _known().learn(text)


@cache
def _known() -> Certificates:
    """Return the certificates of the last requests of this process."""
    from atoll.environments.asked.certificates import Certificates

    return Certificates()


def _certificates_of(file: str, directory: str) -> str:
    """Return the digest of the certificates of a file and of a directory; empty where neither is there."""
    texts = [_text(file, _COMMENTED_BYTES, "replace")] if file and os.path.isfile(file) else []
    if directory and os.path.isdir(directory):
        texts.append(_texts(directory))
    if not texts:
        return ""
    from atoll.environments.asked.certificates import MAX_BYTES

    text, digest = _joined(tuple(texts))
    if len(text) > MAX_BYTES:
        raise _too_large(directory or file, MAX_BYTES)
    if digest not in _known():
        _known().learn(text)
    return digest


def _texts(directory: str) -> str:
    """Return the texts of a directory's files, read once for each state of the directory."""
    stamp = file_stamp.take(directory)
    known = _read.get(directory)
    if known is not None and known[0] == stamp:
        return known[1]
    with os.scandir(directory) as entries:  # most names are links to others
        paths = {entry.stat().st_ino: entry.path for entry in entries if entry.is_file()}
    text = "\n".join(_text(path, _COMMENTED_BYTES, "replace") for path in paths.values())
    if not file_stamp.is_young(stamp):
        _read[directory] = stamp, text
    return text


@lru_cache(maxsize=2)
def _joined(texts: tuple[str, ...]) -> tuple[str, str]:
    """Return the certificates in texts, each once, and their digest."""
    blocks = {match[0] for text in texts for match in re.finditer(_CERTIFICATE, text)}
    text = "\n".join(sorted(blocks)) + "\n"
    from atoll.environments.asked.certificates import digest_of

    return text, digest_of(text)


@lru_cache(maxsize=2)
def _pip(*texts: str) -> dict[str, str]:
    """Return pip's options of the texts of its files, later ones first in rank."""
    options: dict[str, str] = {}
    for text in filter(None, texts):
        import configparser  # most callers have no `pip.conf`

        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                options.update({name.replace("_", "-"): value for name, value in parser.items(section)})
    return options


def _first(paths: Iterable[str]) -> str:
    return next((text for path in paths if (text := _text(path, MAX_FILE_BYTES))), "")


def _text(path: str, most: int, undecodable: str = "strict") -> str:
    """Return a file's text, read once for each of its states; empty where there is none that can be read."""
    stamp = file_stamp.take(path)
    known = _read.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    if stamp == file_stamp.GONE:
        return ""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
        text = data.decode("utf-8", undecodable)
    except (OSError, ValueError):
        return ""
    if len(data) > most:
        raise _too_large(path, most)
    text = "" if "\0" in text else text
    if not file_stamp.is_young(stamp):
        _read[path] = stamp, text
    return text


def _too_large(path: str, most: int) -> EnvironmentBuildError:
    return EnvironmentBuildError(
        f"`{path}` is larger than {most >> 10} KiB, which is the most that a build is given",
        hint="remove the parts that packages do not need",
    )
