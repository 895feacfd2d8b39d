"""Requirements as their author wrote them, read into values: packages, local paths, options.

Pure. Equivalent lists give equal values, so that they share one environment.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote, urlsplit, urlunsplit

from atoll.errors import EnvironmentBuildError

SATISFIED = frozenset({"atoll", "fal-serverless"})
"""Canonical names of packages that every sandbox has already."""

_VALUE_OPTIONS = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--default-index": "--index-url",
    "--extra-index-url": "--extra-index-url",
    "--index": "--extra-index-url",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--trusted-host": "--trusted-host",
    "--no-binary": "--no-binary",
    "--only-binary": "--only-binary",
}
INDEX_OPTIONS = frozenset({"--index-url", "--extra-index-url", "--find-links"})
"""The options whose value is an address or directory of packages."""

_FLAGS = frozenset({"--pre", "--no-index", "--no-deps", "--prefer-binary", "--require-hashes"})
_FILES = frozenset({"-r", "--requirement", "--requirements", "-c", "--constraint", "--constraints"})
_VCS = ("git", "hg", "svn", "bzr")
_REMOTE_SCHEMES = frozenset({"http", "https", *(f"{vcs}+{way}" for vcs in _VCS for way in ("http", "https"))})
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|(git|hg|svn|bzr)\+")
_USER = r"[^/\s?#\"'<>]*"
"""Name and password before the last `@` of an address: a password may hold an `@` that its author has not quoted."""
_MAX_PARENTHESES = 50  # a marker's parser goes down for each
_HASH = re.compile(r"[a-z0-9]+:[0-9a-zA-Z_=+/-]+")
_PLAIN_NAMES = re.compile(r"(:all:|:none:|[A-Za-z0-9._-]+)(,[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, order=True)
class LocalPath:
    """A requirement on this machine's disk: a source tree, a wheel or an archive.

    Args:
        path: absolute.
        extras: canonical, sorted.
        name: the package's name, if the requirement has it.
    """

    path: str
    extras: tuple[str, ...] = ()
    name: str = ""

    @property
    def is_wheel(self) -> bool:
        return self.path.lower().endswith(".whl")


@dataclass(frozen=True)
class Requirements:
    """Packages, local paths and options to install with.

    Args:
        packages: PEP 508 strings and addresses in their normal form, sorted, without repetition. Addresses may hold
            credentials: see `redacted`.
        paths: local paths, sorted.
        options: pairs of a pip option's long name and its value (empty for flags), in the author's order.
    """

    packages: tuple[str, ...] = field(default=(), repr=False)
    paths: tuple[LocalPath, ...] = ()
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def empty(self) -> bool:
        return not self.packages and not self.paths

    @property
    def may_need_building(self) -> bool:
        """Return whether some requirement certainly needs a build, without asking the index."""
        return (
            any(not path.is_wheel for path in self.paths)
            or any(_is_source_address(package) for package in self.packages)
            or any(name == "--no-binary" and value != ":none:" for name, value in self.options)
        )

    @property
    def names_addresses(self) -> bool:
        """Return whether a package or an option names an address."""
        return any("://" in package for package in self.packages) or any(
            name in INDEX_OPTIONS for name, _ in self.options
        )

    @cached_property
    def host_paths(self) -> tuple[str, ...]:
        """The entries that are local paths, or something else than packages and addresses of the network."""
        refused = [path.path for path in self.paths]
        refused += [package for package in self.packages if not _is_remote(package)]
        return (*refused, *(f"{name} {value}" for name, value in self.options if not _is_harmless(name, value)))

    def values(self, option: str) -> list[str]:
        """Return the values of one option, in order."""
        return [value for name, value in self.options if name == option]

    def redacted(self) -> list[str]:
        """Return lines for a record or a message: no credentials."""
        shown = [redact(package) for package in self.packages]
        shown += [path.path + (f"[{','.join(path.extras)}]" if path.extras else "") for path in self.paths]
        shown += [f"{name} {redact(value)}".strip() for name, value in self.options]
        return shown


def parse(entries: Iterable[str]) -> Requirements:
    """Read requirements as a function's author writes them.

    The last few lists are remembered: a request looks at its list several times, and reading takes the loop's time.

    Raises:
        EnvironmentBuildError: an entry is none that can be installed; the message names it.
    """
    wanted = tuple(entries)
    found = _known.get(wanted)
    if found is None:
        found = _parse(wanted)
        with _knowing:
            if len(_known) >= _MOST_KNOWN:
                del _known[next(iter(_known))]
            _known[wanted] = found
    return found


def is_known(entries: tuple[str, ...]) -> bool:
    """Return whether `parse` remembers a list, or has nothing to read in it."""
    return not entries or entries in _known


_known: dict[tuple[str, ...], Requirements] = {}
_knowing = threading.Lock()
_MOST_KNOWN = 16


def _parse(entries: tuple[str, ...]) -> Requirements:
    packages: set[str] = set()
    paths: set[LocalPath] = set()
    options: list[tuple[str, str]] = []
    waiting = ""
    for entry in entries:
        text = entry.replace("\\\n", " ").strip()
        if any(character in text for character in "\r\n\v\f\0"):
            raise _bad(entry, "it has more than one line")
        text = re.sub(r"(^|\s)#.*$", "", text).strip()
        if waiting:
            options.append((waiting, text))
            waiting = ""
        elif text.startswith(("-e ", "--editable ", "--editable=")):
            paths.add(_local(entry, re.split(r"[ =]", text, maxsplit=1)[1].strip()))
        elif text in ("-e", "--editable"):
            raise EnvironmentBuildError(
                f"the entry `{text}` in `requirements` names nothing to install",
                hint=f'write option and path as one entry: `"{text} ./path"`',
            )
        elif text.startswith("-"):
            waiting = _read_options(entry, text, options)
        elif text.startswith(("file:", "/")):
            paths.add(_local(entry, text))
        elif _ADDRESS.match(text):
            packages.add(" ".join(text.split()))
        elif text:
            found = _named(entry, text)
            if isinstance(found, LocalPath):
                paths.add(found)
            elif found:
                packages.add(found)
    if waiting:
        raise EnvironmentBuildError(f"the option `{waiting}` in `requirements` has no value", hint="add its value")
    for address in (*packages, *(value for name, value in options if name in INDEX_OPTIONS)):
        try:
            urlsplit(address.partition(" ")[0])
        except ValueError as error:
            raise _bad(address, str(error).lower()) from error
    return Requirements(tuple(sorted(packages)), tuple(sorted(paths)), tuple(options))


def refuse_host_paths(parsed: Requirements) -> None:
    """Refuse local paths and everything but packages and addresses of the network.

    Allowed are names with versions, extras and markers, addresses over http and https, index options with such an
    address, package names as the value of `--no-binary` and `--only-binary`, and flags.

    Raises:
        EnvironmentBuildError: an entry is something else; the message names it.
    """
    refused = parsed.host_paths
    if refused:
        raise EnvironmentBuildError(
            f"requirement `{redact(refused[0])}` names a local path, or something else than packages and addresses of "
            "the network, which a call from inside a sandbox cannot do",
            hint="call the function once from the program itself, or publish the package",
        )


def _is_remote(package: str) -> bool:
    """Return whether a package in its normal form is a name or an address of the network."""
    text, *hashes = package.split(" --hash=")
    if any(_HASH.fullmatch(value) is None for value in hashes):
        return False
    if text.count("(") > _MAX_PARENTHESES:
        return False
    from packaging.requirements import Requirement  # 12 ms of the daemon's start, and only for requirements

    address = _ADDRESS.match(text) is not None
    try:
        requirement = Requirement(f"x @ {text}" if address else text)
    except ValueError:
        return False
    return requirement.url is None or _is_remote_address(requirement.url)


def _is_remote_address(text: str) -> bool:
    """Return whether `text` is exactly one address of the network."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return (
        parts.scheme in _REMOTE_SCHEMES
        and bool(parts.hostname)
        and text.lower().startswith(f"{parts.scheme}://")  # `urlsplit` overlooks some characters
        and "${" not in text  # the builder would put its own variables there
        and re.search(r"[\s,\\\x00-\x20]", text) is None  # several in one
    )


