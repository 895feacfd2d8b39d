"""The progress of a build as a value: read from the builder's lines, sent beside them, shown as one text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from atoll.model.sizes import size_text

MOST_CHARACTERS = 100
"""Characters of `detail`."""
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_RESOLVED = re.compile(r"Resolved (\d+) packages?\b")
_DOWNLOADING = re.compile(r"Downloading (\S+)(?: \S+)? \(([\d.]+) ?([KMGT]?i?B)\)")
_DOWNLOADED = re.compile(r" ?Downloaded (\S+)")
_INSTALLING = re.compile(r"(?:Prepared|Linking) (\d+) packages?\b")
_BUILDING = re.compile(r" *Building (?!environment |from )(\S+)")
_BUILT = re.compile(r"Built environment \S+ in ([\d.]+) s")


@dataclass(frozen=True)
class BuildProgress:
    """The state of one build.

    Args:
        environment: the first characters of its key.
        step: `resolving`, `downloading`, `building`, `installing`, `compiling`, `built`, or empty for another one.
        detail: the package that is downloaded or built.
        packages: number of packages, 0 while unknown.
        files, files_done: large downloads so far, and those that have ended.
        bytes, bytes_done: their sizes.
        unpacked_bytes: on the disk of those that have not ended.
        size_bytes, seconds: of the environment that was built.
    """

    environment: str = ""
    step: str = ""
    detail: str = ""
    packages: int = 0
    files: int = 0
    files_done: int = 0
    bytes: int = 0
    bytes_done: int = 0
    unpacked_bytes: int = 0
    size_bytes: int = 0
    seconds: float = 0.0

    def to_data(self) -> dict[str, Any]:
        """Return the fields that are not empty, as JSON-compatible data."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name))}

    @classmethod
    def from_data(cls, data: Any) -> BuildProgress | None:
        """Return the value of such data; None where it is something else."""
        if not isinstance(data, dict):
            return None
        try:
            return cls(**{one.name: _checked(one.type, data[one.name]) for one in fields(cls) if one.name in data})
        except (TypeError, ValueError):
            return None

    def text(self) -> str:
        """Return the step in a few words."""
        parts = [f"{self.step} {self.detail}".strip()]
        if self.step in ("installing", "compiling") and self.packages:
            parts = [f"{self.step} {_packages(self.packages)}"]
        elif self.step == "downloading" and self.files:
            parts = [f"downloading {self.files_done} of {self.files}"]
            parts.append(_of(self.bytes_done, self.bytes))
            parts += [f"{size_text(self.unpacked_bytes)} unpacked"] if self.unpacked_bytes else []
            parts += [self.detail] if self.detail else []  # last: cut where there is no room
        elif self.step == "downloading" and self.packages:
            parts = [f"fetching {_packages(self.packages)}"]
        elif self.step == "built":
            parts = [f"built env {self.environment}"]
            parts += [_packages(self.packages)] if self.packages else []
            parts += [size_text(self.size_bytes)] if self.size_bytes else []
        return " \u00b7 ".join(part for part in parts if part)


def _of(done: int, total: int) -> str:
    """Return both sizes, the unit once where it is the same."""
    first, last = size_text(done), size_text(total)
    return f"{first.partition(' ')[0] if first.split()[1:] == last.split()[1:] else first} of {last}"


def _packages(count: int) -> str:
    return f"{count:,} package{'s' if count != 1 else ''}"


def _checked(kind: Any, value: Any) -> Any:
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError
        return value[:MOST_CHARACTERS]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 62:
        raise TypeError
    return int(value) if kind == "int" else float(value)


class BuildLine(str):
    """A line of a build, empty for none, with the build's state after it."""

    __slots__ = ("progress",)
    progress: BuildProgress

    def __new__(cls, line: str, progress: BuildProgress) -> BuildLine:  # noqa: PYI034 - functions may run on Python 3.10
        made = super().__new__(cls, line)
        made.progress = progress
        return made

    @property
    def is_of_download(self) -> bool:
        """Whether the line tells of one download."""
        return bool(not self or _DOWNLOADING.match(self) or _DOWNLOADED.match(self))


def line_of(header: Mapping[str, Any]) -> str:
    """Return the line of a `progress` message, with the state of its build where it has one."""
    line = str(header.get("line", ""))
    progress = BuildProgress.from_data(header.get("build"))
    return line if progress is None else BuildLine(line, progress)


def shown(line: str) -> str:
    """Return a line of `line_of` as the step of a wait; empty once the environment is built."""
    if isinstance(line, BuildLine) and (text := line.progress.text()):
        return text if line.progress.step != "built" else ""
    return str(line)


class Reader:
    """Follows one build by its lines.

    Args:
        environment: its key.
    """

    def __init__(self, environment: str) -> None:
        self.progress = BuildProgress(environment[:8])
        self._running: dict[str, int] = {}
        """Downloads that have not ended, by name, with their bytes."""

    def take(self, line: str) -> BuildLine:
        """Return the line with the state after it."""
        if isinstance(line, BuildLine):
            most = max(line.progress.packages, self.progress.packages)  # a lock leaves local ones out
            self.progress = replace(line.progress, packages=most)
            return BuildLine(str(line), self.progress)
        self.progress = self._after(line, self.progress)
        return BuildLine(line, self.progress)

    def _after(self, line: str, was: BuildProgress) -> BuildProgress:
        if line.startswith(("Building environment ", "Resolving")):
            return replace(was, step="resolving", detail="")
        if line.startswith(("Compiling bytecode", "Building from source")):
            return replace(was, step="compiling" if line.startswith("C") else "resolving", detail="")
        if found := _RESOLVED.match(line):
            return replace(was, step="downloading", packages=int(found[1]))
        if found := _DOWNLOADING.match(line):
            size = int(float(found[2]) * _UNITS.get(found[3], 1))
            self._running[found[1]] = size
            return replace(was, step="downloading", detail=self._largest(), files=was.files + 1, bytes=was.bytes + size)
        if found := _DOWNLOADED.match(line):
            done = self._running.pop(found[1], None)
            if done is None:
                return was
            ended, total = was.files_done + 1, was.bytes_done + done
            step, detail = "downloading", self._largest()
            return replace(was, step=step, detail=detail, files_done=ended, bytes_done=total, unpacked_bytes=0)
        if found := _INSTALLING.match(line):
            return replace(was, step="installing", detail="", packages=was.packages or int(found[1]), unpacked_bytes=0)
        if found := _BUILDING.match(line):
            return replace(was, step="building", detail=found[1][:MOST_CHARACTERS])
        if found := _BUILT.match(line):
            return replace(was, step="built", detail="", seconds=float(found[1]))
        return was

    def _largest(self) -> str:
        return max(self._running, key=self._running.__getitem__, default="")[:MOST_CHARACTERS]

    def unpacked(self, size_bytes: int) -> BuildLine | None:
        """Return a state with the bytes of running downloads on the disk; None where that is nothing new."""
        if self.progress.step != "downloading" or not self._running or size_bytes == self.progress.unpacked_bytes:
            return None
        self.progress = replace(self.progress, unpacked_bytes=size_bytes)
        return BuildLine("", self.progress)
