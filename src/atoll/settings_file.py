"""The text of `settings.toml` as groups of options, with the line of each mistake; loaded where there is such a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from atoll.errors import StateUnusable
from atoll.near_names import nearest
from atoll.terminal_text import cell

MOST = 1 << 62

LEAST = {
    "pool.worker_memory_bytes": 32 << 20,
    "pool.worker_processes": 16,
    "pool.memory_bytes": 256 << 20,
    "sandbox.tmp_bytes": 1 << 20,
    "sandbox.shm_bytes": 1 << 20,
    "sandbox.overhead_bytes": 64 << 20,
    "environments.build_memory_bytes": 128 << 20,
    "environments.build_processes": 16,
    "environments.build_disk_bytes": 1 << 20,
    "detached.max_bytes": 1 << 20,
    "detached.call_bytes": 1 << 16,
    "detached.output_bytes": 1 << 12,
    "sandbox.first_uid": 1000,
    "sandbox.uid_count": 2,
    "storage.trash_days": 1,
    "storage.cache_bytes": 64 << 20,
}
"""The smallest values, besides 0, with which a function can run at all."""

NEVER_ZERO = (
    "pool.worker_processes",
    "environments.build_processes",
    "sandbox.tmp_bytes",
    "sandbox.shm_bytes",
    "detached.max_bytes",
    "detached.call_bytes",
    "detached.output_bytes",
    "storage.trash_days",
)
"""Options for which 0 does not mean that Atoll chooses."""

CHOICES = {
    "storage.filesystem": ("own", "path", "juicefs"),
    "storage.objects": ("file", "s3", "minio"),
}
"""Options with a few values."""

PLACES = ("environments.users_index_url", "environments.users_extra_index_urls", "environments.users_find_links")
"""Options with places of packages. Code of packages could read credentials in them."""

_PLACE = re.compile(r"https?://[^\s,/@?#]+(/[^\s,@?#]*)?|file:///[^\s,@?#]*|/[^\0\n]*")
_HEADING = re.compile(r"\s*\[\s*([\w.\"' -]+?)\s*\]\s*(#.*)?")
_OPTION = re.compile(r"\s*([\w.\"'-]+)\s*=")


def parse(path: Path, text: str, groups: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Return the groups that the text names, each as an instance of its class.

    Args:
        path: for messages.

    Raises:
        StateUnusable: it is not TOML, or has an unknown or wrongly typed option; names the line.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the second of deep nesting
        raise StateUnusable(f"`{path}` is not TOML: {_shown(error)}", hint="mend or remove the file") from None
    for name in data:
        if name not in groups:
            raise StateUnusable(
                f"`{path}`{_line(text, name)} has an unknown group `{_shown(name)}`", hint=_known(name, list(groups))
            )
    reader = _Reader(path, text)
    return {name: reader.group(name, cls, data[name]) for name, cls in groups.items() if name in data}


class _Reader:
    """Checks the groups of one file."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def group(self, name: str, cls: type[Any], data: Any) -> Any:
        """Return a group's options as an instance of its class."""
        if not isinstance(data, dict):
            raise self._refusal(name, "", "must be a table", f"write `[{name}]` above its options")
        defaults = cls()
        known = [option.name for option in fields(cls)]
        for option, value in data.items():
            if option not in known:
                where = _line(self._text, name, option)
                raise StateUnusable(
                    f"`{self._path}`{where} has an unknown option `{name}.{_shown(option)}`", hint=_known(option, known)
                )
            self._check(name, option, getattr(defaults, option), value)
        made = cls(**{option: tuple(value) if isinstance(value, list) else value for option, value in data.items()})
        if (mistake := getattr(made, "mistake", None)) is not None:
            option, text, hint = mistake
            raise self._refusal(name, option, text, hint)
        return made

    def _check(self, name: str, option: str, default: Any, value: Any) -> None:
        want, full = type(default), f"{name}.{option}"
        if want is tuple:
            fits = isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)
        else:
            fits = type(value) in (int, float) if want is float else type(value) is want
        least, zero = LEAST.get(full, 0), full not in NEVER_ZERO
        if not fits or (want in (int, float) and not ((zero and value == 0) or least <= value < MOST)):
            wanted = f"must be {_wanted(want, least, zero=zero)}, is `{_shown(value)}`"
            raise self._refusal(name, option, wanted, "mend the value, or remove it for the default")
        if full in CHOICES and value not in CHOICES[full]:
            wanted = f"must be one of {', '.join(CHOICES[full])}, is `{_shown(value)}`"
            raise self._refusal(name, option, wanted, "mend the value, or remove it for the default")
        places = [value] if isinstance(value, str) and value else value if isinstance(value, list) else []
        if full in PLACES and not all(map(_PLACE.fullmatch, places)):
            wanted = "must name packages by `https://…` or `file:///…` without credentials, or by absolute paths"
            raise self._refusal(name, option, wanted, "mend the value, or remove it for the default")

    def _refusal(self, name: str, option: str, text: str, hint: str) -> StateUnusable:
        full = f"{name}.{option}" if option else name
        return StateUnusable(f"`{self._path}`{_line(self._text, name, option)}: `{full}` {text}", hint=hint)


def _shown(value: object) -> str:
    """Return a value of the file for a message: printable, and its end is cut."""
    try:
        return cell(str(value), 200)
    except (ValueError, RecursionError):  # of a number with thousands of digits, or of deep nesting
        return "…"


def _known(name: str, known: Collection[str]) -> str:
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else f"known: {', '.join(sorted(known))}"


def _wanted(kind: type[Any], least: float, *, zero: bool) -> str:
    if kind in (str, bool, tuple):
        return {str: "a text", bool: "true or false", tuple: "a list of texts"}[kind]
    number = "a whole number" if kind is int else "a number"
    return f"{number} of at least {least:,}{', or 0' if least and zero else ''}"


def _line(text: str, group: str, option: str = "") -> str:
    """Return the line that names a group or an option, in words; empty where none does plainly."""
    table = ""
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole[:500]  # the patterns take long for long lines
        heading, pair = _HEADING.fullmatch(line), _OPTION.match(line)
        if heading is not None:
            table = _plain(heading[1])
            if not option and table == group:
                return f", line {number}"
        elif pair is not None:
            name = f"{table}.{_plain(pair[1])}" if table else _plain(pair[1])
            if name == (f"{group}.{option}" if option else group) or (
                not table and not option and name.startswith(f"{group}.")
            ):
                return f", line {number}"
    return ""


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