def _is_harmless(name: str, value: str) -> bool:
    if name in ("--no-binary", "--only-binary"):
        return _PLAIN_NAMES.fullmatch(value) is not None
    if name in INDEX_OPTIONS:
        return _is_remote_address(value) and value.lower().startswith(("http:", "https:"))
    return name in _FLAGS and not value


def _read_options(entry: str, text: str, options: list[tuple[str, str]]) -> str:
    """Append the options of one entry; return the one that waits for its value in the next entry."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _bad(entry, str(error).lower()) from error
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in _FILES:
            raise EnvironmentBuildError(
                f"`{redact(entry)}` in `requirements` names a file", hint="give the lines of the file as the list"
            )
        if name in _FLAGS and not equals:
            options.append((name, ""))
        elif name in _VALUE_OPTIONS:
            if not equals and not words:
                return _VALUE_OPTIONS[name]
            options.append((_VALUE_OPTIONS[name], value if equals else words.pop(0)))
        else:
            import difflib  # for a mistake only

            near = difflib.get_close_matches(name, [*_VALUE_OPTIONS, *_FLAGS], n=1)
            raise EnvironmentBuildError(
                f"unknown option `{name}` in `requirements`",
                hint=f"did you mean `{near[0]}`?"
                if near
                else f"known: {', '.join(sorted({*_VALUE_OPTIONS, *_FLAGS}))}",
            )
    return ""


def _named(entry: str, text: str) -> str | LocalPath:
    """Return a PEP 508 requirement's normal form, empty when the sandbox satisfies it."""
    text, *hashes = re.split(r" --hash[= ]", " ".join(text.split()))
    if text.count("(") > _MAX_PARENTHESES:
        raise _bad(entry, "its marker is too deep")
    from packaging.requirements import Requirement  # as in `_is_remote`
    from packaging.utils import canonicalize_name  # as above

    try:
        requirement = Requirement(text)
        urlsplit(requirement.url or "")
    except ValueError as error:
        raise _bad(entry, str(error).splitlines()[0].lower()) from error
    name = canonicalize_name(requirement.name)
    if name in SATISFIED:
        return ""
    extras = sorted(canonicalize_name(extra) for extra in requirement.extras)
    if requirement.url and urlsplit(requirement.url).scheme == "file":
        return LocalPath(_file_path(entry, requirement.url), tuple(extras), name)
    normal = name + (f"[{','.join(extras)}]" if extras else "")
    if requirement.url:
        normal += f" @ {requirement.url}"
    elif requirement.specifier:
        normal += ",".join(sorted(str(part) for part in requirement.specifier))
    if requirement.marker:
        normal += f" ; {requirement.marker}" if requirement.url else f"; {requirement.marker}"
    return normal + "".join(f" --hash={value.strip()}" for value in sorted(hashes))


