"""Requirements as their author wrote them, read into values: packages, local paths, options.

Pure. Equivalent lists give equal values, so that they share one environment.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from urllib.parse import urlsplit

from atoll.environments.asked import reading
from atoll.environments.asked.local_path import LocalPath, of_address, of_repository, of_text, unreadable
from atoll.environments.asked.redaction import redact
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
    "--constraint-line": "--constraint-line",
}
CONSTRAINT = "--constraint-line"
"""The option whose value is one line of a file of constraints."""
INDEX_OPTIONS = frozenset({"--index-url", "--extra-index-url", "--find-links"})
"""The options whose value is an address or directory of packages."""

_FLAGS = frozenset({"--pre", "--no-index", "--no-deps", "--prefer-binary", "--require-hashes"})
_FILES = frozenset({"-r", "--requirement", "--requirements", "-c", "--constraint", "--constraints"})
_VCS = ("git", "hg", "svn", "bzr")
_REMOTE_SCHEMES = frozenset({"http", "https", *(f"{vcs}+{way}" for vcs in _VCS for way in ("http", "https"))})
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|(git|hg|svn|bzr)\+")
_MAX_PARENTHESES = 50  # a marker's parser goes down for each
_HASH = re.compile(r"[a-z0-9]+:[0-9a-zA-Z_=+/-]+")
_FILE_NAME = re.compile(
    r".+\.(toml|lock|txt|cfg|ini|in|md|rst|whl|zip|tar\.gz|tgz)|Pipfile|(setup|conftest|main)\.py|environment\.ya?ml|"
    r"requirements([-_.].*)?|.*[-_.]requirements",
    re.IGNORECASE,
)
"""Names of files, which the index must not be asked for: anyone could have published a package of that name."""
_PLAIN_NAMES = re.compile(r"(:all:|:none:|[A-Za-z0-9._-]+)(,[A-Za-z0-9._-]+)*")


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
    def constraints(self) -> tuple[str, ...]:
        """Versions to keep to where a package is needed."""
        return tuple(self.values(CONSTRAINT))

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
        refused = [path.location for path in self.paths]
        refused += [package for package in reading.in_steps(self.packages) if not _is_remote(package)]
        return (*refused, *(f"{name} {value}" for name, value in self.options if not _is_harmless(name, value)))

    def values(self, option: str) -> list[str]:
        """Return the values of one option, in order."""
        return [value for name, value in self.options if name == option]

    def redacted(self) -> list[str]:
        """Return lines for a record or a message: no credentials."""
        shown = [redact(package) for package in self.packages]
        shown += [path.shown() for path in self.paths]
        shown += [f"{name} {redact(value)}".strip() for name, value in self.options]
        return shown


def parse(entries: Iterable[str]) -> Requirements:
    """Read requirements as a function's author writes them.

    The last few lists are remembered: a request looks at its list several times, and reading takes the loop's time.

    Raises:
        EnvironmentBuildError: an entry is none that can be installed; the message names it.
    """
    wanted = tuple(entries)
    here = reading.known()
    found = here[wanted] if wanted in here else _known.get(wanted)
    if found is None:
        found = _parse(wanted)
        with _knowing:
            if len(_known) >= _MOST_KNOWN:
                del _known[next(iter(_known))]
            _known[wanted] = found
    here[wanted] = found
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
    for entry in reading.in_steps(entries):
        text = entry.replace("\\\n", " ").strip()
        if any(character in text for character in "\r\n\v\f\0"):
            raise unreadable(entry, "it has more than one line")
        text = re.sub(r"(^|\s)#.*$", "", text).strip()
        if waiting:
            options.append((waiting, text))
            waiting = ""
        elif text.startswith(("-e ", "--editable ", "--editable=")):
            paths.add(of_text(entry, re.split(r"[ =]", text, maxsplit=1)[1].strip()))
        elif text in ("-e", "--editable"):
            raise EnvironmentBuildError(
                f"the entry `{text}` in `requirements` names nothing to install",
                hint=f'write option and path as one entry: `"{text} ./path"`',
            )
        elif text.startswith("-"):
            waiting = _read_options(entry, text, options)
        elif text.startswith(("file:", "/")):
            paths.add(of_text(entry, text))
        elif text.startswith("git+file:"):
            paths.add(of_repository(entry, text))
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
            raise unreadable(address, str(error).lower()) from error
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
    if name == CONSTRAINT:
        return _is_remote(value)
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
        raise unreadable(entry, str(error).lower()) from error
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in _FILES:
            raise EnvironmentBuildError(
                f"`{redact(entry)}` in `requirements` names a file, which only the program itself can read",
                hint="give the lines of the file as the list",
            )
        if name in _FLAGS and not equals:
            options.append((name, ""))
        elif name in _VALUE_OPTIONS:
            if not equals and not words:
                return _VALUE_OPTIONS[name]
            given = value if equals else words.pop(0)
            options.append((_VALUE_OPTIONS[name], _constraint(given) if name == CONSTRAINT else given))
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


def _constraint(text: str) -> str:
    """Return the normal form of one line of constraints; empty for a package that the sandbox has."""
    found = _named(text, text) if not _ADDRESS.match(text) else text
    if isinstance(found, LocalPath):
        raise unreadable(text, "a constraint names no path")
    return found


def _named(entry: str, text: str) -> str | LocalPath:
    """Return a PEP 508 requirement's normal form, empty when the sandbox satisfies it."""
    text, *hashes = re.split(r" --hash[= ]", " ".join(text.split()))
    if text.count("(") > _MAX_PARENTHESES:
        raise unreadable(entry, "its marker is too deep")
    from packaging.requirements import Requirement  # as in `_is_remote`
    from packaging.utils import canonicalize_name  # as above

    try:
        requirement = Requirement(text)
        urlsplit(requirement.url or "")
    except ValueError as error:
        raise unreadable(entry, str(error).splitlines()[0].lower()) from error
    if _FILE_NAME.fullmatch(requirement.name) and not requirement.url:
        raise EnvironmentBuildError(
            f"`{redact(entry)[:1000]}` in `requirements` is the name of a file, and no package is looked for by it",
            hint="files that can be named are `requirements.txt`, `pyproject.toml`, `uv.lock` and `pylock.toml`"
            + (
                f"; a package of that name is `{requirement.name.replace('.', '-')}`" if "." in requirement.name else ""
            ),
        )
    name = canonicalize_name(requirement.name)
    if name in SATISFIED:
        return ""
    extras = sorted(canonicalize_name(extra) for extra in requirement.extras)
    if requirement.url and urlsplit(requirement.url).scheme in ("file", "git+file"):
        read = of_repository if requirement.url.startswith("git+") else of_address
        return replace(
            read(entry, requirement.url), extras=tuple(extras), name=name, marker=str(requirement.marker or "")
        )
    normal = name + (f"[{','.join(extras)}]" if extras else "")
    if requirement.url:
        normal += f" @ {requirement.url}"
    elif requirement.specifier:
        normal += ",".join(sorted(str(part) for part in requirement.specifier))
    if requirement.marker:
        normal += f" ; {requirement.marker}" if requirement.url else f"; {requirement.marker}"
    return normal + "".join(f" --hash={value.strip()}" for value in sorted(hashes))


def _is_source_address(package: str) -> bool:
    match = re.search(r"[a-zA-Z0-9+.-]+://\S+", package)
    return match is not None and not urlsplit(match[0]).path.lower().endswith(".whl")
