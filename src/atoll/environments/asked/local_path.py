"""Requirements on this machine's disk, as their author wrote them: paths, `file:` addresses, git repositories. Pure."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from atoll.environments.asked.redaction import redact
from atoll.errors import EnvironmentBuildError

_REVISION = re.compile(r"\w[\w./+-]*")
_FRAGMENT = re.compile(r"[\w.=&/+-]*")


@dataclass(frozen=True, order=True)
class LocalPath:
    """A requirement on this machine's disk: a source tree, a wheel, an archive, or a commit of a git repository.

    Args:
        path: absolute.
        extras: canonical, sorted.
        name: the package's name, if the requirement has it.
        marker: the condition under which it is installed; empty for always.
        repository: True for a git repository.
        revision: of a repository: `@` and a branch, tag or commit, or empty for its HEAD, then `#` and a fragment such
            as `subdirectory=inner` if there is one.
    """

    path: str
    extras: tuple[str, ...] = ()
    name: str = ""
    marker: str = ""
    repository: bool = False
    revision: str = ""

    @property
    def is_wheel(self) -> bool:
        return self.path.lower().endswith(".whl")

    @property
    def location(self) -> str:
        """The path; of a repository its address with the revision."""
        return f"git+file://{self.path}{self.revision}" if self.repository else self.path

    def entry(self, path: str) -> str:
        """Return the builder's requirement for this source at another path."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        condition = f" ; {self.marker}" if self.marker else ""
        where = replace(self, path=path).location if self.repository else f"file://{path}"
        if self.name:
            return f"{self.name}{extras} @ {where}{condition}"
        return (where if self.repository else f"{path}{extras}") + condition

    def shown(self) -> str:
        """Return the requirement for a message."""
        return self.location + (f"[{','.join(self.extras)}]" if self.extras else "")


def of_text(entry: str, text: str) -> LocalPath:
    """Read a path or a `file:` address, which may have extras and a marker behind it.

    Raises:
        EnvironmentBuildError: it is none; the message names the entry.
    """
    text, _, marker = text.partition(" ;")
    text, marker = text.strip(), marker.strip()
    if marker:
        from packaging.markers import InvalidMarker, Marker  # 12 ms, as for names

        try:
            marker = str(Marker(marker))
        except InvalidMarker as error:
            raise unreadable(entry, str(error).splitlines()[0].lower()) from error
    if text.startswith("file:"):
        return replace(of_address(entry, text), marker=marker)
    if text.startswith("git+file:"):
        return replace(of_repository(entry, text), marker=marker)
    if not text.startswith("/"):
        raise EnvironmentBuildError(
            f"`{entry}` in `requirements` is not an absolute path", hint="give the path from the root on"
        )
    path, bracket, extras = text.removesuffix("]").rpartition("[")
    if not (bracket and text.endswith("]")) or "/" in extras:
        path, extras = text, ""
    from packaging.utils import canonicalize_name  # as above

    names = sorted(canonicalize_name(extra) for extra in extras.split(",") if extra.strip())
    return LocalPath(posixpath.normpath(path), tuple(names), marker=marker)


def of_address(entry: str, address: str) -> LocalPath:
    """Read a `file:` address.

    Raises:
        EnvironmentBuildError: it names no path of this machine.
    """
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise EnvironmentBuildError(f"`{entry}` in `requirements` is not a path on this machine")
    return LocalPath(posixpath.normpath(unquote(parts.path)))


def of_repository(entry: str, address: str) -> LocalPath:
    """Read the `git+file:` address of a repository, with `@REVISION` and `#subdirectory=PATH` if it has them.

    Raises:
        EnvironmentBuildError: it names no path of this machine, or its revision is none.
    """
    bare, mark, fragment = address.removeprefix("git+").partition("#")
    path, at, revision = bare.rpartition("@") if "@" in bare else (bare, "", "")
    if (at and not _REVISION.fullmatch(revision)) or not _FRAGMENT.fullmatch(fragment):
        raise unreadable(entry, "its revision or fragment is none")
    egg = re.search(r"(?:^|&)egg=([\w.-]+)", fragment)
    found = of_address(entry, path)
    return replace(found, name=egg[1] if egg else "", repository=True, revision=at + revision + mark + fragment)


def unreadable(entry: str, why: str) -> EnvironmentBuildError:
    """Return the error of an entry that cannot be read."""
    return EnvironmentBuildError(
        f"`{redact(entry)[:1000]}` in `requirements` cannot be read: {redact(why)}",
        hint='write a name with an optional version, as in `"numpy>=2"`',
    )