def _local(entry: str, text: str) -> LocalPath:
    if text.startswith("file:"):
        return LocalPath(_file_path(entry, text))
    if not text.startswith("/"):
        raise EnvironmentBuildError(
            f"`{entry}` in `requirements` is not an absolute path", hint="give the path from the root on"
        )
    path, bracket, extras = text.removesuffix("]").rpartition("[")
    if not (bracket and text.endswith("]")) or "/" in extras:
        path, extras = text, ""
    from packaging.utils import canonicalize_name  # as in `_named`

    names = sorted(canonicalize_name(extra) for extra in extras.split(",") if extra.strip())
    return LocalPath(posixpath.normpath(path), tuple(names))


def _file_path(entry: str, address: str) -> str:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise EnvironmentBuildError(f"`{entry}` in `requirements` is not a path on this machine")
    return posixpath.normpath(unquote(parts.path))


def _bad(entry: str, why: str) -> EnvironmentBuildError:
    return EnvironmentBuildError(
        f"`{redact(entry)[:1000]}` in `requirements` cannot be read: {redact(why)}",
        hint='write a name with an optional version, as in `"numpy>=2"`',
    )


def _is_source_address(package: str) -> bool:
    match = re.search(r"[a-zA-Z0-9+.-]+://\S+", package)
    return match is not None and not urlsplit(match[0]).path.lower().endswith(".whl")


def strip_credentials(text: str) -> str:
    """Return `text` with the user information of every address in it removed."""
    return re.sub(rf"(?<=://){_USER}@", "", text)


def redact(text: str) -> str:
    """Return `text` as a record, a log or a message may show it: addresses without user information and query."""
    text = strip_credentials(text)
    if "://" not in text or "?" not in text:
        return text
    return "".join("#".join(map(_without_query, word.split("#"))) for word in re.split(r"(\s+)", text))


def _without_query(part: str) -> str:
    start = part.find("://")
    end = part.find("?", start) if start >= 0 else -1
    return part if end < 0 else part[:end]


def secrets_in(text: str) -> set[str]:
    """Return the passwords, tokens and names that the addresses in `text` carry."""
    found: set[str] = set()
    for user_information in re.findall(rf"://({_USER})@", text):
        name, _, password = user_information.partition(":")
        for secret in (password, unquote(password), *(() if password else (name, unquote(name)))):
            if len(secret) > 2:
                found.add(secret)
    return found - {"git"}


def without_query(address: str) -> str:
    """Return an index's address as the key knows it: where it is, not how one is let in."""
    parts = urlsplit(address)
    if not parts.scheme:
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
