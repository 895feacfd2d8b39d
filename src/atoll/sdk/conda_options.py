"""The options of conda environments: `packages`, `channels`, `env_yml`, `env_dict`, `pip`, and what they mean together.

An `env_yml` is read when a call is made, so that an edit of the file is seen by the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atoll.errors import EnvironmentBuildError

OPTIONS = ("packages", "channels", "env_yml", "env_dict", "pip")
"""The options that go with `kind="conda"` only."""

_KNOWN = ("name", "channels", "dependencies", "prefix", "platforms", "category")
_IGNORED = frozenset({"name", "prefix", "platforms", "category"})


class Contents(NamedTuple):
    """What a conda environment is made of."""

    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()


def check(values: Mapping[str, Any]) -> None:
    """Refuse options that exclude each other.

    Args:
        values: the checked options by name.

    Raises:
        TypeError: names them, and what to write instead.
    """
    if values["kind"] == "conda":
        if values["requirements"]:
            raise TypeError(
                "`requirements` goes with kind `virtualenv`; with kind `conda` write `packages=[...]`, or `pip=[...]` "
                "for what comes from the package index"
            )
        if values["env_yml"] is not None and values["env_dict"] is not None:
            raise TypeError("give one of `env_yml` and `env_dict`, not both")
        return
    given = [name for name in OPTIONS if values[name]]
    if given:
        instead = "; with kind `virtualenv` write `requirements=[...]`" if given[0] in ("packages", "pip") else ""
        raise TypeError(f'`{given[0]}` goes with `kind="conda"`{instead}')


def contents(values: Mapping[str, Any]) -> Contents:
    """Return what the options mean together, as files are now: `packages` and `pip` are added to what the file lists,
    and `channels` rank before its own.

    Raises:
        EnvironmentBuildError: the file cannot be read or understood.
    """
    if values["kind"] != "conda":
        return Contents()
    listed = Contents()
    if values["env_dict"] is not None:
        listed = read_mapping(json.loads(values["env_dict"]))
    elif values["env_yml"] is not None:
        listed = read_file(values["env_yml"])
    return Contents(
        listed.packages + values["packages"], values["channels"] + listed.channels, listed.pip + values["pip"]
    )


def read_file(path: str) -> Contents:
    """Return what an `environment.yml` lists; relative paths in it are meant from its directory.

    Raises:
        EnvironmentBuildError: it cannot be read or understood.
    """
    from atoll.sdk import environment_file

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(environment_file.MAX_CHARACTERS + 1)
        return read_mapping(environment_file.parse(text), os.path.dirname(path))
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{path}`, which `env_yml` names: {(error.strerror or str(error)).lower()}",
            hint="check the path",
        ) from error
    except ValueError as error:  # not text, or not of that form
        raise EnvironmentBuildError(
            f"cannot understand `{path}`, which `env_yml` names: {error}",
            hint="write `channels:` and `dependencies:` as `conda env export` does, or give `env_dict`",
        ) from error


def read_mapping(value: Mapping[str, Any], directory: str = "") -> Contents:
    """Return what a mapping of the form of an `environment.yml` lists.

    Args:
        directory: where relative paths are meant from; empty for the working directory.

    Raises:
        ValueError: it is not of that form.
    """
    if not isinstance(value, Mapping):
        raise ValueError("it is not a mapping")
    for name in value:
        if name == "variables":
            raise ValueError("`variables` belongs to the function: write `env={...}`")
        if name not in _KNOWN:
            raise ValueError(f"unknown name `{name}`; known are {', '.join(_KNOWN)}")
    packages: list[str] = []
    pip: list[str] = []
    for entry in _list(value, "dependencies"):
        if isinstance(entry, str):
            packages.append(entry.strip())
        elif isinstance(entry, Mapping) and list(entry) == ["pip"]:
            pip += _texts(entry, "pip")
        else:
            raise ValueError(f"`dependencies` has {entry!r}; entries are texts, and one `pip: [...]`")
    channels = [absolute(entry, directory) for entry in _texts(value, "channels")]
    return Contents(tuple(packages), tuple(channels), tuple(absolute(entry, directory) for entry in pip))


def _list(value: Mapping[str, Any], name: str) -> Iterable[Any]:
    found = value.get(name)
    if found is None:
        return ()
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
        raise ValueError(f"`{name}` is not a list")
    return found


def _texts(value: Mapping[str, Any], name: str) -> list[str]:
    found = list(_list(value, name))
    for entry in found:
        if not isinstance(entry, str) or "\0" in entry:
            raise ValueError(f"`{name}` has {entry!r}, which is not a text")
    return [entry.strip() for entry in found if entry.strip()]


def absolute(entry: str, directory: str = "") -> str:
    """Make a local path absolute: the daemon has another working directory."""
    for option in ("-e ", "--editable ", "-r ", "--requirement ", "-c ", "--constraint "):
        if entry.startswith(option):
            return option + _join(directory, entry[len(option) :].strip())
    if entry.startswith(("./", "../", "~/")) or entry in (".", ".."):
        return _join(directory, entry)
    return entry


def _join(directory: str, path: str) -> str:
    return os.path.abspath(os.path.join(directory, os.path.expanduser(path)))
